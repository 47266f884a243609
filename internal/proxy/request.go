package proxy

import (
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

type kind uint8

const (
	kindConnect kind = iota + 1
	kindForward
)

// request is the one reading of a request. What is decided, logged and dialled comes from
// it and from nowhere else.
type request struct {
	kind   kind
	method string
	// authority is the canonical destination.
	authority hostname.Authority
	// target is what the origin gets: path and query. "" for CONNECT.
	target string
	// path is target without the query, still percent-encoded.
	path string
	// minor is 0 or 1 of HTTP/1.x.
	minor int
	head  head
	// proxyAuth is the Proxy-Authorization value; authFields how many there were.
	proxyAuth  string
	authFields int
	accept     string
	// length is the body's length, -1 for chunked.
	length int64
	// keepAlive: the client wants to go on using the connection.
	keepAlive  bool
	closeAsked bool
	// upgrade asks for a WebSocket (RFC 6455).
	upgrade bool
	// expectContinue: the client waits for 100 before it sends the body.
	expectContinue bool
}

// parseRequest reads a head as a request to a proxy: absolute-form or CONNECT.
func parseRequest(h head) (*request, *refusal) {
	r, err := parseRequestLine(h)
	if err != nil {
		return nil, err
	}
	if err := r.parseFields(); err != nil {
		return nil, err
	}
	if r.method == "CONNECT" {
		err = r.parseConnect()
	} else {
		err = r.parseAbsolute()
	}
	if err != nil {
		return nil, err
	}
	return r, r.checkHost(false)
}

// parseInnerRequest reads a head as a request inside a tunnel to port 80: origin-form,
// and the Host must be the host that the tunnel was opened for.
func parseInnerRequest(h head, tunnel hostname.Authority) (*request, *refusal) {
	r, err := parseRequestLine(h)
	if err != nil {
		return nil, err
	}
	if err := r.parseFields(); err != nil {
		return nil, err
	}
	r.kind, r.authority = kindForward, tunnel
	switch t := r.head.target(); {
	case r.method == "CONNECT":
		return nil, malformed(ReasonNotSupported, "CONNECT inside a tunnel is not supported")
	case t == "*" && r.method == "OPTIONS":
		r.target, r.path = "*", "/"
	case t[0] == '/':
		if err := r.setTarget(t); err != nil {
			return nil, err
		}
	default:
		return nil, malformed(ReasonBadTarget, "inside a tunnel the request target must be a path that starts with a slash (origin-form)")
	}
	return r, r.checkHost(true)
}

// target is the second word of a request line that parseRequestLine accepted.
func (h *head) target() string {
	_, rest, _ := strings.Cut(h.start, " ")
	t, _, _ := strings.Cut(rest, " ")
	return t
}

func parseRequestLine(h head) (*request, *refusal) {
	method, rest, ok1 := strings.Cut(h.start, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !isToken(method) || target == "" || strings.ContainsAny(version, " \t") {
		return nil, malformed(ReasonBadRequestLine, "the request line is not \"method target HTTP/1.1\" with single spaces (RFC 9112 section 3)")
	}
	if len(method) > 32 {
		return nil, malformed(ReasonBadRequestLine, "the method is longer than 32 characters")
	}
	r := &request{method: method, head: h}
	switch version {
	case "HTTP/1.1":
		r.minor = 1
	case "HTTP/1.0":
	case "HTTP/2.0":
		return nil, malformed(ReasonNotSupported, "HTTP/2 without TLS is not supported; use HTTP/1.1, or HTTP/2 on a TLS listener")
	default:
		return nil, malformed(ReasonBadRequestLine, "the HTTP version is not HTTP/1.1 or HTTP/1.0")
	}
	for i := 0; i < len(target); i++ {
		if c := target[i]; c <= 0x20 || c >= 0x7f {
			return nil, malformed(ReasonBadTarget, "the request target contains a byte that must be percent-encoded (RFC 3986 section 2)")
		}
	}
	if method == "TRACE" || method == "TRACK" {
		return nil, malformed(ReasonNotSupported, method+" is not forwarded: it would echo the request's headers")
	}
	return r, nil
}

func (r *request) parseConnect() *refusal {
	r.kind = kindConnect
	// Cloned, since the authority lives as long as the tunnel and would keep the whole
	// head, token included, in memory.
	a, err := hostname.ParseAuthority(strings.Clone(r.head.target()))
	if err != nil {
		return malformed(ReasonBadTarget, "the target of CONNECT must be host:port: "+err.Error())
	}
	if r.length != 0 {
		return malformed(ReasonBadFraming, "CONNECT has no body: remove Content-Length and Transfer-Encoding (RFC 9110 section 9.3.6)")
	}
	if r.upgrade {
		return malformed(ReasonBadHeader, "CONNECT cannot be combined with Upgrade")
	}
	r.authority = a
	return nil
}

func (r *request) parseAbsolute() *refusal {
	r.kind = kindForward
	t := r.head.target()
	if t[0] == '/' || t == "*" {
		return malformed(ReasonNotProxyRequest, "this is a forward proxy: the request target must be an absolute http:// URL, or use CONNECT host:port")
	}
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok {
		return malformed(ReasonBadTarget, "the request target must be an absolute http:// URL")
	}
	if !strings.EqualFold(scheme, "http") {
		return malformed(ReasonNotSupported, "only http:// URLs can be requested directly; use CONNECT host:port for https and everything else")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	a, err := hostname.ParseAuthorityDefault(strings.Clone(rest[:end]), 80)
	if err != nil {
		return malformed(ReasonBadTarget, "the URL's host is not valid: "+err.Error())
	}
	r.authority = a
	target := rest[end:]
	switch {
	case target == "" && r.method == "OPTIONS":
		r.target, r.path = "*", "/" // RFC 9112 section 3.2.4
		return nil
	case target == "" || target[0] == '?':
		target = "/" + target // RFC 9112 section 3.2.1: an empty path is sent as "/"
	}
	return r.setTarget(target)
}

func (r *request) setTarget(t string) *refusal {
	if strings.IndexByte(t, '#') >= 0 {
		return malformed(ReasonBadTarget, "the request target must not have a fragment")
	}
	r.target = t
	r.path, _, _ = strings.Cut(t, "?")
	return nil
}

// checkHost holds the Host header to the target. RFC 9112 section 3.2.2 would have a proxy
// overwrite it; a sandbox that sends two different hosts is better told so.
func (r *request) checkHost(required bool) *refusal {
	value, n := r.head.get("Host")
	switch {
	case n > 1:
		return malformed(ReasonBadHost, "there is more than one Host header (RFC 9112 section 3.2)")
	case n == 0 && (r.minor > 0 || required):
		return malformed(ReasonBadHost, "the Host header is missing (RFC 9112 section 3.2)")
	case n == 0:
		return nil
	}
	a, err := hostname.ParseAuthorityDefault(value, r.authority.Port)
	if err != nil {
		return malformed(ReasonBadHost, "the Host header is not valid: "+err.Error())
	}
	// Some clients leave out a port that is not the default one on CONNECT, hence the
	// default above; a port that is there must be the right one.
	if a != r.authority {
		return malformed(ReasonHostMismatch, "the Host header names "+a.String()+", the request target "+r.authority.String())
	}
	return nil
}

// parseFields reads the header fields that matter to a proxy, and nothing else.
func (r *request) parseFields() *refusal {
	var (
		lengths, codings, expects int
		length, coding, expect    string
		upgrade, upgradeOption    string
		upgrades                  int
	)
	r.keepAlive = r.minor == 1
	for i := range r.head.fields {
		f := &r.head.fields[i]
		switch len(f.name) {
		case 6:
			switch {
			case strings.EqualFold(f.name, "Accept"):
				r.accept = f.value
			case strings.EqualFold(f.name, "Expect"):
				expect = f.value
				expects++
			}
		case 7:
			if strings.EqualFold(f.name, "Upgrade") {
				upgrade = f.value
				upgrades++
			}
		case 10:
			if strings.EqualFold(f.name, "Connection") {
				r.applyConnection(f.value, &upgradeOption)
			}
		case 14:
			if strings.EqualFold(f.name, "Content-Length") {
				length = f.value
				lengths++
			}
		case 16:
			if strings.EqualFold(f.name, "Proxy-Connection") {
				r.applyConnection(f.value, nil)
			}
		case 17:
			if strings.EqualFold(f.name, "Transfer-Encoding") {
				coding = f.value
				codings++
			}
		case 19:
			if strings.EqualFold(f.name, "Proxy-Authorization") {
				r.proxyAuth = f.value
				r.authFields++
			}
		}
	}
	switch {
	case lengths > 0 && codings > 0:
		return malformed(ReasonBadFraming, "Content-Length and Transfer-Encoding together are ambiguous (RFC 9112 section 6.3)")
	case lengths > 1:
		return malformed(ReasonBadFraming, "there is more than one Content-Length")
	case codings > 1:
		return malformed(ReasonBadFraming, "there is more than one Transfer-Encoding")
	case codings == 1:
		if r.minor == 0 || !strings.EqualFold(coding, "chunked") {
			return malformed(ReasonBadFraming, "the only Transfer-Encoding accepted is \"chunked\", in HTTP/1.1")
		}
		r.length = -1
	case lengths == 1:
		n, ok := parseLength(length)
		if !ok {
			return malformed(ReasonBadFraming, "Content-Length is not a number of digits (RFC 9110 section 8.6)")
		}
		r.length = n
	}
	if expects > 0 {
		if expects > 1 || !strings.EqualFold(expect, "100-continue") {
			return malformed(ReasonBadHeader, "the only Expect accepted is \"100-continue\"")
		}
		r.expectContinue = r.length != 0 && r.minor == 1
	}
	// Upgrade to anything but WebSocket is dropped, above all h2c, which would take later
	// requests out of sight.
	if upgrades == 1 && upgradeOption != "" && r.minor == 1 && strings.EqualFold(upgrade, "websocket") {
		if r.method != "GET" || r.length != 0 {
			return malformed(ReasonBadFraming, "a WebSocket handshake is a GET without a body (RFC 6455 section 4.1)")
		}
		r.upgrade = true
	}
	return nil
}

func (r *request) applyConnection(value string, upgrade *string) {
	switch {
	case hasToken(value, "close"):
		r.keepAlive, r.closeAsked = false, true
	case hasToken(value, "keep-alive"):
		r.keepAlive = !r.closeAsked
	}
	if upgrade != nil && hasToken(value, "upgrade") {
		*upgrade = value
	}
}

// parseLength accepts 1 to 18 digits: no sign, no list, no overflow.
func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
