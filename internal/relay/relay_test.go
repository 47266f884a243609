package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 10 * time.Second

// tcpConn has the methods of *net.TCPConn that tests use.
type tcpConn interface {
	net.Conn
	CloseWrite() error
}

// proxyConn is one connection that the relay opened to the fake proxy.
type proxyConn struct {
	tcpConn
	in *bufio.Reader
}

// say writes; where that fails, what the client reads shows it.
func (c *proxyConn) say(s string) { _, _ = io.WriteString(c, s) }

func closeWrite(t testing.TB, c tcpConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
}

// readHead returns the request head as it came, "" at the end of the stream.
func (c *proxyConn) readHead() string {
	var b strings.Builder
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return ""
		}
		b.WriteString(line)
		if line == "\r\n" {
			return b.String()
		}
	}
}

// startProxy serves each connection with handle, one goroutine each, until the test ends.
func startProxy(t testing.TB, handle func(c *proxyConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				handle(&proxyConn{tcpConn: c.(tcpConn), in: bufio.NewReader(c)})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// secret mimics the kubelet's projection: token -> ..data/token, ..data -> a directory
// that is replaced by a symlink swap.
type secret struct {
	dir string
	n   int
}

func newSecret(t testing.TB, token string) *secret {
	s := &secret{dir: t.TempDir()}
	s.rotate(t, token)
	if err := os.Symlink(filepath.Join("..data", "token"), filepath.Join(s.dir, "token")); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *secret) path() string { return filepath.Join(s.dir, "token") }

func (s *secret) rotate(t testing.TB, token string) {
	t.Helper()
	s.n++
	name := fmt.Sprintf("..%d", s.n)
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	must(os.Mkdir(filepath.Join(s.dir, name), 0o755))
	must(os.WriteFile(filepath.Join(s.dir, name, "token"), []byte(token), 0o444))
	must(os.Symlink(name, filepath.Join(s.dir, "..data_tmp")))
	must(os.Rename(filepath.Join(s.dir, "..data_tmp"), filepath.Join(s.dir, "..data")))
}

func startRelay(t testing.TB, cfg relay.Config) *relay.Server {
	t.Helper()
	if cfg.ContainerID == "" {
		cfg.ContainerID = "abc"
	}
	cfg.DrainTimeout = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	s, err := relay.New(ctx, cfg)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve = %v", err)
			}
		case <-time.After(limit):
			t.Error("the relay did not stop")
		}
	})
	return s
}

func dial(t testing.TB, at netip.AddrPort) tcpConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", at.String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return c.(tcpConn)
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func expectEOF(t testing.TB, r io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Fatalf("read %q, %v; want the end of the stream", rest, err)
	}
}

func authorization(token string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("container_abc:jwt_"+token)) + "\r\n"
}

func TestListensOnLoopbackOnly(t *testing.T) {
	s := startRelay(t, relay.Config{Proxy: netip.MustParseAddrPort("127.0.0.1:1"), TokenFile: "x"})
	for _, a := range s.Addrs() {
		if !a.Addr().IsLoopback() {
			t.Errorf("listens on %s", a)
		}
		dial(t, a)
	}
	if err := relay.Health(context.Background(), s.Addr().String()); err != nil {
		t.Errorf("Health = %v", err)
	}
}

func TestHealthFailsWithoutRelay(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := relay.Health(context.Background(), l.Addr().String()); err == nil {
		t.Error("Health = nil")
	}
}

