package proxy

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// serveTLS does the handshake and hands the connection to the protocol that was agreed on.
func (s *Server) serveTLS(c *conn, raw net.Conn) {
	tc := tls.Server(raw, s.opt.TLS)
	c.stream = newStream(tc)
	if !s.conns.add(c) {
		_ = raw.Close()
		c.closed()
		return
	}
	_ = tc.SetDeadline(time.Now().Add(s.opt.HeaderTimeout))
	if err := tc.HandshakeContext(s.ctx); err != nil {
		_ = raw.Close()
		c.closed()
		return
	}
	_ = tc.SetDeadline(time.Time{})
	if tc.ConnectionState().NegotiatedProtocol != "h2" {
		c.serve()
		return
	}
	s.serveH2(c, tc)
}

// h2Streams bounds the tunnels that one connection carries; a browser uses a hundred.
const h2Streams = 1000

// serveH2 speaks HTTP/2: framing, flow control and the defences against floods are those of
// x/net/http2, whose handlers get requests that are well-formed by RFC 9113 section 8.3.
// What a proxy needs beyond is checked in parseH2. net/http's own server cannot be used: it
// hides whether :scheme was http or https.
func (s *Server) serveH2(c *conn, tc *tls.Conn) {
	h := &h2Handler{srv: s, conn: c}
	c.idle.Store(true)
	srv := &http2.Server{ //nolint:staticcheck // see above
		MaxConcurrentStreams: h2Streams,              //nolint:staticcheck // see above
		IdleTimeout:          s.opt.KeepAliveTimeout, //nolint:staticcheck // see above
	}
	srv.ServeConn(tc, &http2.ServeConnOpts{ //nolint:staticcheck // see above
		Context:    s.ctx,
		Handler:    h,
		BaseConfig: &http.Server{MaxHeaderBytes: maxHead, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: s.opt.HeaderTimeout},
	})
	_ = tc.Close()
	h.streams.Wait()
	c.closed()
}

// h2Handler serves the streams of one connection.
type h2Handler struct {
	srv     *Server
	conn    *conn
	active  atomic.Int32
	streams sync.WaitGroup
}

// ServeHTTP is the way of one request over HTTP/2; compare serveConnect and serveForward.
func (h *h2Handler) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	h.streams.Add(1)
	h.active.Add(1)
	h.conn.idle.Store(false)
	defer func() {
		h.conn.idle.Store(h.active.Add(-1) == 0)
		h.streams.Done()
	}()
	s := h.srv
	r, refused := parseH2(hr)
	x := s.newExchange(h.conn.client, r)
	if refused == nil {
		refused = s.admit(x)
	}
	var o *origin
	if refused == nil {
		o, refused = s.connect(hr.Context(), x.policy, r.authority, x.clientFirst())
	}
	if refused != nil {
		x.refuse(refused, refused.status)
		answerRefusal2(w, x, refused)
		return
	}
	defer o.Close()
	client := newStream(&h2Conn{body: hr.Body, w: w, rc: http.NewResponseController(w)})
	f, refused := x.open(client, o.stream, o.addr)
	if refused != nil {
		x.refuse(refused, refused.status)
		answerRefusal2(w, x, refused)
		return
	}
	if r.kind == kindConnect {
		h.connect(w, x, f, o, client) //nolint:contextcheck // what it dials later belongs to the connection, not to this stream
		return
	}
	x.allow(f, nil)
	out := s.roundTrip(r, client, o, f, &answer2{w: w, via: s.via})
	switch {
	case out.refused != nil:
		f.end(out.refused.reason, out.refused.detail, out.refused.verdict())
		f.finish(out.refused.status)
		answerRefusal2(w, x, out.refused)
	case out.err != nil:
		f.end(errorSide(out.err), "", f.rec.Decision)
		f.finish(out.status)
		resetStream()
	default:
		f.finish(out.status)
	}
}

// resetStream ends the stream with RST_STREAM: what came so far must not look complete.
// net/http has no other way to ask for that.
func resetStream() {
	panic(http.ErrAbortHandler) //nolint:forbidigo // see above; x/net/http2 recovers it
}

func (h *h2Handler) connect(w http.ResponseWriter, x *exchange, f *flow, o *origin, client *stream) {
	done := f.wait()
	w.Header()["Date"] = nil
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	if x.req.authority.Port == httpPort {
		// The requests inside are read by the HTTP/1.x loop, as in any tunnel to port 80.
		x.allow(f, nil)
		c := &conn{srv: h.srv, stream: client, client: x.client, closed: func() {}}
		if c.serveInner(x, f, o) {
			<-done
		}
		c.dropOrigin()
		return
	}
	t := &tunnel{flow: f, client: client, origin: o.stream}
	t.done = func() { f.finish(http.StatusOK) }
	if x.mustBeTLS() {
		first, refused := f.checkHello(client, x, nil)
		if refused != nil && x.policy.Mode != policy.Audit {
			f.discard()
			x.refuse(refused, 0)
			resetStream()
		}
		x.allow(f, refused)
		if _, err := o.Write(first); err != nil {
			f.end(ReasonOriginError, "", f.rec.Decision)
		}
		f.sent.Add(int64(len(first)))
	} else {
		x.allow(f, nil)
		t.check = func(*stream) ([]byte, *refusal) { return f.checkOpportunistic(client, x) }
	}
	t.start()
	<-done
	if e := f.ended.Load(); e != nil && e.verdict != audit.Allow {
		resetStream()
	}
}

