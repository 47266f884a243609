package proxy_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/net/http2"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
)

// serverTLS is a self-signed certificate for the proxy's own listener.
func serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"proxy.test"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
}

func tlsEnv(t *testing.T) *proxytest.Env {
	t.Helper()
	e := proxytest.New(t, proxytest.Config{
		Allow:   []string{"example.com", "db.example.net:5432"},
		Options: func(o *proxy.Options) { o.TLS = serverTLS(t) },
	})
	e.DNS.Set("example.com", "203.0.113.7")
	e.DNS.Set("db.example.net", "203.0.113.7")
	return e
}

func echoOrigin(t *testing.T, e *proxytest.Env, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	e.Net.Route(addr, ln.Addr().String())
}

func TestTLSListenerSpeaksHTTP1(t *testing.T) {
	e := tlsEnv(t)
	plainOrigin(t, e, "203.0.113.7:80", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) })
	echoOrigin(t, e, "203.0.113.7:5432")
	conn, err := tls.Dial("tcp", e.Addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &client{t, conn, bufio.NewReader(conn)}
	c.send("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	if res, body := c.response("GET"); res.StatusCode != http.StatusOK || body != "example.com" {
		t.Fatalf("%s %q", res.Status, body)
	}
	c.send("CONNECT db.example.net:5432 HTTP/1.1\r\nHost: db.example.net:5432\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	c.response("CONNECT")
	want := strings.Repeat("0123456789abcdef", 20000)
	go func() { _, _ = io.WriteString(conn, want) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		t.Errorf("echo through TLS: %v", err)
	}
	// The client's close_notify reaches the origin as a half-close, whose answer ends the tunnel.
	_ = conn.CloseWrite()
	if _, err := c.r.ReadByte(); err != io.EOF {
		t.Errorf("after the half-close: %v", err)
	}
}

// h2Client speaks HTTP/2 to the proxy, with :scheme http where the URL says so, which no
// other client does over TLS.
func h2Client(t *testing.T, e *proxytest.Env) http.RoundTripper {
	t.Helper()
	tr := &http2.Transport{ //nolint:staticcheck // see above
		AllowHTTP: true, //nolint:staticcheck // see above
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) { //nolint:staticcheck // see above
			d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
			return d.DialContext(ctx, "tcp", e.Addr)
		},
	}
	t.Cleanup(tr.CloseIdleConnections) //nolint:staticcheck // see above
	return tr
}

func h2Request(method, scheme, host, path string, body io.Reader, auth string) *http.Request {
	req, err := http.NewRequest(method, "http://placeholder"+path, body)
	if err != nil {
		panic(err) // a typing error in a test
	}
	req.URL.Scheme, req.URL.Host, req.Host = scheme, host, host
	if method == "CONNECT" {
		req.URL = &url.URL{Scheme: "https", Host: host}
	}
	if name, value, ok := strings.Cut(strings.TrimSpace(auth), ": "); ok {
		req.Header.Set(name, value)
	}
	return req
}