func TestHeadReachesTheProxyWithTheTokenAndNothingElseChanged(t *testing.T) {
	for name, tc := range map[string]struct{ sent, want string }{
		"CONNECT": {
			"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: curl/8\r\nProxy-Connection: Keep-Alive\r\n\r\n",
			"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: curl/8\r\n" + authorization("t1") + "\r\n",
		},
		"absolute-form": {
			"GET http://example.com/a?b=%2f HTTP/1.1\r\nHost: other.example\r\nx-lower: a\r\nX-Lower: b\r\nConnection: keep-alive, X-Lower\r\n\r\n",
			"GET http://example.com/a?b=%2f HTTP/1.1\r\nHost: other.example\r\nx-lower: a\r\nX-Lower: b\r\nConnection: X-Lower, close\r\n" + authorization("t1") + "\r\n",
		},
		"HTTP/1.0 with bare line feeds": {
			"GET http://example.com/ HTTP/1.0\nAccept: */*\n\n",
			"GET http://example.com/ HTTP/1.0\r\nAccept: */*\r\nConnection: close\r\n" + authorization("t1") + "\r\n",
		},
		"credentials of the sandbox's own": {
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: Basic ZXZpbA==\r\nPROXY-AUTHORIZATION: Bearer x\r\nproxy-authorization:\r\n\r\n",
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n" + authorization("t1") + "\r\n",
		},
		"a Connection field that would drop the token": {
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: Proxy-Authorization\r\n\r\n",
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n" + authorization("t1") + "\r\n",
		},
		"origin-form, which is the proxy's to refuse": {
			"GET /admin HTTP/1.1\r\nHost: example.com\r\n\r\n",
			"GET /admin HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n" + authorization("t1") + "\r\n",
		},
		"the origin's own Authorization": {
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer mine\r\n\r\n",
			"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer mine\r\nConnection: close\r\n" + authorization("t1") + "\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			heads := make(chan string, 1)
			proxy := startProxy(t, func(c *proxyConn) {
				heads <- c.readHead()
				c.say("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
			})
			s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
			c := dial(t, s.Addr())
			send(t, c, tc.sent)
			expect(t, c, "HTTP/1.1 403 No\r\n")
			if got := <-heads; got != tc.want {
				t.Errorf("the proxy got\n%q\nwant\n%q", got, tc.want)
			}
		})
	}
}

func TestRefusalsPassUnchanged(t *testing.T) {
	for name, answer := range map[string]string{
		"403 to CONNECT": "HTTP/1.1 403 Egress-Blocked host_not_allowed\r\nx-deny-reason: host_not_allowed\r\nContent-Length: 5\r\nDate: now\r\n\r\nnope\n",
		"407":            "HTTP/1.1 407 token_expired\r\nProxy-Authenticate: Basic realm=\"sandbox-egress\"\r\nContent-Length: 0\r\n\r\n",
		"chunked body":   "HTTP/1.1 503 Draining\r\nTransfer-Encoding: chunked\r\nRetry-After: 1\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: y\r\n\r\n",
		"no phrase":      "HTTP/1.1 429 \r\nRetry-After: 1\r\n\r\n",
		"bare 429":       "HTTP/1.1 429\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			proxy := startProxy(t, func(c *proxyConn) {
				c.readHead()
				c.say(answer)
			})
			s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
			c := dial(t, s.Addr())
			send(t, c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\nearly bytes")
			got, err := io.ReadAll(c)
			if err != nil || string(got) != answer {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestEarlyBytesReachTheTunnelOnlyAfterTheProxyAgreed(t *testing.T) {
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if b, err := c.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("before the 200 the proxy read %q, %v", b, err)
		}
		c.SetReadDeadline(time.Now().Add(limit))
		c.say("HTTP/1.1 200 OK\r\n\r\nserver first")
		expect(t, c.in, "client early")
		c.say("then more")
		expect(t, c.in, "client late")
	})
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
	c := dial(t, s.Addr())
	send(t, c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\nclient early")
	expect(t, c, "HTTP/1.1 200 OK\r\n\r\nserver firstthen more")
	send(t, c, "client late")
	expectEOF(t, c)
}

func TestTunnelHalfClosesBothWays(t *testing.T) {
	for name, clientFirst := range map[string]bool{"client first": true, "proxy first": false} {
		t.Run(name, func(t *testing.T) {
			proxy := startProxy(t, func(c *proxyConn) {
				c.SetDeadline(time.Now().Add(limit))
				c.readHead()
				c.say("HTTP/1.1 200 OK\r\n\r\n")
				if clientFirst {
					got, err := io.ReadAll(c.in)
					fmt.Fprintf(c, "got %s %v", got, err)
					return
				}
				c.say("bye")
				closeWrite(t, c)
				expect(t, c.in, "still here")
				expectEOF(t, c.in)
			})
			s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
			c := dial(t, s.Addr())
			send(t, c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
			expect(t, c, "HTTP/1.1 200 OK\r\n\r\n")
			if clientFirst {
				send(t, c, "question")
				closeWrite(t, c)
				expect(t, c, "got question <nil>")
				expectEOF(t, c)
				return
			}
			expect(t, c, "bye")
			expectEOF(t, c)
			send(t, c, "still here")
			closeWrite(t, c)
		})
	}
}

func TestTunnelMovesManyBytesUnharmed(t *testing.T) {
	const size = 8 << 20
	payload := make([]byte, size)
	if _, err := rand.Read(payload); err != nil {
		t.Fatal(err)
	}
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		c.say("HTTP/1.1 200 OK\r\n\r\n")
		_, _ = io.Copy(c, c.in)
	})
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
	c := dial(t, s.Addr())
	send(t, c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
	expect(t, c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = c.Write(payload); closeWrite(t, c) }()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("got %d bytes, %v; equal %v", len(got), err, bytes.Equal(got, payload))
	}
}

