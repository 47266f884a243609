package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

var errNoSource = errors.New("the PROXY header carries no TCP source address")

// readProxyHeader takes the PROXY protocol header (version 1 or 2) that a trusted load
// balancer puts before everything else. LOCAL connections, which health checks of the
// balancer itself are, keep the balancer's address.
func readProxyHeader(c net.Conn, timeout time.Duration) (netip.Addr, net.Conn, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return netip.Addr{}, nil, err
	}
	br := bufio.NewReaderSize(c, 1024)
	h, err := proxyproto.Read(br)
	if err != nil {
		return netip.Addr{}, nil, fmt.Errorf("reading the PROXY header: %w", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return netip.Addr{}, nil, err
	}
	out := c
	if n := br.Buffered(); n > 0 {
		ahead, err := br.Peek(n)
		if err != nil {
			return netip.Addr{}, nil, err
		}
		out = &prefixedConn{Conn: c, ahead: append([]byte(nil), ahead...)}
	}
	if h.Command.IsLocal() {
		return remoteAddr(c), out, nil
	}
	src, _, ok := h.TCPAddrs()
	if !ok {
		return netip.Addr{}, nil, errNoSource
	}
	return src.AddrPort().Addr().Unmap().WithZone(""), out, nil
}

// prefixedConn gives out what was read together with the PROXY header first.
type prefixedConn struct {
	net.Conn
	ahead []byte
}

func (c *prefixedConn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

func (c *prefixedConn) NetConn() net.Conn { return c.Conn }

func (c *prefixedConn) CloseWrite() error {
	if t, ok := tcpOf(c.Conn); ok {
		return t.CloseWrite()
	}
	return c.Close()
}