// parseH2 reads a request that net/http has parsed into the one form that is decided on.
// Host and URL are not looked at again.
func parseH2(hr *http.Request) (*request, *refusal) {
	r := &request{method: hr.Method, minor: 1, keepAlive: true, length: hr.ContentLength}
	if !isToken(hr.Method) || len(hr.Method) > 32 {
		return nil, malformed(ReasonBadRequestLine, "the method is not a token")
	}
	if hr.Method == http.MethodTrace || hr.Method == "TRACK" {
		return nil, malformed(ReasonNotSupported, hr.Method+" is not forwarded: it would echo the request's headers")
	}
	for name, values := range hr.Header {
		for _, v := range values {
			if !isToken(name) || invalidText(v) >= 0 {
				return nil, malformed(ReasonBadHeader, "a header is not valid")
			}
			r.head.fields = append(r.head.fields, field{name, v})
		}
	}
	if len(r.head.fields) > maxFields {
		return nil, malformed(ReasonHeaderTooLarge, "there are more than 256 header lines")
	}
	r.accept = hr.Header.Get("Accept")
	auth := hr.Header.Values("Proxy-Authorization")
	if r.authFields = len(auth); r.authFields > 0 {
		r.proxyAuth = auth[0]
	}
	if hr.Method == http.MethodConnect {
		// RFC 9113 section 8.5: :authority is host:port, no :scheme, no :path.
		r.kind = kindConnect
		a, err := hostname.ParseAuthority(hr.Host)
		if err != nil {
			return nil, malformed(ReasonBadTarget, "the :authority of CONNECT must be host:port: "+err.Error())
		}
		if hr.Header.Get(":protocol") != "" || hr.ContentLength > 0 {
			return nil, malformed(ReasonNotSupported, "extended CONNECT and CONNECT with a content-length are not supported")
		}
		r.authority, r.length = a, 0
		return r, nil
	}
	// x/net/http2 tells the :scheme only by setting TLS for "https". Forwarding such a request
	// would send in the clear what the client believes is encrypted.
	if hr.TLS != nil || hr.URL.IsAbs() {
		return nil, malformed(ReasonNotSupported, "only http:// URLs can be requested directly; use CONNECT for everything else")
	}
	r.kind = kindForward
	a, err := hostname.ParseAuthorityDefault(hr.Host, 80)
	if err != nil {
		return nil, malformed(ReasonBadTarget, "the :authority is not valid: "+err.Error())
	}
	r.authority = a
	t := hr.RequestURI
	for i := 0; i < len(t); i++ {
		if c := t[i]; c <= 0x20 || c >= 0x7f {
			return nil, malformed(ReasonBadTarget, "the :path contains a byte that must be percent-encoded")
		}
	}
	switch {
	case t == "*" && r.method == "OPTIONS":
		r.target, r.path = "*", "/"
	case t == "" || t[0] != '/':
		return nil, malformed(ReasonBadTarget, "the :path must start with a slash")
	default:
		if refused := r.setTarget(t); refused != nil {
			return nil, refused
		}
	}
	if r.length < 0 {
		r.length = lengthToEOF
	}
	return r, nil
}

func answerRefusal2(w http.ResponseWriter, x *exchange, refused *refusal) {
	accept := ""
	if x.req != nil {
		accept = x.req.accept
	}
	contentType, body := refused.body(&x.rec, wantsJSON(accept))
	for _, h := range refusalHeaders(refused, contentType) {
		w.Header().Set(h.name, h.value)
	}
	w.WriteHeader(refused.status)
	_, _ = w.Write(body) //nolint:gosec // JSON or text/plain, of canonical host names
}

// answer2 answers over HTTP/2.
type answer2 struct {
	w   http.ResponseWriter
	via string
}

func (a *answer2) interim(r *response) error {
	a.fields(r)
	a.w.WriteHeader(r.status)
	for k := range a.w.Header() {
		a.w.Header().Del(k)
	}
	return nil
}

func (a *answer2) fields(r *response) {
	named := namedByConnection(r.head.fields)
	for _, f := range r.head.fields {
		if !hopByHop(f.name) && !responseSkip(f.name) && !containsFold(named, f.name) {
			a.w.Header().Add(f.name, f.value)
		}
	}
	// Without entries of their own net/http would guess a type and add a date.
	for _, k := range []string{"Content-Type", "Date"} {
		if a.w.Header().Get(k) == "" {
			a.w.Header()[k] = nil
		}
	}
	a.w.Header().Add("Via", "1."+strconv.Itoa(r.minor)+" "+a.via)
}

func (a *answer2) begin(r *response) (io.Writer, bool) {
	a.fields(r)
	if v, ok := r.announcedLength(); ok && r.length >= 0 {
		a.w.Header().Set("Content-Length", v)
	}
	a.w.WriteHeader(r.status)
	return &flushWriter{a.w, http.NewResponseController(a.w)}, false
}

func (a *answer2) finish() (bool, error) { return true, nil }

// flushWriter sends every chunk at once: events must not wait for a buffer to fill.
type flushWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f *flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

// h2Conn makes a stream of HTTP/2 look like a connection. The origin's half-close ends the
// whole stream: a response cannot end while the request goes on.
type h2Conn struct {
	body io.ReadCloser
	w    http.ResponseWriter
	rc   *http.ResponseController
}

func (c *h2Conn) Read(p []byte) (int, error) { return c.body.Read(p) }

func (c *h2Conn) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err == nil {
		err = c.rc.Flush()
	}
	return n, err
}

func (c *h2Conn) Close() error                       { return c.body.Close() }
func (c *h2Conn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *h2Conn) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (c *h2Conn) SetReadDeadline(t time.Time) error  { return c.rc.SetReadDeadline(t) }
func (c *h2Conn) SetWriteDeadline(t time.Time) error { return c.rc.SetWriteDeadline(t) }

func (c *h2Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}
