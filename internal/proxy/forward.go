package proxy

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// serveForward is the whole way of a plain request in absolute-form: admit, connect, send,
// pass the answer back, audit.
func (c *conn) serveForward(r *request) (keep, handedOff bool) {
	x := c.srv.newExchange(c.client, r)
	if refused := c.srv.admit(x); refused != nil {
		return c.refuse(x, refused), false
	}
	return c.forward(x, func() {})
}

// serveInner reads the requests inside a tunnel to port 80, each of which is checked like
// one in absolute-form. The tunnel's flow lasts until the client or the origin ends it.
func (c *conn) serveInner(outer *exchange, f *flow, o *origin) (handedOff bool) {
	f.busy.Store(true)
	c.origin, c.to, c.via = o, outer.req.authority, upstreamOf(outer.policy)
	defer func() {
		if !handedOff {
			f.finish(200)
		}
	}()
	for {
		h, err := c.next(false)
		if err != nil {
			c.refuseInner(outer, nil, err)
			return false
		}
		r, refused := parseInnerRequest(h, outer.req.authority)
		if refused != nil {
			c.refuseInner(outer, r, refused)
			return false
		}
		x := c.srv.newExchange(c.client, r)
		if refused := c.srv.admitInner(x, outer.id); refused != nil {
			if !c.refuse(x, refused) {
				return false
			}
			continue
		}
		keep, handedOff := c.forward(x, func() { f.finish(200) })
		if handedOff || !keep {
			return handedOff
		}
	}
}

// refuseInner answers what is not a readable request inside a tunnel; the record says whose.
func (c *conn) refuseInner(outer *exchange, r *request, err error) {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
	case isTimeout(err) && len(c.stream.buffered()) > 0:
		refused = malformed(ReasonHeaderTimeout, "the request's head did not arrive in time")
	default:
		return
	}
	x := c.srv.newExchange(c.client, r)
	x.rec = outer.rec
	x.rec.Scheme = "http"
	if r != nil {
		x.rec.Method = strings.Clone(r.method)
	}
	x.rec.Rule, x.rec.DialledIP = "", outer.rec.DialledIP
	x.refuse(refused, refused.status)
	c.answerRefusal(x, refused, false)
	c.stream.linger()
}

// forward sends an admitted request to its origin and the answer back. done is called when
// an upgraded connection has ended; it is not called otherwise.
func (c *conn) forward(x *exchange, done func()) (keep, handedOff bool) {
	r := x.req
	o, reused, refused := c.originFor(x)
	if refused != nil {
		return c.refuse(x, refused), false
	}
	f, refused := x.open(c.stream, o.stream, o.addr)
	if refused != nil {
		c.dropOrigin()
		return c.refuse(x, refused), false
	}
	x.allow(f, nil)
	if r.length != 0 {
		_ = c.stream.SetReadDeadline(time.Time{}) // the sweeper watches over the body
	}
	a := &answer1{client: c.stream, flow: f, via: c.srv.via, old: r.minor == 0, keep: r.keepAlive && !c.srv.draining.Load()}
	out := c.srv.roundTrip(r, c.stream, o, f, a)
	if out.stale && reused && r.length == 0 && idempotent(r.method) && !f.isCut() {
		// The origin had closed the kept connection meanwhile (RFC 9110 section 9.2.2).
		c.dropOrigin()
		if o, refused = c.srv.connect(c.context(), x.policy, r.authority, true); refused != nil {
			out = outcome{refused: refused}
		} else {
			c.origin = o
			f.redialled(o.addr)
			f.attach(c.stream, o.stream)
			out = c.srv.roundTrip(r, c.stream, o, f, a)
		}
	}
	if out.upgraded {
		_ = c.stream.SetReadDeadline(time.Time{})
		c.origin = nil
		c.forgetHead(x)
		t := &tunnel{flow: f, client: c.stream, origin: o.stream}
		t.done = func() {
			f.finish(101)
			done()
			c.closed()
		}
		t.start()
		return false, true
	}
	if !out.keepOrigin {
		c.dropOrigin()
	}
	if out.refused != nil && !f.isCut() {
		f.end(out.refused.reason, out.refused.detail, out.refused.verdict())
		f.finish(out.refused.status)
		c.answerRefusal(x, out.refused, false)
		c.stream.linger()
		return false, false
	}
	if out.err != nil {
		f.end(errorSide(out.err), "", f.rec.Decision)
	}
	f.finish(out.status)
	return out.keepClient && !f.isCut(), false
}

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS":
		return true
	}
	return false
}

