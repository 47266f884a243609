package proxy

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// waiter reads from a connection without holding a buffer while nothing comes: an idle
// tunnel costs two goroutines and no buffer. It is for one goroutine at a time.
type waiter struct {
	conn io.Reader
	raw  syscall.RawConn
	// try and tryHead are the callbacks for raw.Read, made once: a closure per read would
	// be garbage.
	try, tryHead func(fd uintptr) bool
	head         *[headSize]byte
	buf          *[copySize]byte
	n            int
	err          error

	small *[smallSize]byte
	busy  bool
}

const smallSize = 4 << 10

func newWaiter(c io.Reader) *waiter {
	w := &waiter{conn: c}
	if tc, ok := c.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			w.raw = raw
			w.try = w.tryReadCopy
		}
	}
	return w
}

// read waits for data and returns it in a pooled buffer that the caller gives back with
// copyBuffers.Put. With an error there is no buffer; io.EOF is the peer's half-close.
func (w *waiter) read() (*[copySize]byte, int, error) {
	if w.raw == nil {
		return w.readBuffered()
	}
	w.buf, w.n, w.err = nil, 0, nil
	if err := w.raw.Read(w.try); err != nil {
		return nil, 0, err
	}
	if w.n > 0 {
		buf := w.buf
		w.buf = nil
		return buf, w.n, nil
	}
	if w.err == nil {
		w.err = io.EOF
	}
	return nil, 0, w.err
}

func (w *waiter) tryReadCopy(fd uintptr) bool {
	buf := getCopyBuffer()
	n, wait, err := tryRead(fd, buf[:])
	if n > 0 {
		w.buf, w.n = buf, n
		return true
	}
	copyBuffers.Put(buf)
	w.err = err
	return !wait
}

// readHead is read for a message head: the buffer is a small one.
func (w *waiter) readHead() (*[headSize]byte, int, error) {
	w.n, w.err = 0, nil
	if w.tryHead == nil {
		w.tryHead = w.tryReadHead
	}
	if err := w.raw.Read(w.tryHead); err != nil {
		return nil, 0, err
	}
	if w.n > 0 {
		buf := w.head
		w.head = nil
		return buf, w.n, nil
	}
	if w.err == nil {
		w.err = io.EOF
	}
	return nil, 0, w.err
}

func (w *waiter) tryReadHead(fd uintptr) bool {
	buf := getHeadBuffer()
	n, wait, err := tryRead(fd, buf[:])
	if n > 0 {
		w.head, w.n = buf, n
		return true
	}
	headBuffers.Put(buf)
	w.err = err
	return !wait
}

// tryRead reads without waiting. n and err are 0 and nil at the end of the stream.
func tryRead(fd uintptr, p []byte) (n int, wait bool, err error) {
	for {
		n, err = syscall.Read(int(fd), p)
		switch {
		case n > 0:
			return n, false, nil
		case err == nil:
			return 0, false, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, true, nil // the runtime's poller wakes us when the socket is readable
		default:
			return 0, false, err
		}
	}
}

// readBuffered is for TLS and HTTP/2 streams, whose data may be buffered above the socket,
// so that readiness of the socket says nothing: it waits with a small buffer in hand, and
// with a large one only after the small one was filled.
func (w *waiter) readBuffered() (*[copySize]byte, int, error) {
	if w.busy {
		buf := getCopyBuffer()
		n, err := w.conn.Read(buf[:])
		w.busy = n >= smallSize
		if n > 0 {
			return buf, n, nil
		}
		copyBuffers.Put(buf)
		return nil, 0, readError(err)
	}
	if w.small == nil {
		w.small = new([smallSize]byte)
	}
	n, err := w.conn.Read(w.small[:])
	if n == 0 {
		return nil, 0, readError(err)
	}
	w.busy = n == smallSize
	buf := getCopyBuffer()
	copy(buf[:], w.small[:n])
	return buf, n, nil
}

func readError(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}
