package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Serve accepts connections on ln until it is closed, by the caller or by Shutdown. At the
// connection limit and when sockets run out it pauses; what waits, waits in the kernel.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	s.listeners = append(s.listeners, ln)
	s.mu.Unlock()
	defer ln.Close()
	var delay time.Duration
	for {
		if !s.takeSlot() {
			return nil
		}
		c, err := ln.Accept()
		if err == nil {
			delay = 0
			s.metrics.accepted.Inc()
			s.begin(c)
			continue
		}
		<-s.slots
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case !temporary(err):
			return err
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.metrics.pauses.Inc()
		s.log.Warn("accepting paused", "error", err, "pause", delay.String())
		select {
		case <-time.After(delay):
		case <-s.ctx.Done():
			return nil
		}
	}
}

// takeSlot waits for a place under the connection limit.
func (s *Server) takeSlot() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	s.metrics.pauses.Inc()
	select {
	case s.slots <- struct{}{}:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// temporary reports whether accepting may work again later: a full descriptor table must
// not end the proxy, and a client that resets before accept must not either.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EAGAIN, syscall.EINTR, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// begin starts serving an accepted connection.
func (s *Server) begin(raw net.Conn) {
	s.open.Add(1)
	s.wg.Add(1)
	go func() {
		growStack(0)
		c := &conn{srv: s, client: remoteAddr(raw)}
		c.closed = sync.OnceFunc(func() {
			s.conns.remove(c)
			s.perSource.release(c.client)
			<-s.slots
			s.open.Add(-1)
			s.wg.Done()
		})
		s.setUp(c, raw)
	}()
}

// growStack makes the goroutine's stack large enough for the whole way to a tunnel in one
// step: it would grow from 2 KiB three times, and be copied each time deeper in the calls.
// The tunnel itself runs on new, small stacks. i keeps the compiler from leaving room out.
//
//go:noinline
func growStack(i int) byte {
	var room [6 << 10]byte
	return room[i&(len(room)-1)]
}

// setUp reads a PROXY header where one is due, counts the source, does the TLS handshake,
// and serves.
func (s *Server) setUp(c *conn, raw net.Conn) {
	if len(s.opt.TrustedProxies) > 0 && contains(s.opt.TrustedProxies, c.client) {
		source, conn, err := readProxyHeader(raw, s.opt.HeaderTimeout)
		if err != nil {
			s.log.Warn("connection without a valid PROXY header from a trusted proxy", "from", c.client.String(), "error", err)
			c.client = netip.Addr{}
			_ = raw.Close()
			s.perSource.hold(c.client, 0)
			c.closed()
			return
		}
		c.client, raw = source, conn
	}
	if !s.perSource.hold(c.client, s.opt.MaxConnsPerSource) {
		s.metrics.refusedConn.Inc()
		_ = raw.Close()
		s.perSource.hold(c.client, 0)
		c.closed()
		return
	}
	if s.opt.TLS != nil {
		s.serveTLS(c, raw)
		return
	}
	c.stream = newStream(raw)
	if !s.conns.add(c) {
		_ = raw.Close()
		c.closed()
		return
	}
	c.serve()
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// sources counts the connections of each source address, so that one sandbox cannot take
// all places without ever showing a token.
type sources struct {
	mu sync.Mutex
	m  map[netip.Addr]int
}

// hold counts one connection of a; limit 0 is no limit.
func (q *sources) hold(a netip.Addr, limit int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if limit > 0 && q.m[a] >= limit {
		return false
	}
	if q.m == nil {
		q.m = make(map[netip.Addr]int)
	}
	q.m[a]++
	return true
}

func (q *sources) release(a netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.m[a]--; q.m[a] <= 0 {
		delete(q.m, a)
	}
}

// connSet holds the open client connections for Shutdown and Close.
type connSet struct {
	mu     sync.Mutex
	m      map[*conn]struct{}
	closed bool
}

func (q *connSet) add(c *conn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if q.m == nil {
		q.m = make(map[*conn]struct{})
	}
	q.m[c] = struct{}{}
	return true
}

func (q *connSet) remove(c *conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.m, c)
}

// closeIdle closes the connections that wait for a request.
func (q *connSet) closeIdle() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.m {
		if c.idle.Load() {
			_ = c.stream.Close()
		}
	}
}

// closeAll closes every connection, and those that come later.
func (q *connSet) closeAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for c := range q.m {
		_ = c.stream.Close()
	}
}
