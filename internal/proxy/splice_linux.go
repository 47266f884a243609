package proxy

import (
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize and maxPipes together stay at 16 MiB, a quarter of what a process without
	// privileges may hold in pipes before the kernel makes them one page small
	// (pipe-user-pages-soft, pipe(7)): that is where splicing hundreds of tunnels at a time
	// becomes slower than copying.
	pipeSize = 256 << 10
	maxPipes = 64
)

// pipe carries bytes from socket to socket inside the kernel, without a copy to here.
type pipe struct{ r, w int }

// pipes is a bounded pool.
type pipes struct {
	free  chan *pipe
	slots chan struct{}
}

func newPipes() *pipes {
	return &pipes{free: make(chan *pipe, maxPipes), slots: make(chan struct{}, maxPipes)}
}

// get returns an empty pipe, or nil when all are in use or none can be made.
func (p *pipes) get() *pipe {
	select {
	case x := <-p.free:
		return x
	default:
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		<-p.slots
		return nil
	}
	x := &pipe{fds[0], fds[1]}
	if _, err := unix.FcntlInt(uintptr(x.w), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		p.drop(x) // a small pipe is worse than copying
		return nil
	}
	return x
}

// put gives back a pipe that is empty.
func (p *pipes) put(x *pipe) { p.free <- x }

// drop closes a pipe that may hold bytes of a tunnel that broke: they must never reach
// another one.
func (p *pipes) drop(x *pipe) {
	_ = unix.Close(x.r)
	_ = unix.Close(x.w)
	<-p.slots
}

// close closes the pipes that are not in use; call it when none is.
func (p *pipes) close() {
	for {
		select {
		case x := <-p.free:
			p.drop(x)
		default:
			return
		}
	}
}

// spliceAll moves src to dst through pipes for as long as data comes in bulk. While it waits
// for data it holds no pipe. It returns nil when the chunks have become small or no pipe is
// free, io.EOF at the end of src, or an error that writing tells apart. moved is called for
// every chunk that has been written.
func (p *pipes) spliceAll(dst, src *stream, moved func(n int)) (writing bool, err error) {
	for small := 0; small < smallRun; {
		x, n, err := p.fill(src)
		if err != nil || x == nil {
			return false, err
		}
		if err := spliceOut(dst, x, n); err != nil {
			p.drop(x)
			return true, err
		}
		p.put(x)
		moved(n)
		if small++; n >= smallChunk {
			small = 0
		}
	}
	return false, nil
}

const (
	smallChunk = 16 << 10
	smallRun   = 8 // small chunks in a row: no longer worth a pipe
)

// fill waits until the socket has data and moves it into a pipe from the pool. The pipe is
// nil with no error when none was free.
func (p *pipes) fill(src *stream) (x *pipe, n int, err error) {
	rawErr := src.wait.raw.Read(func(fd uintptr) bool {
		if x = p.get(); x == nil {
			return true
		}
		n, err = splice(int(fd), x.w, pipeSize)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			p.put(x)
			x, err = nil, nil
			return false
		case err == nil && n == 0:
			err = io.EOF
		}
		if err != nil {
			p.put(x) // still empty
			x = nil
		}
		return true
	})
	if rawErr != nil {
		return nil, 0, rawErr
	}
	return x, n, err
}

// spliceOut empties the pipe into the socket and waits where the socket is full.
func spliceOut(dst *stream, x *pipe, n int) error {
	var err error
	rawErr := dst.wait.raw.Write(func(fd uintptr) bool {
		for n > 0 {
			var m int
			m, err = splice(x.r, int(fd), n)
			if errors.Is(err, syscall.EAGAIN) {
				err = nil
				return false
			}
			if err != nil {
				return true
			}
			n -= m
		}
		return true
	})
	if rawErr != nil {
		return rawErr
	}
	return err
}

func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if !errors.Is(err, syscall.EINTR) {
			return int(m), err
		}
	}
}