func TestUpgrade(t *testing.T) {
	const request = "GET http://example.com/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	t.Run("switches to bytes both ways", func(t *testing.T) {
		proxy := startProxy(t, func(c *proxyConn) {
			if head := c.readHead(); !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "Connection: Upgrade, close\r\n") {
				t.Errorf("head %q", head)
			}
			c.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			expect(t, c.in, "ping")
			c.say("pong")
		})
		s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
		c := dial(t, s.Addr())
		send(t, c, request)
		expect(t, c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		send(t, c, "ping")
		expect(t, c, "pong")
		expectEOF(t, c)
	})
	t.Run("refused ends like any response", func(t *testing.T) {
		proxy := startProxy(t, func(c *proxyConn) {
			c.readHead()
			c.say("HTTP/1.1 403 Egress-Blocked path_not_allowed\r\nContent-Length: 0\r\n\r\n")
		})
		s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
		c := dial(t, s.Addr())
		send(t, c, request)
		expect(t, c, "HTTP/1.1 403 Egress-Blocked path_not_allowed\r\nContent-Length: 0\r\n\r\n")
		expectEOF(t, c)
	})
}

func TestGoClientThroughAGoProxy(t *testing.T) {
	proxy := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Auth", r.Header.Get("Proxy-Authorization"))
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = proxy.Serve(l) }()
	t.Cleanup(func() { _ = proxy.Close() })

	s := startRelay(t, relay.Config{Proxy: l.Addr().(*net.TCPAddr).AddrPort(), TokenFile: newSecret(t, "t1").path()})
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.Addr().String()})}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: limit}
	for _, body := range []string{"", "small", strings.Repeat("x", 1<<20)} {
		// An io.Reader without length is sent chunked.
		resp, err := client.Post("http://example.com/p", "text/plain", io.MultiReader(strings.NewReader(body)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != "POST http://example.com/p "+body {
			t.Errorf("got %d bytes %.60q, %v", len(got), got, err)
		}
		if want := strings.TrimSpace(strings.TrimPrefix(authorization("t1"), "Proxy-Authorization: ")); resp.Header.Get("X-Auth") != want {
			t.Errorf("the proxy saw %q", resp.Header.Get("X-Auth"))
		}
	}
}

func TestResponsesStream(t *testing.T) {
	next := make(chan struct{})
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		c.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for i := range 3 {
			fmt.Fprintf(c, "data: %d\n\n", i)
			<-next
		}
	})
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
	c := dial(t, s.Addr())
	send(t, c, "GET http://example.com/events HTTP/1.1\r\nHost: example.com\r\n\r\n")
	expect(t, c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
	for i := range 3 {
		expect(t, c, fmt.Sprintf("data: %d\n\n", i))
		next <- struct{}{}
	}
	expectEOF(t, c)
}