func TestHTTP2(t *testing.T) {
	e := tlsEnv(t)
	plainOrigin(t, e, "203.0.113.7:80", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Deny-Reason", "host_not_allowed")
		w.Header().Set("X-Origin", "1")
		fmt.Fprintf(w, "%s %s %s %d %q", r.Method, r.Host, r.URL, len(b), r.Header["Proxy-Authorization"])
	})
	auth := proxytest.Auth("c1", e.Token)
	for name, tc := range map[string]struct {
		req        *http.Request
		wantStatus int
		wantReason string
		wantBody   string
	}{
		"plain request":             {req: h2Request("GET", "http", "example.com", "/a?b", nil, auth), wantStatus: 200, wantBody: "GET example.com /a?b 0 []"},
		"plain request with body":   {req: h2Request("POST", "http", "example.com", "/", io.MultiReader(strings.NewReader("hello")), auth), wantStatus: 200, wantBody: "POST example.com / 5 []"},
		"no credentials":            {req: h2Request("GET", "http", "example.com", "/", nil, ""), wantStatus: 407, wantReason: "auth_required"},
		"denied host":               {req: h2Request("GET", "http", "evil.example", "/", nil, auth), wantStatus: 403, wantReason: "host_not_allowed"},
		"denied CONNECT":            {req: h2Request("CONNECT", "", "evil.example:443", "", nil, auth), wantStatus: 403, wantReason: "host_not_allowed"},
		"CONNECT without a port":    {req: h2Request("CONNECT", "", "example.com", "", nil, auth), wantStatus: 400, wantReason: "bad_target"},
		"https is not sent as http": {req: h2Request("GET", "https", "example.com", "/", nil, auth), wantStatus: 400, wantReason: "not_supported"},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := h2Client(t, e).RoundTrip(tc.req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.ProtoMajor != 2 || res.StatusCode != tc.wantStatus || res.Header.Get("X-Deny-Reason") != tc.wantReason {
				t.Errorf("%s %s, reason %q; body %q", res.Proto, res.Status, res.Header.Get("X-Deny-Reason"), body)
			}
			if tc.wantBody != "" && (string(body) != tc.wantBody || res.Header.Get("X-Origin") != "1") {
				t.Errorf("body %q, want %q", body, tc.wantBody)
			}
		})
	}
}

func TestHTTP2TunnelChecksSNIAndEchoes(t *testing.T) {
	e := tlsEnv(t)
	echoOrigin(t, e, "203.0.113.7:5432")
	echoOrigin(t, e, "203.0.113.7:443")
	auth := proxytest.Auth("c1", e.Token)

	pr, pw := io.Pipe()
	res, err := h2Client(t, e).RoundTrip(h2Request("CONNECT", "", "db.example.net:5432", "", pr, auth))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", res, err)
	}
	for _, s := range []string{"hello", strings.Repeat("x", 200000)} {
		go func() { _, _ = io.WriteString(pw, s) }()
		got := make([]byte, len(s))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != s {
			t.Fatalf("echo: %v", err)
		}
	}
	_ = pw.Close()
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Errorf("end of the tunnel: %v", err)
	}
	res.Body.Close()

	pr, pw = io.Pipe()
	res, err = h2Client(t, e).RoundTrip(h2Request("CONNECT", "", "example.com:443", "", pr, auth))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", res, err)
	}
	go func() { _, _ = io.WriteString(pw, "GET / HTTP/1.1\r\n\r\n") }()
	if b, err := io.ReadAll(res.Body); err == nil || len(b) > 0 {
		t.Errorf("a tunnel that is not TLS gave %q, %v; want a reset stream", b, err)
	}
	_ = pw.Close()
	res.Body.Close()
	recs, ok := e.Log.Wait(5*time.Second, func(r []audit.Record) bool { return len(r) == 3 })
	if !ok || recs[0].Decision != audit.Allow || recs[1].Reason != "closed" || recs[2].Reason != "tls_required" || recs[2].Decision != audit.Deny {
		t.Errorf("records %+v", recs)
	}
}