// errorSide names the side that broke while an answer was passed on.
func errorSide(err error) Reason {
	var side *sideError
	if errors.As(err, &side) && side.writing {
		return ReasonClientError
	}
	return ReasonOriginError
}

// originFor returns the kept connection when it leads to the same place, is still allowed
// and silent, else a new one.
func (c *conn) originFor(x *exchange) (o *origin, reused bool, refused *refusal) {
	via := upstreamOf(x.policy)
	if k := c.origin; k != nil {
		if c.to == x.req.authority && c.via == via && (x.policy.Upstream != nil || x.policy.Guard.Check(k.addr) == nil) && k.silent() {
			return k, true, nil
		}
		c.dropOrigin()
	}
	o, refused = c.srv.connect(c.context(), x.policy, x.req.authority, true)
	if refused != nil {
		return nil, false, refused
	}
	c.origin, c.to, c.via = o, x.req.authority, via
	return o, false, nil
}

// silent reports whether a kept connection is open and nothing has come on it: bytes that
// no request asked for would be taken for the next answer.
func (o *origin) silent() bool {
	if len(o.buffered()) > 0 || o.wait.raw == nil {
		return false
	}
	quiet := false
	err := o.wait.raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && quiet
}

// answer takes an origin's response for the client.
type answer interface {
	// interim passes a 1xx on.
	interim(r *response) error
	// begin takes the final head. The body goes to dst, in chunks if chunked.
	begin(r *response) (dst io.Writer, chunked bool)
	// finish is called after the whole body; keep tells whether the client's connection
	// can be used again.
	finish() (keep bool, err error)
}

// outcome is how a round trip ended.
type outcome struct {
	status                 int
	keepClient, keepOrigin bool
	upgraded               bool
	// stale: the connection ended before the first byte of an answer.
	stale bool
	// refused is set when nothing has been answered yet.
	refused *refusal
	// err is set when the answer was cut short.
	err error
}

const maxInterim = 16

// roundTrip sends r, with its body from the client, and passes the response to a.
func (s *Server) roundTrip(r *request, client *stream, o *origin, f *flow, a answer) outcome {
	body, err := s.send(r, client, o, f)
	if err != nil {
		return outcome{stale: true, refused: failure(502, ReasonOriginClosed, "the origin closed the connection")}
	}
	out := s.receive(r, o, f, a)
	if body == nil {
		return out
	}
	select {
	case err := <-body.done:
		return out.after(err)
	default:
	}
	if out.err == nil && out.refused == nil && !out.upgraded {
		// The answer came before the body was sent. Both sides may still want the rest of
		// it, but nobody waits for it (RFC 9112 section 9.3.1).
		out.keepClient, out.keepOrigin = false, false
	}
	_ = client.SetReadDeadline(time.Unix(1, 0))
	_ = o.Close()
	return out.after(<-body.done)
}

// after joins how sending the body ended.
func (o outcome) after(err error) outcome {
	if err == nil {
		return o
	}
	o.keepClient, o.keepOrigin, o.stale = false, false, false
	var side *sideError
	if o.refused != nil && errors.As(err, &side) && !side.writing {
		switch {
		case errors.Is(err, errChunkSyntax), errors.Is(err, errTrailerSize), errors.Is(err, errChunkTooLong):
			o.refused = malformed(ReasonBadBody, "the request body is not valid: "+err.Error())
		case errors.Is(err, io.ErrUnexpectedEOF):
			o.refused = malformed(ReasonBadBody, "the request body ended early")
		}
	}
	return o
}

type sending struct{ done chan error }

// send writes the head, and the body in a goroutine unless it is here already.
func (s *Server) send(r *request, client *stream, o *origin, f *flow) (*sending, error) {
	hb := getHeadBuffer()
	defer headBuffers.Put(hb)
	b := appendRequest(hb[:0], r, s.via)
	here := r.length > 0 && !r.expectContinue && r.length <= int64(len(client.buffered()))
	if here {
		b = append(b, client.buffered()[:r.length]...)
		client.discard(int(r.length))
	}
	n, err := o.Write(b)
	f.sent.Add(int64(n))
	if err != nil || here || r.length == 0 {
		return nil, err
	}
	body := &sending{done: make(chan error, 1)}
	t := &transfer{src: client, length: r.length, dst: o, chunked: r.length < 0, count: &f.sent, pace: f.pace}
	go func() {
		err := t.run()
		if err != nil {
			_ = o.Close() // ends receive, which may be waiting for an answer that cannot come
		}
		body.done <- err
	}()
	return body, nil
}

