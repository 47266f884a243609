package process

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
	"github.com/sandbox-egress/sandbox-egress/internal/process/ring"
)

// sink takes what a process writes. Write is called by one goroutine per
// channel, and may block for a bounded time only.
type sink interface {
	Write(channel byte, p []byte) error
	Close()
}

// capture keeps the first bytes of each stream for the answer of /execute, and
// throws the rest away: the process is never held up.
type capture struct {
	limit          int
	stdout, stderr captured
}

type captured struct {
	data      []byte
	truncated bool
}

func (c *capture) Write(channel byte, p []byte) error {
	s := &c.stdout
	if channel == frame.Stderr {
		s = &c.stderr
	}
	n := min(len(p), c.limit-len(s.data))
	s.data = append(s.data, p[:n]...)
	s.truncated = s.truncated || n < len(p)
	return nil
}

func (c *capture) Close() {}

// ringSink keeps the last bytes for streams that come and go.
type ringSink struct{ log *ring.Log }

func (s ringSink) Write(channel byte, p []byte) error { return s.log.Append(channel, p) }
func (s ringSink) Close()                             { s.log.Close() }

const (
	readSize = 64 << 10
	// A pipe holds 1 MiB at most without privileges (pipe-max-size), so whatever
	// comes after more than this was written by somebody who outlived the process.
	drainBytes = 4 << 20
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// pump moves one stream of a process into a sink. It ends at EOF, or, once the
// process has ended, when nothing came for grace: a daemon that inherited the
// pipe cannot hold it open for ever.
type pump struct {
	file    *os.File
	channel byte
	out     sink
	grace   time.Duration
	count   func(channel byte, n int)
	ended   atomic.Bool
}

func (p *pump) run() {
	defer func() { _ = p.file.Close() }()
	bufp := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(bufp)
	left := drainBytes
	for left > 0 {
		if p.ended.Load() {
			_ = p.file.SetReadDeadline(time.Now().Add(p.grace))
		}
		n, err := p.file.Read(*bufp)
		if n > 0 {
			p.count(p.channel, n)
			// A sink that fails is a client that left: go on reading, so that the
			// process does not block until it is killed.
			_ = p.out.Write(p.channel, (*bufp)[:n])
			if p.ended.Load() {
				left -= n
			}
		}
		if err != nil {
			// EOF, the deadline, or EIO: a terminal whose last user is gone.
			return
		}
	}
}

// end tells the pump that the process has ended.
func (p *pump) end() {
	p.ended.Store(true)
	// For the read that is waiting now; later ones set their own.
	_ = p.file.SetReadDeadline(time.Now().Add(p.grace))
}