func TestHTTP2TunnelToPort80IsParsed(t *testing.T) {
	e := tlsEnv(t)
	plainOrigin(t, e, "203.0.113.7:80", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) })
	pr, pw := io.Pipe()
	t.Cleanup(func() { _ = pw.Close() })
	res, err := h2Client(t, e).RoundTrip(h2Request("CONNECT", "", "example.com:80", "", pr, proxytest.Auth("c1", e.Token)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	br := bufio.NewReader(res.Body)
	for _, tc := range []struct {
		host string
		want int
	}{{"example.com", 200}, {"evil.example", 400}} {
		go func() { _, _ = io.WriteString(pw, "GET / HTTP/1.1\r\nHost: "+tc.host+"\r\n\r\n") }()
		inner, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(inner.Body); err != nil || inner.StatusCode != tc.want {
			t.Errorf("%s: %s %v", tc.host, inner.Status, err)
		}
	}
}

func TestProxyProtocol(t *testing.T) {
	req := "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n"
	v2, err := (&proxyproto.Header{
		Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4,
		SourceAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 1}, DestinationAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 2},
	}).Format()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		trusted    string
		header     string
		wantStatus int // 0: closed without an answer
		wantReason string
	}{
		"version 1 from a trusted balancer":          {"127.0.0.0/8", "PROXY TCP4 10.0.0.7 10.0.0.1 1 2\r\n", 200, ""},
		"version 2 from a trusted balancer":          {"127.0.0.0/8", string(v2), 200, ""},
		"the source in the header is the one bound":  {"127.0.0.0/8", "PROXY TCP4 10.0.0.8 10.0.0.1 1 2\r\n", 403, "source_not_bound"},
		"trusted balancer without a header":          {"127.0.0.0/8", "", 0, ""},
		"header from an address that is not trusted": {"192.0.2.0/24", "PROXY TCP4 10.0.0.7 10.0.0.1 1 2\r\n", 400, "bad_header"},
		"health check of the balancer, version 2":    {"127.0.0.0/8", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", 403, "source_not_bound"},
		"unknown protocol has no source to be bound": {"127.0.0.0/8", "PROXY UNKNOWN\r\n", 403, "source_not_bound"},
		"header that is not one":                     {"127.0.0.0/8", "PROXY TCP4 nonsense\r\n", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := proxytest.New(t, proxytest.Config{
				Allow:   []string{"example.com"},
				State:   func(c *policy.Config) { c.Pods[0].IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7")} },
				Options: func(o *proxy.Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(tc.trusted)} },
			})
			e.DNS.Set("example.com", "203.0.113.7")
			plainOrigin(t, e, "203.0.113.7:80", func(http.ResponseWriter, *http.Request) {})
			c := dial(t, e)
			c.send(tc.header + req + proxytest.Auth("c1", e.Token) + "\r\n")
			if tc.wantStatus == 0 {
				if b, err := io.ReadAll(c.r); len(b) > 0 {
					t.Errorf("got %q, %v; want the connection closed", b, err)
				}
				return
			}
			if res, body := c.response("GET"); res.StatusCode != tc.wantStatus || res.Header.Get("X-Deny-Reason") != tc.wantReason {
				t.Errorf("%s %q %q", res.Status, res.Header.Get("X-Deny-Reason"), body)
			}
		})
	}
}

// flaky fails a few times before each connection.
type flaky struct {
	net.Listener
	left atomic.Int32
	err  error
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: f.err}
	}
	return f.Listener.Accept()
}

func TestAcceptSurvivesWantOfDescriptors(t *testing.T) {
	fl := &flaky{err: syscall.EMFILE}
	fl.left.Store(4)
	e := proxytest.New(t, proxytest.Config{
		Allow: []string{"example.com"},
		Wrap:  func(ln net.Listener) net.Listener { fl.Listener = ln; return fl },
	})
	c := dial(t, e)
	c.send("GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	if res, _ := c.response("GET"); res.StatusCode != http.StatusForbidden {
		t.Errorf("after EMFILE: %s", res.Status)
	}
}

func TestConnectionLimitPausesAccepting(t *testing.T) {
	e := proxytest.New(t, proxytest.Config{
		Allow:   []string{"example.com"},
		Options: func(o *proxy.Options) { o.MaxConns = 1 },
	})
	first := dial(t, e)
	first.send("GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	first.response("GET")
	second := dial(t, e)
	second.send("GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	_ = second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if b, err := second.r.Peek(1); err == nil {
		t.Fatalf("a second connection was served above the limit: %q", b)
	}
	_ = second.SetReadDeadline(time.Now().Add(5 * time.Second))
	first.Close()
	second.r.Reset(second.Conn)
	if res, _ := second.response("GET"); res.StatusCode != http.StatusForbidden {
		t.Errorf("after the first connection closed: %s", res.Status)
	}
}
