package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// conn is one client connection speaking HTTP/1.x.
type conn struct {
	srv    *Server
	stream *stream
	client netip.Addr
	// idle: between two requests. Shutdown closes such connections.
	idle   atomic.Bool
	fields []field
	// origin is kept for the next plain request to the same authority on this connection.
	// It is never shared with another client: a response that goes astray can only reach
	// the sandbox that asked the same origin.
	origin *origin
	to     hostname.Authority
	via    policy.Upstream
	// closed releases what the connection holds at the server; called exactly once.
	closed func()
}

// serve reads requests until the connection ends or becomes a tunnel.
func (c *conn) serve() {
	if c.loop() {
		return // a tunnel has it now
	}
	c.dropOrigin()
	_ = c.stream.Close()
	c.stream.release()
	c.closed()
}

func (c *conn) loop() (handedOff bool) {
	for first := true; ; first = false {
		h, err := c.next(first)
		if err != nil {
			c.refuseHead(err)
			return false
		}
		c.fields = h.fields[:0]
		r, refused := parseRequest(h)
		if refused != nil {
			c.refuseMalformed(r, refused)
			return false
		}
		var keep bool
		if r.kind == kindConnect {
			keep, handedOff = c.serveConnect(r)
		} else {
			keep, handedOff = c.serveForward(r)
		}
		if handedOff || !keep {
			return handedOff
		}
	}
}

// next waits for a request and reads its head. Between requests it holds no buffer.
func (c *conn) next(first bool) (head, error) {
	now := time.Now()
	if first || len(c.stream.buffered()) > 0 {
		_ = c.stream.SetReadDeadline(now.Add(c.srv.opt.HeaderTimeout))
		return readHead(c.stream, maxHead, c.fields)
	}
	_ = c.stream.SetReadDeadline(now.Add(c.srv.opt.KeepAliveTimeout))
	c.idle.Store(true)
	if c.srv.draining.Load() {
		return head{}, io.EOF
	}
	err := c.stream.more(maxHead)
	c.idle.Store(false)
	if err != nil {
		return head{}, io.EOF // an idle connection may end in any way
	}
	// Most heads come in one piece and need no other deadline.
	if _, _, refused := headEnd(c.stream.buffered(), 0); refused == nil && !c.headComplete() {
		_ = c.stream.SetReadDeadline(time.Now().Add(c.srv.opt.HeaderTimeout))
	}
	return readHead(c.stream, maxHead, c.fields)
}

func (c *conn) headComplete() bool {
	end, _, _ := headEnd(c.stream.buffered(), 0)
	return end > 0
}

// refuseHead answers what was not a readable head.
func (c *conn) refuseHead(err error) {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
	case isTimeout(err) && len(c.stream.buffered()) > 0:
		refused = malformed(ReasonHeaderTimeout, "the request's head did not arrive in time")
	default:
		return // nothing was asked
	}
	c.refuseMalformed(nil, refused)
}

func (c *conn) refuseMalformed(r *request, refused *refusal) {
	x := c.srv.newExchange(c.client, r)
	x.refuse(refused, refused.status)
	c.answerRefusal(x, refused, false)
	c.stream.linger()
}

// refuse answers a request that was read well, and reports whether the connection can go
// on: a body that was not read would be taken for the next request.
func (c *conn) refuse(x *exchange, refused *refusal) (keep bool) {
	x.refuse(refused, refused.status)
	r := x.req
	keep = r.keepAlive && r.length == 0 && refused.status != 400 && !c.srv.draining.Load()
	if keep && r.kind == kindConnect && refused.status != 407 {
		// Bytes that follow a CONNECT belong to the tunnel that is not there. Only after a
		// 407 do clients repeat the request on the same connection (RFC 9110 section 15.5.8).
		keep = false
	}
	if keep && r.kind == kindConnect && len(c.stream.buffered()) > 0 {
		keep = false
	}
	c.answerRefusal(x, refused, keep)
	if !keep {
		c.stream.linger()
	}
	return keep
}

func (c *conn) answerRefusal(x *exchange, refused *refusal, keep bool) {
	accept, method := "", ""
	if x.req != nil {
		accept, method = x.req.accept, x.req.method
	}
	contentType, body := refused.body(&x.rec, wantsJSON(accept))
	b := make([]byte, 0, 512+len(body))
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(refused.status), 10)
	b = append(b, ' ')
	b = append(b, phrase(refused.status)...)
	b = append(b, ' ')
	b = append(b, refused.reason...)
	for _, h := range refusalHeaders(refused, contentType) {
		b = append(b, "\r\n"...)
		b = append(b, h.name...)
		b = append(b, ": "...)
		b = append(b, h.value...)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if !keep {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	if method != "HEAD" {
		b = append(b, body...)
	}
	// A client that does not read its refusals must not hold a goroutine.
	_ = c.stream.SetWriteDeadline(time.Now().Add(c.srv.opt.HeaderTimeout))
	_, _ = c.stream.Write(b)
	_ = c.stream.SetWriteDeadline(time.Time{})
}

func refusalHeaders(refused *refusal, contentType string) []field {
	h := []field{{"X-Deny-Reason", string(refused.reason)}, {"Content-Type", contentType}, {"Cache-Control", "no-store"}}
	if refused.status == 407 {
		h = append(h, field{"Proxy-Authenticate", `Basic realm="sandbox-egress", charset="UTF-8"`})
	}
	if s := refused.retryAfter(); s > 0 {
		h = append(h, field{"Retry-After", strconv.Itoa(s)})
	}
	return h
}

func (c *conn) dropOrigin() {
	if c.origin != nil {
		_ = c.origin.Close()
		c.origin.release()
		c.origin = nil
	}
}

func (c *conn) context() context.Context { return c.srv.ctx }

// remoteAddr is the source address of a connection, unmapped and without zone.
func remoteAddr(c net.Conn) netip.Addr {
	if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
