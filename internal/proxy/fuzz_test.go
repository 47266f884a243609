package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

// readerConn is a net.Conn that only reads.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(p []byte) (int, error)      { return c.Reader.Read(p) }
func (c readerConn) Close() error                    { return nil }
func (c readerConn) SetReadDeadline(time.Time) error { return nil }

func streamOf(b []byte) *stream { return newStream(readerConn{Reader: bytes.NewReader(b)}) }

var requestSeeds = []string{
	"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
	"POST http://example.com:8080/a?b#c HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 5\r\n\r\nhello",
	"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
	"CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n",
	"OPTIONS http://example.com HTTP/1.1\r\nHost: example.com\r\nConnection: close, X\r\nX: y\r\n\r\n",
	"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"GET http://a@example.com/ HTTP/1.1\r\nHost : x\r\n y\r\n\r\n",
	"GET http://example.com/\x00 HTTP/1.1\nHost: example.com\n\n",
}

// FuzzRequest: whatever the reader accepts has one meaning, and what would go to the origin
// is read the same way by another HTTP implementation.
func FuzzRequest(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := readHead(streamOf(in), maxHead, nil)
		if err != nil {
			var refused *refusal
			if errors.As(err, &refused) && (refused.status != 400 || refused.reason == "" || refused.detail == "") {
				t.Fatalf("refusal without an explanation: %+v", refused)
			}
			return
		}
		if r, refused := parseRequest(h); refused == nil {
			checkRequest(t, r)
		}
		a, err := hostname.ParseAuthority("example.com:80")
		if err != nil {
			t.Fatal(err)
		}
		if r, refused := parseInnerRequest(h, a); refused == nil {
			if r.authority != a {
				t.Fatalf("an inner request got out of its tunnel: %v", r.authority)
			}
			checkRequest(t, r)
		}
	})
}

func checkRequest(t *testing.T, r *request) {
	t.Helper()
	if again, err := hostname.ParseAuthority(r.authority.String()); err != nil || again != r.authority {
		t.Fatalf("authority %v is not canonical: %v", r.authority, err)
	}
	if r.kind == kindConnect {
		return
	}
	out := appendRequest(nil, r, "p")
	std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
	if err != nil {
		// net/url is stricter about escapes and methods; framing must be agreed on.
		if strings.Contains(err.Error(), "invalid URL") || strings.Contains(err.Error(), "invalid method") || strings.Contains(err.Error(), "invalid semicolon") || strings.Contains(err.Error(), "parse ") {
			return
		}
		t.Fatalf("%v\n%q", err, out)
	}
	if std.Method != r.method || std.RequestURI != r.target || std.Host != hostHeader(r) {
		t.Fatalf("read as %s %s %s, sent as %s %s %s", std.Method, std.RequestURI, std.Host, r.method, r.target, hostHeader(r))
	}
	chunked := len(std.TransferEncoding) > 0
	if chunked != (r.length < 0) || !chunked && std.ContentLength != r.length {
		t.Fatalf("framing read as %v %d, meant %d\n%q", std.TransferEncoding, std.ContentLength, r.length, out)
	}
	for name := range std.Header {
		if strings.HasPrefix(name, "Proxy-") || name == "Te" || name == "Keep-Alive" || name == "Trailer" {
			t.Fatalf("%s went to the origin", name)
		}
	}
	if c := std.Header.Get("Connection"); c != "" && !r.upgrade {
		t.Fatalf("Connection: %s went to the origin", c)
	}
}

// FuzzResponse: a response that is passed on is read by the client the way it was meant.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.0 200\r\n\r\nto the end",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
		"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: X\r\nX: 1\r\nProxy-Authenticate: Basic\r\n\r\n",
	} {
		f.Add([]byte(s), "GET")
		f.Add([]byte(s), "HEAD")
	}
	f.Fuzz(func(t *testing.T, in []byte, method string) {
		h, err := readHead(streamOf(in), maxHead, nil)
		if err != nil {
			return
		}
		res, refused := parseResponse(h, method)
		if refused != nil {
			if refused.status != 502 {
				t.Fatalf("status %d", refused.status)
			}
			return
		}
		if res.status < 200 {
			return
		}
		var sent bytes.Buffer
		a := &answer1{client: newStream(writerConn{w: &sent}), via: "p", keep: true}
		_, chunked := a.begin(res)
		if _, err := a.finish(); err != nil {
			t.Fatal(err)
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(sent.Bytes())), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%v\n%q", err, sent.Bytes())
		}
		if std.StatusCode != res.status || chunked != (len(std.TransferEncoding) > 0) && std.StatusCode != http.StatusNotModified && std.StatusCode != http.StatusNoContent && method != "HEAD" {
			t.Fatalf("read as %d %v, meant %d chunked=%v\n%q", std.StatusCode, std.TransferEncoding, res.status, chunked, sent.Bytes())
		}
		for name := range std.Header {
			if strings.HasPrefix(name, "Proxy-") || name == "X-Deny-Reason" {
				t.Fatalf("%s went to the client", name)
			}
		}
	})
}

type writerConn struct {
	net.Conn
	w io.Writer
}

func (c writerConn) Write(p []byte) (int, error) { return c.w.Write(p) }

// FuzzChunked: decoding does not depend on how the bytes arrive, and agrees with net/http
// on everything that is accepted.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nnext", "0\r\n\r\n", "a\r\n0123456789\r\n1\r\nx\r\n00\r\n\r\n",
		"5\nhello\n0\n\n", "-1\r\n\r\n", "fffffffffffffffff\r\n", "3\r\nhello\r\n0\r\n\r\n", "1 \r\nx\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(1))
		f.Add([]byte(s), uint8(64))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		whole, rest, done, err := decode(in, len(in)+1)
		piecewise, rest2, done2, err2 := decode(in, int(step)+1)
		if (err == nil) != (err2 == nil) || done != done2 || err == nil && (!bytes.Equal(whole, piecewise) || !bytes.Equal(rest, rest2)) {
			t.Fatalf("%q %q %v %v as a whole, %q %q %v %v in pieces", whole, rest, done, err, piecewise, rest2, done2, err2)
		}
		if err != nil || !done {
			return
		}
		std, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(in)))
		if err != nil || !bytes.Equal(std, whole) {
			t.Fatalf("net/http reads %q, %v; we read %q", std, err, whole)
		}
	})
}

func decode(in []byte, step int) (data, rest []byte, done bool, err error) {
	in = bytes.Clone(in)
	var d chunkDecoder
	for len(in) > 0 && !d.done() {
		n := min(step, len(in))
		out, over, err := d.feed(in[:n])
		if err != nil {
			return nil, nil, false, err
		}
		data = append(data, out...)
		if d.done() {
			return data, append(bytes.Clone(over), in[n:]...), true, nil
		}
		in = in[n:]
	}
	return data, nil, d.done(), nil
}
