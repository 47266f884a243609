package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
)

// upstreamProxy answers CONNECT with reply and then echoes, or serves HTTP when it is asked
// for port 80.
type upstreamProxy struct {
	mu    sync.Mutex
	heads []string
}

func (u *upstreamProxy) seen() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Join(u.heads, "|")
}

func startUpstream(t *testing.T, e *proxytest.Env, reply string) *upstreamProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	u := &upstreamProxy{}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				req, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				u.mu.Lock()
				u.heads = append(u.heads, fmt.Sprintf("%s %s %s %s", req.Method, req.RequestURI, req.Host, req.Header.Get("Proxy-Authorization")))
				u.mu.Unlock()
				if _, err := io.WriteString(c, reply); err != nil || !strings.Contains(reply, " 200 ") {
					return
				}
				if strings.HasSuffix(req.Host, ":80") {
					inner, err := http.ReadRequest(br)
					if err == nil {
						body := inner.Host + inner.RequestURI
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
					}
					return
				}
				_, _ = io.Copy(c, br)
			}()
		}
	}()
	e.DNS.Set("corp-proxy.test", "10.9.9.9")
	e.Net.Route("10.9.9.9:3128", ln.Addr().String())
	return u
}

func upstreamEnv(t *testing.T, reply string) (*proxytest.Env, *upstreamProxy) {
	t.Helper()
	e := proxytest.New(t, proxytest.Config{
		Allow: []string{"example.com", "db.example.net:5432", "169.254.169.254"},
		Policy: func(p *policy.Policy) {
			p.Upstream = &policy.Upstream{Authority: proxytest.Authority("corp-proxy.test:3128")}
		},
	})
	return e, startUpstream(t, e, reply)
}

func TestUpstreamGetsTheValidatedName(t *testing.T) {
	e, u := upstreamEnv(t, "HTTP/1.1 200 OK\r\n\r\nbanner")
	if err := e.Server.SetUpstreamCredentials("corp", "secret"); err != nil {
		t.Fatal(err)
	}
	c := dial(t, e)
	c.send("CONNECT DB.example.net.:5432 HTTP/1.1\r\nHost: db.example.net:5432\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	c.response("CONNECT")
	c.send("hello")
	got := make([]byte, len("bannerhello"))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "bannerhello" {
		t.Errorf("%q %v", got, err)
	}
	if want := "CONNECT db.example.net:5432 db.example.net:5432 Basic Y29ycDpzZWNyZXQ="; u.seen() != want {
		t.Errorf("the upstream saw %q, want %q", u.seen(), want)
	}
	if asked := e.DNS.Asked(); len(asked) != 1 || asked[0] != "corp-proxy.test." {
		t.Errorf("looked up %q; the destination's name is the upstream's to resolve", asked)
	}
}

func TestPlainRequestGoesThroughTheUpstreamToo(t *testing.T) {
	e, u := upstreamEnv(t, "HTTP/1.1 200 OK\r\n\r\n")
	c := dial(t, e)
	c.send("GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
	if res, body := c.response("GET"); res.StatusCode != http.StatusOK || body != "example.com/x" {
		t.Errorf("%s %q", res.Status, body)
	}
	if !strings.HasPrefix(u.seen(), "CONNECT example.com:80 ") {
		t.Errorf("the upstream saw %q", u.seen())
	}
}

func TestUpstreamRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		reply, target string
		wantStatus    int
		wantReason    string
		wantDecision  audit.Verdict
	}{
		"upstream forbids":              {"HTTP/1.1 403 Forbidden\r\n\r\n", "example.com:443", 502, "upstream_refused", audit.Allow},
		"upstream wants credentials":    {"HTTP/1.1 407 Auth\r\n\r\n", "example.com:443", 502, "upstream_refused", audit.Allow},
		"upstream talks nonsense":       {"SSH-2.0-x\r\n\r\n", "example.com:443", 502, "upstream_failed", audit.Allow},
		"upstream hangs up":             {"", "example.com:443", 502, "upstream_failed", audit.Allow},
		"address that is never allowed": {"HTTP/1.1 200 OK\r\n\r\n", "169.254.169.254:443", 403, "address_not_allowed", audit.Deny},
		"host that is not on the list":  {"HTTP/1.1 200 OK\r\n\r\n", "evil.example:443", 403, "host_not_allowed", audit.Deny},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := upstreamEnv(t, tc.reply)
			c := dial(t, e)
			c.send("CONNECT " + tc.target + " HTTP/1.1\r\nHost: " + tc.target + "\r\n" + proxytest.Auth("c1", e.Token) + "\r\n")
			if res, _ := c.response("CONNECT"); res.StatusCode != tc.wantStatus || res.Header.Get("X-Deny-Reason") != tc.wantReason {
				t.Errorf("%s %s", res.Status, res.Header.Get("X-Deny-Reason"))
			}
			recs, ok := e.Log.Wait(5*time.Second, func(r []audit.Record) bool { return len(r) == 1 })
			if !ok || recs[0].Decision != tc.wantDecision || recs[0].Reason != tc.wantReason {
				t.Errorf("records %+v", recs)
			}
		})
	}
}
