package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is one raw connection to the proxy.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, e *proxytest.Env) *client {
	t.Helper()
	c, err := net.Dial("tcp", e.Addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) response(method string) (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	if method == "CONNECT" && res.StatusCode == http.StatusOK {
		return res, ""
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res, string(body)
}

func plainOrigin(t *testing.T, e *proxytest.Env, addr string, h http.HandlerFunc) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	e.Net.Route(addr, s.Listener.Addr().String())
}

func TestPlainRequestIsForwardedAndAudited(t *testing.T) {
	e := proxytest.New(t, proxytest.Config{Allow: []string{"example.com"}})
	e.DNS.Set("example.com", "203.0.113.7")
	plainOrigin(t, e, "203.0.113.7:80", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %q %q", r.Method, r.Host, r.URL, r.Header["Proxy-Authorization"], r.Header["X-Test"])
	})
	c := dial(t, e)
	for range 3 {
		c.send("GET http://example.com/a?b=c HTTP/1.1\r\nHost: example.com\r\nX-Test: 1\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
		res, body := c.response("GET")
		if res.StatusCode != http.StatusOK || body != `GET example.com /a?b=c [] ["1"]` {
			t.Fatalf("%d %q", res.StatusCode, body)
		}
	}
	if n := len(e.Net.Dialled()); n != 1 {
		t.Errorf("%d connections to the origin for one keep-alive client, want 1", n)
	}
	recs, ok := e.Log.Wait(5*time.Second, func(r []audit.Record) bool { return len(r) == 6 })
	if !ok {
		t.Fatalf("records: %+v", recs)
	}
	if r := recs[0]; r.Decision != audit.Allow || r.Host != "example.com" || r.Port != 80 || r.DialledIP.String() != "203.0.113.7" || r.Pod != "sandbox-1" || r.Policy != "agents" || r.Namespace != "team-a" {
		t.Errorf("decision record %+v", r)
	}
	if r := recs[1]; r.Event != audit.Close || r.Status != 200 || r.BytesReceived == 0 {
		t.Errorf("close record %+v", r)
	}
}

func TestTunnelCarriesTLSBothWays(t *testing.T) {
	e := proxytest.New(t, proxytest.Config{Allow: []string{"example.com"}})
	e.DNS.Set("example.com", "203.0.113.7")
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d", len(b))
	}))
	t.Cleanup(s.Close)
	e.Net.Route("203.0.113.7:443", s.Listener.Addr().String())
	c := dial(t, e)
	c.send("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	if res, _ := c.response("CONNECT"); res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	tc := tls.Client(c.Conn, &tls.Config{ServerName: "example.com", InsecureSkipVerify: true})
	const size = 5 << 20
	req, _ := http.NewRequest(http.MethodPost, "https://example.com/", strings.NewReader(strings.Repeat("x", size)))
	if err := req.Write(tc); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(tc), req)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != fmt.Sprint(size) {
		t.Fatalf("origin got %s bytes", b)
	}
	_ = tc.Close()
	recs, ok := e.Log.Wait(5*time.Second, func(r []audit.Record) bool { return len(r) == 2 })
	if !ok || recs[0].SNI != "example.com" || recs[1].BytesSent < size {
		t.Errorf("records: %+v", recs)
	}
}

func TestShutdownDrains(t *testing.T) {
	e := proxytest.New(t, proxytest.Config{Allow: []string{"example.com:7"}, Options: func(o *proxy.Options) {}})
	e.DNS.Set("example.com", "203.0.113.7")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	e.Net.Route("203.0.113.7:7", ln.Addr().String())
	c := dial(t, e)
	c.send("CONNECT example.com:7 HTTP/1.1\r\nHost: example.com:7\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	c.response("CONNECT")
	waiting := dial(t, e)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { done <- e.Server.Shutdown(ctx) }()
	for range 50 {
		time.Sleep(10 * time.Millisecond)
		if _, err := net.Dial("tcp", e.Addr); err != nil {
			break
		}
	}
	c.send("still here")
	buf := make([]byte, 10)
	if _, err := io.ReadFull(c.r, buf); err != nil || string(buf) != "still here" {
		t.Fatalf("tunnel during drain: %q %v", buf, err)
	}
	waiting.send("CONNECT example.com:7 HTTP/1.1\r\nHost: example.com:7\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	if res, _ := waiting.response("CONNECT"); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("new request during drain: %s", res.Status)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown = %v after the last tunnel closed", err)
	}
}