// receive reads the response and passes it on.
func (s *Server) receive(r *request, o *origin, f *flow, a answer) outcome {
	var res *response
	for n := 0; ; n++ {
		h, err := readHead(o.stream, maxHead, nil)
		if err != nil {
			return receiveFailed(err, n == 0 && len(o.buffered()) == 0)
		}
		var refused *refusal
		if res, refused = parseResponse(h, r.method); refused != nil {
			return outcome{refused: refused}
		}
		if res.status == 101 {
			if !r.upgrade || !strings.EqualFold(res.upgrade, "websocket") {
				return outcome{refused: failure(502, ReasonBadResponse, "the origin switched protocols without being asked")}
			}
			if err := a.interim(res); err != nil {
				return outcome{err: &sideError{true, err}}
			}
			return outcome{status: 101, upgraded: true}
		}
		if res.status >= 200 {
			break
		}
		if n == maxInterim {
			return outcome{refused: failure(502, ReasonBadResponse, "the origin sent too many interim responses")}
		}
		if err := a.interim(res); err != nil {
			return outcome{err: &sideError{true, err}}
		}
	}
	out := outcome{status: res.status}
	dst, chunked := a.begin(res)
	t := &transfer{src: o.stream, length: res.length, dst: dst, chunked: chunked, count: &f.received, pace: f.pace}
	if err := t.run(); err != nil {
		out.err = err
		return out
	}
	keep, err := a.finish()
	if err != nil {
		out.err = &sideError{true, err}
		return out
	}
	out.keepClient = keep
	// What came after the response was asked for by nobody.
	out.keepOrigin = res.keepAlive && len(o.buffered()) == 0
	return out
}

func receiveFailed(err error, nothing bool) outcome {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return outcome{refused: failure(502, ReasonBadResponse, "the origin's response is not valid HTTP: "+refused.detail)}
	case nothing:
		return outcome{stale: true, refused: failure(502, ReasonOriginClosed, "the origin closed the connection without an answer")}
	}
	return outcome{refused: failure(502, ReasonBadResponse, "the origin's response ended inside its header")}
}

// answer1 answers an HTTP/1.x client.
type answer1 struct {
	client *stream
	flow   *flow
	via    string
	old    bool // HTTP/1.0
	keep   bool
	head   []byte // not written yet: goes out with the first bytes of the body
}

func (a *answer1) interim(r *response) error {
	if a.old && r.status != 101 {
		return nil // RFC 9110 section 15.2: HTTP/1.0 does not know them
	}
	b := appendStatus(nil, r, a.via)
	if r.status == 101 {
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	_, err := a.client.Write(append(b, '\r', '\n'))
	return err
}

func (a *answer1) begin(r *response) (io.Writer, bool) {
	hb := make([]byte, 0, 1024)
	b := appendStatus(hb, r, a.via)
	chunked := false
	switch {
	case r.length >= 0:
		if v, ok := r.announcedLength(); ok && r.status != 204 {
			b = append(b, "Content-Length: "...)
			b = append(b, v...)
			b = append(b, '\r', '\n')
		}
	case a.old:
		a.keep = false
	default:
		chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case !a.keep:
		b = append(b, "Connection: close\r\n"...)
	case a.old:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	a.head = append(b, '\r', '\n')
	return a, chunked
}

// Write sends p, after the head if that is still to be sent.
func (a *answer1) Write(p []byte) (int, error) {
	if a.head == nil {
		return a.client.Write(p)
	}
	head := a.head
	a.head = nil
	if cap(head)-len(head) >= len(p) {
		head = append(head, p...)
		_, err := a.client.Write(head)
		return len(p), err
	}
	return len(p), a.client.writeBuffers(net.Buffers{head, p})
}

func (a *answer1) writeBuffers(b net.Buffers) error {
	if a.head != nil {
		b = append(net.Buffers{a.head}, b...)
		a.head = nil
	}
	return a.client.writeBuffers(b)
}

func (a *answer1) finish() (bool, error) {
	if a.head == nil {
		return a.keep, nil
	}
	head := a.head
	a.head = nil
	_, err := a.client.Write(head)
	return a.keep, err
}
