package proxy

import (
	"errors"
	"io"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/sni"
)

const (
	httpPort = 80
	tlsPort  = 443
)

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// serveConnect is the whole way of a CONNECT: admit (authenticate, bind, authorize, limit),
// connect (resolve, guard, dial), answer 200, look at the first bytes, splice, audit.
func (c *conn) serveConnect(r *request) (keep, handedOff bool) {
	s := c.srv
	x := s.newExchange(c.client, r)
	if refused := s.admit(x); refused != nil {
		return c.refuse(x, refused), false
	}
	o, refused := s.connect(c.context(), x.policy, r.authority, x.clientFirst())
	if refused != nil {
		return c.refuse(x, refused), false
	}
	f, refused := x.open(c.stream, o.stream, o.addr)
	if refused != nil {
		_ = o.Close()
		return c.refuse(x, refused), false
	}
	c.dropOrigin()
	_ = c.stream.SetReadDeadline(time.Time{})
	c.forgetHead(x)

	// Dialled before the 200, so that a failure to connect is still an HTTP answer.
	if _, err := io.WriteString(c.stream, established); err != nil {
		c.abandon(x, f, o)
		return false, false
	}
	if r.authority.Port == httpPort {
		x.allow(f, nil)
		return false, c.serveInner(x, f, o)
	}
	t := &tunnel{flow: f, client: c.stream, origin: o.stream}
	t.done = func() {
		f.finish(200)
		c.closed()
	}
	if x.mustBeTLS() {
		buf := getHeadBuffer()
		defer headBuffers.Put(buf)
		first, refused := f.checkHello(c.stream, x, buf[:])
		if refused != nil && x.policy.Mode != policy.Audit {
			f.discard()
			_ = o.Close()
			x.refuse(refused, 0)
			return false, false
		}
		x.allow(f, refused)
		if _, err := o.Write(first); err != nil {
			f.end(ReasonOriginError, "", x.rec.Decision)
		}
		f.sent.Add(int64(len(first)))
	} else {
		// The origin may speak first here (SSH, SMTP, databases), so the client's first
		// bytes are looked at when they come.
		x.allow(f, nil)
		t.check = func(*stream) ([]byte, *refusal) { return f.checkOpportunistic(c.stream, x) }
	}
	t.start()
	return false, true
}

// clientFirst: nothing comes from the origin before something has gone there.
func (x *exchange) clientFirst() bool {
	return x.req.kind != kindConnect || x.req.authority.Port == httpPort || x.mustBeTLS()
}

// mustBeTLS: the tunnel has to start with a ClientHello.
func (x *exchange) mustBeTLS() bool {
	return x.req.authority.Port == tlsPort && x.verdict.tls == allowlist.TLSRequired
}

// forgetHead lets go of the request's head, token included: a tunnel may live for days.
func (c *conn) forgetHead(x *exchange) {
	r := x.req
	c.fields, r.head, r.proxyAuth, r.accept, r.target, r.path = nil, head{}, "", "", "", ""
	r.method = x.rec.Method
}

// abandon ends a flow whose client went away before it began.
func (c *conn) abandon(x *exchange, f *flow, o *origin) {
	x.allow(f, nil)
	f.end(ReasonClientError, "", f.rec.Decision)
	_ = o.Close()
	f.finish(200)
}

// checkHello reads the ClientHello that a tunnel to port 443 must start with and holds its
// server name to the host asked for. first is what was read, to be passed on, in buf where
// that is large enough.
func (f *flow) checkHello(client *stream, x *exchange, buf []byte) (first []byte, refused *refusal) {
	defer func() {
		f.helloDue.Store(false)
		// A change meanwhile was checked against a hello still to come.
		if st := f.srv.store.Load(); refused != nil && st != f.state {
			f.revoke(st, f.srv.opt.Now())
		}
	}()
	_ = client.SetReadDeadline(time.Now().Add(f.srv.opt.HelloTimeout))
	name, first, err := sni.Peek(client, buf)
	_ = client.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		return first, f.checkName(name, x)
	case errors.Is(err, sni.ErrNotTLS):
		return first, forbidden(ReasonTLSRequired, "a tunnel to port 443 must start with a TLS ClientHello; a rule with tls: Optional lifts this")
	case isTimeout(err):
		return first, forbidden(ReasonHelloTimeout, "no TLS ClientHello came in time")
	case errors.Is(err, sni.ErrTooLarge), errors.Is(err, sni.ErrMalformed), errors.Is(err, io.ErrUnexpectedEOF):
		return first, forbidden(ReasonHelloInvalid, err.Error())
	}
	return first, forbidden(ReasonHelloInvalid, "the client closed the tunnel before its TLS ClientHello")
}

// checkOpportunistic looks at a tunnel that need not be TLS: when it is all the same, its
// server name must be the host asked for.
func (f *flow) checkOpportunistic(client *stream, x *exchange) (first []byte, refused *refusal) {
	if len(client.buffered()) == 0 {
		_ = client.more(maxHead) // when the client has ended or broken, the copy loop will see it too
	}
	if b := client.buffered(); len(b) == 0 || b[0] != 0x16 {
		return nil, nil
	}
	_ = client.SetReadDeadline(time.Now().Add(f.srv.opt.HelloTimeout))
	name, first, err := sni.Peek(client, nil)
	_ = client.SetReadDeadline(time.Time{})
	switch {
	case err == nil && name == "":
		// Without a name the origin serves its default host, which is the one asked for.
		return first, nil
	case err == nil:
		refused = f.checkName(name, x)
	case errors.Is(err, sni.ErrNotTLS):
		return first, nil
	case isTimeout(err):
		refused = forbidden(ReasonHelloTimeout, "the TLS ClientHello did not arrive in time")
	default:
		refused = forbidden(ReasonHelloInvalid, err.Error())
	}
	if refused != nil && x.policy.Mode == policy.Audit {
		return first, nil
	}
	return first, refused
}

// checkName holds the server name to the host that was asked for. A tunnel to an address
// may carry no name, or one that the policy allows on this port.
func (f *flow) checkName(name string, x *exchange) *refusal {
	to := x.req.authority
	if name == "" {
		if to.Host.IsIP() {
			f.sniChecked.Store(true)
			return nil
		}
		return forbidden(ReasonSNIMissing, "the TLS ClientHello has no server name (SNI); it must be "+to.Host.String())
	}
	h, err := hostname.ParseHost(name)
	if err != nil {
		return forbidden(ReasonSNIMismatch, "the TLS server name (SNI) is not a host name")
	}
	f.rec.SNI = h.String()
	x.rec.SNI = h.String()
	if h == to.Host {
		f.sniChecked.Store(true)
		return nil
	}
	if to.Host.IsIP() && !h.IsIP() {
		listed := x.wanted()
		listed.Authority.Host = h
		if decide(x.id, x.pod, x.policy, listed).allowed {
			f.sniChecked.Store(true)
			return nil
		}
	}
	return forbidden(ReasonSNIMismatch, "the TLS server name (SNI) is "+h.String()+", the tunnel was asked for "+to.Host.String())
}
