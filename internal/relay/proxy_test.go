package relay_test

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
	"github.com/sandbox-egress/sandbox-egress/internal/relay"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// behindProxy starts the real proxy and a relay in front of it.
func behindProxy(t *testing.T, secret func(*proxytest.Env) *secret) (*proxytest.Env, *relay.Server) {
	t.Helper()
	env := proxytest.New(t, proxytest.Config{Allow: []string{"example.com", "example.com:7"}})
	env.DNS.Set("example.com", "203.0.113.7")
	return env, startRelay(t, relay.Config{
		Proxy: netip.MustParseAddrPort(env.Addr), ContainerID: proxytest.ContainerID, TokenFile: secret(env).path(),
	})
}

func goodToken(t *testing.T) func(*proxytest.Env) *secret {
	return func(e *proxytest.Env) *secret { return newSecret(t, e.Token) }
}

// startOrigin serves raw connections; startProxy does just that.
func startOrigin(t *testing.T, env *proxytest.Env, at string, handle func(c *proxyConn)) {
	t.Helper()
	env.Net.Route(at, startProxy(t, handle).String())
}

func TestRealProxyTunnels(t *testing.T) {
	env, s := behindProxy(t, goodToken(t))
	startOrigin(t, env, "203.0.113.7:7", func(c *proxyConn) { _, _ = io.Copy(c, c.in) })
	c := dial(t, s.Addr())
	send(t, c, "CONNECT example.com:7 HTTP/1.1\r\nHost: example.com:7\r\nProxy-Authorization: Basic Zm9yZ2Vk\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, 1<<10)), &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	send(t, c, "echo")
	expect(t, c, "echo")
	closeWrite(t, c)
	expectEOF(t, c)
}

func TestRealProxyForwardsAndClosesPlainRequests(t *testing.T) {
	env, s := behindProxy(t, goodToken(t))
	startOrigin(t, env, "203.0.113.7:80", func(c *proxyConn) {
		head := c.readHead()
		if strings.Contains(strings.ToLower(head), "proxy-authorization") {
			t.Errorf("the origin got the credential: %q", head)
		}
		body := make([]byte, 3)
		_, _ = io.ReadFull(c.in, body)
		c.say("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + string(body))
	})
	c := dial(t, s.Addr())
	start := time.Now()
	send(t, c, "POST http://example.com/x HTTP/1.1\r\nHost: example.com\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(body) != "abc" || !resp.Close {
		t.Errorf("%s, close %v, %q, %v", resp.Status, resp.Close, body, err)
	}
	expectEOF(t, c)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the end came after %s only", took)
	}
}

func TestRealProxyRefusalArrivesUnchanged(t *testing.T) {
	env, s := behindProxy(t, goodToken(t))
	const request = "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n%s\r\n"
	answer := func(at netip.AddrPort, auth string) string {
		c := dial(t, at)
		send(t, c, fmt.Sprintf(request, auth))
		resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		resp.Header.Del("Date")
		return resp.Status + fmt.Sprint(resp.Header)
	}
	direct := answer(netip.MustParseAddrPort(env.Addr), proxytest.Auth(proxytest.ContainerID, env.Token))
	if relayed := answer(s.Addr(), ""); relayed != direct || !strings.Contains(direct, "host_not_allowed") {
		t.Errorf("relayed %s\ndirect  %s", relayed, direct)
	}
}

func TestRealProxyUpgradesWebSockets(t *testing.T) {
	env, s := behindProxy(t, goodToken(t))
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	startOrigin(t, env, "203.0.113.7:80", func(c *proxyConn) {
		head := c.readHead()
		if !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "/ws") {
			c.say("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
			return
		}
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 section 4.2.2
		c.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n")
		_, _ = io.Copy(c, c.in)
	})
	c := dial(t, s.Addr())
	send(t, c, "GET http://example.com/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "+key+"\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	send(t, c, "frame")
	expect(t, r, "frame")
}

func TestRealProxyAcceptsTheRotatedToken(t *testing.T) {
	var file *secret
	env, s := behindProxy(t, func(e *proxytest.Env) *secret {
		file = newSecret(t, e.Mint(func(o *token.MintOptions) { o.Now = time.Now().Add(-2 * time.Hour) }))
		return file
	})
	startOrigin(t, env, "203.0.113.7:80", func(c *proxyConn) { c.readHead(); c.say("HTTP/1.1 204 OK\r\n\r\n") })
	status := func() string {
		c := dial(t, s.Addr())
		send(t, c, "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status
	}
	if got := status(); !strings.HasPrefix(got, "407") || !strings.Contains(got, "token_expired") {
		t.Errorf("with an expired token %s", got)
	}
	file.rotate(t, env.Token)
	if got := status(); !strings.HasPrefix(got, "204") {
		t.Errorf("with a fresh token %s", got)
	}
}

// BenchmarkTunnel compares a 1 MiB download through a tunnel with and without the relay;
// the fake proxy answers at once, so the difference is the relay's.
func BenchmarkTunnel(b *testing.B) {
	payload := make([]byte, 1<<20)
	proxy := startProxy(b, func(c *proxyConn) {
		c.readHead()
		c.say("HTTP/1.1 200 OK\r\n\r\n")
		_, _ = c.Write(payload)
	})
	s := startRelay(b, relay.Config{Proxy: proxy, TokenFile: newSecret(b, "t1").path()})
	for name, at := range map[string]netip.AddrPort{"direct": proxy, "relayed": s.Addr()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				c, err := net.Dial("tcp", at.String())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.WriteString(c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"); err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, c); err != nil || n < int64(len(payload)) {
					b.Fatal(n, err)
				}
				c.Close()
			}
		})
	}
}