func TestInformationalResponsesPassAndTheBodyFollows(t *testing.T) {
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		c.say("HTTP/1.1 100 Continue\r\n\r\n")
		expect(t, c.in, "body")
		c.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
	c := dial(t, s.Addr())
	send(t, c, "PUT http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	expect(t, c, "HTTP/1.1 100 Continue\r\n\r\n")
	send(t, c, "body")
	expect(t, c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	expectEOF(t, c)
}

func TestRotatedTokenIsUsedForTheNextRequest(t *testing.T) {
	heads := make(chan string, 2)
	proxy := startProxy(t, func(c *proxyConn) {
		heads <- c.readHead()
		c.say("HTTP/1.1 204 OK\r\n\r\n")
	})
	secret := newSecret(t, "t1")
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: secret.path()})
	for _, token := range []string{"t1", "t2"} {
		if token != "t1" {
			secret.rotate(t, token+"\n")
		}
		c := dial(t, s.Addr())
		send(t, c, "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
		expect(t, c, "HTTP/1.1 204 OK\r\n\r\n")
		if head := <-heads; !strings.Contains(head, authorization(token)) {
			t.Errorf("with %s the proxy got %q", token, head)
		}
	}
}

func TestRetriesA407OnceWhenTheTokenChanged(t *testing.T) {
	const (
		get     = "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"
		post    = "POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: %d\r\n\r\n%s"
		refusal = "HTTP/1.1 407 token_expired\r\nContent-Length: 0\r\n\r\n"
	)
	small, large := strings.Repeat("s", 10<<10), strings.Repeat("l", 1<<20)
	for name, tc := range map[string]struct {
		request  string
		body     int
		rotate   bool // the token changes while the proxy refuses
		accept   bool // the proxy accepts the new token
		attempts int32
		want     string
	}{
		"CONNECT":                   {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\nearly", 5, true, true, 2, "HTTP/1.1 200 OK\r\n\r\nearly"},
		"GET":                       {get, 0, true, true, 2, "HTTP/1.1 200 OK\r\n\r\n"},
		"a small body is sent anew": {fmt.Sprintf(post, len(small), small), len(small), true, true, 2, "HTTP/1.1 200 OK\r\n\r\n" + small},
		"a large body is not kept":  {fmt.Sprintf(post, len(large), large), len(large), true, true, 1, refusal},
		"the same token is final":   {get, 0, false, true, 1, refusal},
		"not more than once":        {get, 0, true, false, 2, refusal},
	} {
		t.Run(name, func(t *testing.T) {
			secret := newSecret(t, "t1")
			var attempts atomic.Int32
			proxy := startProxy(t, func(c *proxyConn) {
				c.SetDeadline(time.Now().Add(limit))
				n := attempts.Add(1)
				head := c.readHead()
				if tc.accept && strings.Contains(head, authorization("t2")) {
					c.say("HTTP/1.1 200 OK\r\n\r\n")
					_, _ = io.CopyN(c, c.in, int64(tc.body))
					return
				}
				if tc.body > 5 {
					_, _ = io.CopyN(io.Discard, c.in, int64(tc.body))
				}
				if tc.rotate {
					secret.rotate(t, fmt.Sprintf("t%d", n+1))
				}
				c.say(refusal)
			})
			s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: secret.path()})
			c := dial(t, s.Addr())
			go func() { _, _ = io.WriteString(c, tc.request) }()
			expect(t, c, tc.want)
			if got := attempts.Load(); got != tc.attempts {
				t.Errorf("the proxy was asked %d times, want %d", got, tc.attempts)
			}
		})
	}
}

func TestOwnAnswersSayWhatIsWrong(t *testing.T) {
	closed := startProxy(t, func(*proxyConn) {})
	garbage := startProxy(t, func(c *proxyConn) { c.readHead(); c.say("SSH-2.0-x\r\n\r\n") })
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	down := l.Addr().(*net.TCPAddr).AddrPort()
	const get = "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"

	for name, tc := range map[string]struct {
		proxy   netip.AddrPort
		token   string
		request string
		want    string
	}{
		"no proxy":                       {down, "t1", get, "502 Egress-Relay proxy_unreachable"},
		"a proxy that hangs up":          {closed, "t1", get, "502 Egress-Relay proxy_unreachable"},
		"a proxy that speaks no HTTP":    {garbage, "t1", get, "502 Egress-Relay proxy_unreachable"},
		"an empty token":                 {closed, " \n", get, "503 Egress-Relay token_unavailable"},
		"a token with a line break":      {closed, "a\r\nX-Evil: 1", get, "503 Egress-Relay token_unavailable"},
		"an oversized token":             {closed, strings.Repeat("a", 9<<10), get, "503 Egress-Relay token_unavailable"},
		"TLS instead of HTTP":            {closed, "t1", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400 Egress-Relay malformed_request"},
		"HTTP/2":                         {closed, "t1", "PRI * HTTP/2.0\r\n\r\n", "400 Egress-Relay malformed_request"},
		"no version":                     {closed, "t1", "GET http://example.com/\r\n\r\n", "400 Egress-Relay malformed_request"},
		"two spaces":                     {closed, "t1", "GET  http://example.com/ HTTP/1.1\r\n\r\n", "400 Egress-Relay malformed_request"},
		"a folded field":                 {closed, "t1", "GET http://e/ HTTP/1.1\r\nX: a\r\n Proxy-Authorization: b\r\n\r\n", "400 Egress-Relay malformed_request"},
		"a space before the colon":       {closed, "t1", "GET http://e/ HTTP/1.1\r\nProxy-Authorization : b\r\n\r\n", "400 Egress-Relay malformed_request"},
		"a bare carriage return":         {closed, "t1", "GET http://e/ HTTP/1.1\r\nX: a\rProxy-Authorization: b\r\n\r\n", "400 Egress-Relay malformed_request"},
		"a field without colon":          {closed, "t1", "GET http://e/ HTTP/1.1\r\nX\r\n\r\n", "400 Egress-Relay malformed_request"},
		"a header that is too large":     {closed, "t1", "GET http://e/ HTTP/1.1\r\nX: " + strings.Repeat("a", 65<<10), "431 Egress-Relay header_too_large"},
		"too many fields":                {closed, "t1", "GET http://e/ HTTP/1.1\r\n" + strings.Repeat("X: a\r\n", 12<<10), "431 Egress-Relay header_too_large"},
		"an empty line before a request": {closed, "t1", "\r\n", "400 Egress-Relay malformed_request"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startRelay(t, relay.Config{Proxy: tc.proxy, TokenFile: newSecret(t, tc.token).path()})
			c := dial(t, s.Addr())
			go func() { _, _ = io.WriteString(c, tc.request) }()
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.Status != tc.want || len(body) < 10 {
				t.Errorf("%s %q %v, want %s", resp.Status, body, err, tc.want)
			}
		})
	}
}

