package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Origin serves tunnels on one address and plain requests on another, until it is killed.
type Origin struct{ Tunnels, Plain netip.AddrPort }

type originConn struct {
	fd    int
	plain bool
	got   []byte // of the ClientHello or of the request
	stage originStage
	at    int64 // in the endless file
}

type originStage uint8

const (
	awaitHello originStage = iota
	awaitCommand
	streaming
)

type origin struct {
	poll     *poller
	conns    table[originConn]
	tunnels  int // listening descriptors
	plain    int
	buf      []byte
	flight   []byte
	response []byte
	file     int
	fileSize int64
}

// Run serves. ready is called once it listens.
func (o Origin) Run(ready func()) error {
	s := &origin{
		buf: make([]byte, 64<<10), flight: make([]byte, flightSize), response: plainResponse(), fileSize: 8 << 20,
	}
	var err error
	if s.poll, err = newPoller(); err != nil {
		return err
	}
	if s.file, err = unix.MemfdCreate("stream", unix.MFD_CLOEXEC); err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(s.file, s.fileSize); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	// Written, or every send would have to zero a page first.
	if _, err := unix.Pwrite(s.file, bytes.Repeat([]byte{0x55}, int(s.fileSize)), 0); err != nil {
		return fmt.Errorf("filling the stream: %w", err)
	}
	if s.tunnels, err = s.listen(o.Tunnels); err != nil {
		return err
	}
	if s.plain, err = s.listen(o.Plain); err != nil {
		return err
	}
	ready()
	for {
		events, err := s.poll.wait(-1)
		if err != nil {
			return err
		}
		for _, e := range events {
			s.handle(int(e.Fd), e.Events)
		}
	}
}

func (s *origin) listen(a netip.AddrPort) (int, error) {
	fd, err := newSocket()
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(a)); err != nil {
		return -1, fmt.Errorf("bind %s: %w", a, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, s.poll.add(fd, unix.EPOLLIN)
}

func (s *origin) handle(fd int, events uint32) {
	if fd == s.tunnels || fd == s.plain {
		s.accept(fd)
		return
	}
	c := s.conns.get(fd)
	if c == nil {
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && !s.read(c) {
		s.drop(c)
		return
	}
	if events&unix.EPOLLOUT != 0 && !s.stream(c) {
		s.drop(c)
	}
}

func (s *origin) accept(listener int) {
	for range 64 {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // EAGAIN, or a client that went away
		}
		c := &originConn{fd: fd, plain: listener == s.plain}
		s.conns.set(fd, c)
		if s.poll.add(fd, unix.EPOLLIN) != nil {
			s.drop(c)
		}
	}
}

func (s *origin) drop(c *originConn) {
	s.conns.set(c.fd, nil)
	_ = unix.Close(c.fd)
}

// read takes what has arrived; false ends the connection.
func (s *origin) read(c *originConn) bool {
	n, err := unix.Read(c.fd, s.buf)
	if errors.Is(err, unix.EAGAIN) {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	in := s.buf[:n]
	if c.plain {
		return s.answer(c, in)
	}
	switch c.stage {
	case awaitHello:
		c.got = append(c.got, in...)
		if len(c.got) < 5 || len(c.got) < 5+int(c.got[3])<<8+int(c.got[4]) {
			return true
		}
		c.got, c.stage = nil, awaitCommand
		return send(c.fd, s.flight)
	case awaitCommand:
		if in[0] != streamCommand {
			return false
		}
		c.stage = streaming
		return s.poll.change(c.fd, unix.EPOLLIN|unix.EPOLLOUT) == nil
	}
	return true
}

// answer responds to every whole request.
func (s *origin) answer(c *originConn, in []byte) bool {
	if len(c.got) > 0 {
		in = append(c.got, in...)
		c.got = nil
	}
	for {
		end := bytes.Index(in, []byte("\r\n\r\n"))
		if end < 0 {
			break
		}
		in = in[end+4:]
		if !send(c.fd, s.response) {
			return false
		}
	}
	if len(in) > 0 {
		c.got = bytes.Clone(in)
	}
	return true
}

// stream fills the socket.
func (s *origin) stream(c *originConn) bool {
	for range 4 {
		n, err := unix.Sendfile(c.fd, s.file, &c.at, 256<<10)
		if errors.Is(err, unix.EAGAIN) {
			return true
		}
		if err != nil {
			return false
		}
		if n == 0 || c.at >= s.fileSize {
			c.at = 0
		}
	}
	return true
}

// send writes a message that fits into an empty socket buffer.
func send(fd int, b []byte) bool {
	n, err := unix.Write(fd, b)
	return err == nil && n == len(b)
}
