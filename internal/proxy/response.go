package proxy

import (
	"strconv"
	"strings"
)

// response is a response head from an origin, checked and ready to be passed on.
type response struct {
	status int
	reason string
	minor  int
	head   head
	// length of the body: a number, lengthChunked or lengthToEOF.
	length int64
	// keepAlive: the origin lets the connection be used again.
	keepAlive bool
	upgrade   string
}

// parseResponse reads a head as the response to a request with the given method. What is
// not plainly HTTP/1.x is refused: a lax reading here is how responses get split.
func parseResponse(h head, method string) (*response, *refusal) {
	bad := func(detail string) (*response, *refusal) {
		return nil, failure(502, ReasonBadResponse, "the origin's response is not valid HTTP: "+detail)
	}
	r := &response{head: h, length: lengthToEOF}
	version, rest, _ := strings.Cut(h.start, " ")
	switch version {
	case "HTTP/1.1":
		r.minor = 1
	case "HTTP/1.0":
	default:
		return bad("the status line does not start with HTTP/1.1 or HTTP/1.0")
	}
	code, reason, _ := strings.Cut(rest, " ")
	n, ok := parseLength(code)
	if !ok || len(code) != 3 || n < 100 || n > 599 {
		return bad("the status code is not a number between 100 and 599")
	}
	r.status, r.reason = int(n), reason
	if r.status == 407 {
		// Passed on, it would make the sandbox send its token to the origin's taste.
		return bad("only a proxy may answer 407")
	}

	r.keepAlive = r.minor == 1
	var lengths, codings int
	var length, coding string
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case strings.EqualFold(f.name, "Content-Length"):
			length = f.value
			lengths++
		case strings.EqualFold(f.name, "Transfer-Encoding"):
			coding = f.value
			codings++
		case strings.EqualFold(f.name, "Upgrade"):
			r.upgrade = f.value
		case strings.EqualFold(f.name, "Connection"):
			switch {
			case hasToken(f.value, "close"):
				r.keepAlive = false
			case hasToken(f.value, "keep-alive") && r.minor == 0:
				r.keepAlive = true
			}
		}
	}
	switch {
	case lengths > 1 || codings > 1:
		return bad("Content-Length or Transfer-Encoding is there more than once")
	case lengths > 0 && codings > 0:
		return bad("Content-Length and Transfer-Encoding together are ambiguous")
	case codings == 1:
		if !strings.EqualFold(coding, "chunked") || r.minor == 0 {
			return bad("the only Transfer-Encoding accepted is \"chunked\", in HTTP/1.1")
		}
		r.length = lengthChunked
	case lengths == 1:
		if r.length, ok = parseLength(length); !ok {
			return bad("Content-Length is not a number of digits")
		}
	}
	// RFC 9112 section 6.3: these have no body, whatever the fields say.
	if method == "HEAD" || r.status == 204 || r.status == 304 || r.status < 200 {
		if r.status == 204 || r.status < 200 {
			if codings > 0 || (lengths > 0 && r.length != 0) {
				return bad("a " + code + " response has no body, but its header announces one")
			}
		}
		r.length = 0
	}
	if r.length == lengthToEOF {
		r.keepAlive = false
	}
	return r, nil
}

// announcedLength is the Content-Length to pass on, when there is one: for HEAD and 304 it
// describes a body that is not sent.
func (r *response) announcedLength() (string, bool) {
	v, n := r.head.get("Content-Length")
	return v, n == 1
}

// hopByHop are the fields that end at this proxy (RFC 9110 section 7.6.1). Everything that
// starts with Proxy- goes with them, and whatever Connection names.
func hopByHop(name string) bool {
	if len(name) >= 6 && strings.EqualFold(name[:6], "Proxy-") {
		return true
	}
	switch len(name) {
	case 2:
		return strings.EqualFold(name, "TE")
	case 7:
		return strings.EqualFold(name, "Upgrade") || strings.EqualFold(name, "Trailer")
	case 10:
		return strings.EqualFold(name, "Connection") || strings.EqualFold(name, "Keep-Alive")
	case 14:
		return strings.EqualFold(name, "Content-Length") || strings.EqualFold(name, "HTTP2-Settings")
	case 17:
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// namedByConnection collects the options of every Connection field.
func namedByConnection(fields []field) []string {
	var names []string
	for i := range fields {
		if !strings.EqualFold(fields[i].name, "Connection") {
			continue
		}
		for item := range strings.SplitSeq(fields[i].value, ",") {
			item = strings.Trim(item, " \t")
			if item != "" && !strings.EqualFold(item, "close") && !strings.EqualFold(item, "keep-alive") {
				names = append(names, item)
			}
		}
	}
	return names
}

func containsFold(names []string, name string) bool {
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// appendFields appends the end-to-end fields, without those that skip tells to leave out.
func appendFields(b []byte, fields []field, skip func(name string) bool) []byte {
	named := namedByConnection(fields)
	for i := range fields {
		f := &fields[i]
		if hopByHop(f.name) || skip(f.name) || containsFold(named, f.name) {
			continue
		}
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, '\r', '\n')
	}
	return b
}

// appendRequest appends the head that the origin gets.
func appendRequest(b []byte, r *request, via string) []byte {
	b = append(b, r.method...)
	b = append(b, ' ')
	b = append(b, r.target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, hostHeader(r)...)
	b = append(b, '\r', '\n')
	var vias string
	b = appendFields(b, r.head.fields, func(name string) bool {
		// Host is the canonical one, Via is merged below, Expect is decided by the framing.
		return strings.EqualFold(name, "Host") || strings.EqualFold(name, "Via") || strings.EqualFold(name, "Expect")
	})
	for i := range r.head.fields {
		if strings.EqualFold(r.head.fields[i].name, "Via") {
			vias += r.head.fields[i].value + ", "
		}
	}
	b = append(b, "Via: "...)
	b = append(b, vias...)
	b = append(b, "1."...)
	b = strconv.AppendInt(b, int64(r.minor), 10)
	b = append(b, ' ')
	b = append(b, via...)
	b = append(b, '\r', '\n')
	switch {
	case r.length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case r.length > 0 || r.head.has("Content-Length"):
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, r.length, 10)
		b = append(b, '\r', '\n')
	}
	if r.expectContinue {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	if r.upgrade {
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	return append(b, '\r', '\n')
}

func (h *head) has(name string) bool {
	_, n := h.get(name)
	return n > 0
}

// hostHeader leaves the default port out, as clients do; some origins compare strings.
func hostHeader(r *request) string {
	s := r.authority.String()
	if r.authority.Port == 80 {
		s = strings.TrimSuffix(s, ":80")
	}
	return s
}

// appendStatus appends the status line and the end-to-end fields of r for the client.
func appendStatus(b []byte, r *response, via string) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(b, ' ')
	b = append(b, r.reason...)
	b = append(b, '\r', '\n')
	b = appendFields(b, r.head.fields, responseSkip)
	b = append(b, "Via: 1."...)
	b = strconv.AppendInt(b, int64(r.minor), 10)
	b = append(b, ' ')
	b = append(b, via...)
	return append(b, '\r', '\n')
}

// responseSkip keeps X-Deny-Reason this proxy's own word: an origin must not be able to
// pretend that the proxy refused.
func responseSkip(name string) bool {
	return len(name) == 13 && strings.EqualFold(name, "X-Deny-Reason")
}
