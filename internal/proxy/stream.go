package proxy

import (
	"io"
	"net"
	"time"
)

// stream is a connection with the bytes that were read ahead of their use: what follows a
// message head in the same segment belongs to the body, the next request, or the tunnel.
type stream struct {
	net.Conn
	wait *waiter
	// buf[r:w] is read ahead. The buffer goes back to its pool whenever it is empty.
	buf    []byte
	pooled *[headSize]byte
	r, w   int
}

func newStream(c net.Conn) *stream { return &stream{Conn: c, wait: newWaiter(c)} }

// buffered is what has been read ahead.
func (s *stream) buffered() []byte { return s.buf[s.r:s.w] }

// discard drops n bytes that were read ahead.
func (s *stream) discard(n int) {
	s.r += n
	if s.r == s.w {
		s.release()
	}
}

func (s *stream) release() {
	if s.pooled != nil {
		headBuffers.Put(s.pooled)
		s.pooled = nil
	}
	s.buf, s.r, s.w = nil, 0, 0
}

// unread puts b before what has been read ahead.
func (s *stream) unread(b []byte) {
	if len(b) == 0 {
		return
	}
	joined := make([]byte, 0, len(b)+s.w-s.r)
	joined = append(append(joined, b...), s.buffered()...)
	s.release()
	s.buf, s.w = joined, len(joined)
}

// Read takes what was read ahead first.
func (s *stream) Read(p []byte) (int, error) {
	if s.r < s.w {
		n := copy(p, s.buffered())
		s.discard(n)
		return n, nil
	}
	return s.Conn.Read(p)
}

// next returns a chunk of the stream in a pooled buffer (see waiter.read), what was read
// ahead first.
func (s *stream) next() (*[copySize]byte, int, error) {
	if s.r < s.w {
		buf := getCopyBuffer()
		n := copy(buf[:], s.buffered())
		s.discard(n)
		return buf, n, nil
	}
	return s.wait.read()
}

// more reads once into the read-ahead buffer, which it makes room in, up to limit bytes
// in all. It returns errNoRoom when limit is reached.
func (s *stream) more(limit int) error {
	if s.w-s.r >= limit {
		return errNoRoom
	}
	if s.buf == nil {
		if s.wait.raw != nil {
			buf, n, err := s.wait.readHead()
			if err != nil {
				return err
			}
			s.pooled, s.buf, s.w = buf, buf[:], n
			return nil
		}
		s.pooled = getHeadBuffer()
		s.buf = s.pooled[:]
	}
	switch {
	case s.w < len(s.buf):
	case s.r > 0:
		s.w = copy(s.buf, s.buffered())
		s.r = 0
	default:
		grown := make([]byte, min(4*len(s.buf), limit))
		n := copy(grown, s.buffered())
		s.release()
		s.buf, s.w = grown, n
	}
	n, err := s.Conn.Read(s.buf[s.w:])
	s.w += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		err = io.ErrNoProgress
	}
	if s.r == s.w {
		s.release()
	}
	return err
}

// writeBuffers is one writev(2) on TCP. net.Buffers looks for the real connection.
func (s *stream) writeBuffers(b net.Buffers) error {
	_, err := b.WriteTo(s.Conn)
	return err
}

// halfCloses reports whether closeWrite leaves the receiving direction open.
func (s *stream) halfCloses() bool {
	_, ok := s.Conn.(interface{ CloseWrite() error })
	return ok
}

// closeWrite ends the sending direction (FIN, or close_notify on TLS).
func (s *stream) closeWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Close()
}

// abort closes without delivering what is still queued, so that a tunnel that was revoked
// carries nothing more (RST).
func (s *stream) abort() {
	if c, ok := tcpOf(s.Conn); ok {
		_ = c.SetLinger(0)
	}
	_ = s.Close()
}

// linger closes so that the peer can still read the last answer: a close with unread data
// in the receive queue makes the kernel send RST, which destroys what is in flight. It
// reads at most 256 KiB for at most a second.
func (s *stream) linger() {
	defer s.Close()
	s.release()
	if s.closeWrite() != nil {
		return
	}
	_ = s.SetReadDeadline(time.Now().Add(time.Second))
	for left := 256 << 10; left > 0; {
		buf, n, err := s.wait.read()
		if err != nil {
			return
		}
		copyBuffers.Put(buf)
		left -= n
	}
}

func tcpOf(c net.Conn) (*net.TCPConn, bool) {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return v, true
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil, false
		}
	}
}