func TestMissingTokenFileRefuses(t *testing.T) {
	proxy := startProxy(t, func(c *proxyConn) { t.Error("the proxy was asked without a token") })
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: filepath.Join(t.TempDir(), "token")})
	c := dial(t, s.Addr())
	send(t, c, "GET http://example.com/ HTTP/1.1\r\n\r\n")
	expect(t, c, "HTTP/1.1 503 Egress-Relay token_unavailable\r\n")
}

func TestProxyConnectionEndsWhenTheClientGoes(t *testing.T) {
	ended := make(chan struct{})
	proxy := startProxy(t, func(c *proxyConn) {
		defer close(ended)
		c.SetReadDeadline(time.Now().Add(limit))
		c.readHead()
		if b, err := c.in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %q, %v", b, err)
		}
	})
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path()})
	c := dial(t, s.Addr())
	send(t, c, "GET http://example.com/slow HTTP/1.1\r\nHost: example.com\r\n\r\n")
	time.Sleep(50 * time.Millisecond)
	c.Close()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatal("the connection to the proxy stays open")
	}
}

func TestSilentClientsAreDropped(t *testing.T) {
	s := startRelay(t, relay.Config{Proxy: netip.MustParseAddrPort("127.0.0.1:1"), TokenFile: "x", HeadTimeout: 50 * time.Millisecond})
	c := dial(t, s.Addr())
	send(t, c, "GET http://exa")
	expectEOF(t, c)
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	release := make(chan struct{})
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		<-release
		c.say("HTTP/1.1 204 OK\r\n\r\n")
	})
	// Each listener holds a slot while it accepts.
	s := startRelay(t, relay.Config{Proxy: proxy, TokenFile: newSecret(t, "t1").path(), MaxConnections: 3})
	conns := make([]tcpConn, 5)
	for i := range conns {
		conns[i] = dial(t, s.Addr())
		send(t, conns[i], "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
	}
	close(release)
	for _, c := range conns {
		expect(t, c, "HTTP/1.1 204 OK\r\n\r\n")
		c.Close()
	}
}

func TestShutdownCutsWhatDoesNotDrain(t *testing.T) {
	proxy := startProxy(t, func(c *proxyConn) {
		c.readHead()
		c.say("HTTP/1.1 200 OK\r\n\r\n")
		_, _ = io.Copy(io.Discard, c.in)
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := relay.New(ctx, relay.Config{Proxy: proxy, ContainerID: "abc", TokenFile: newSecret(t, "t1").path(), DrainTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	c := dial(t, s.Addr())
	send(t, c, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
	expect(t, c, "HTTP/1.1 200 OK\r\n\r\n")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve = %v", err)
		}
	case <-time.After(limit):
		t.Fatal("Serve does not return")
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		conn.Close()
		t.Error("still accepts connections")
	}
}

func TestNewRefusesAnIncompleteConfiguration(t *testing.T) {
	for name, cfg := range map[string]relay.Config{
		"no proxy":        {ContainerID: "a", TokenFile: "t"},
		"no port":         {Proxy: netip.MustParseAddrPort("127.0.0.1:0"), ContainerID: "a", TokenFile: "t"},
		"no container id": {Proxy: netip.MustParseAddrPort("127.0.0.1:1"), TokenFile: "t"},
		"no token file":   {Proxy: netip.MustParseAddrPort("127.0.0.1:1"), ContainerID: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := relay.New(context.Background(), cfg); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestNewReportsATakenPort(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := relay.Config{Proxy: netip.MustParseAddrPort("127.0.0.1:1"), ContainerID: "a", TokenFile: "t", Port: l.Addr().(*net.TCPAddr).AddrPort().Port()}
	if _, err := relay.New(context.Background(), cfg); err == nil {
		t.Error("accepted")
	}
}
