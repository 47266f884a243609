package proxy

import (
	"errors"
	"sync"
)

var errNoRoom = errors.New("read-ahead limit reached")

const (
	// copySize is the chunk of the copy loops: with 64 KiB a gigabit costs about as much
	// CPU as with 256 KiB, and it still fits the second-level cache.
	copySize = 64 << 10
	// headSize holds a usual head with its token (about 1.5 KiB).
	headSize = 4 << 10
)

var (
	copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}
	headBuffers = sync.Pool{New: func() any { return new([headSize]byte) }}
)

func getCopyBuffer() *[copySize]byte {
	if b, ok := copyBuffers.Get().(*[copySize]byte); ok {
		return b
	}
	return new([copySize]byte)
}

func getHeadBuffer() *[headSize]byte {
	if b, ok := headBuffers.Get().(*[headSize]byte); ok {
		return b
	}
	return new([headSize]byte)
}
