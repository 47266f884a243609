package vectors

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a vector.
const patience = 10 * time.Second

// vector is one thing that a client sends to the proxy, and what must come of it.
type vector struct {
	// spec replaces the usual allowlist; policy, state and options change what it is used with.
	spec    *allowlist.Spec
	policy  func(*policy.Policy)
	state   func(*policy.Config)
	options func(*proxy.Options)
	// with prepares names, routes and the origin.
	with func(*lab)
	// send goes out first, raw. $AUTH stands for good credentials.
	send string
	// do goes on from there, before the status is looked at when status is 0.
	do func(*lab)

	// status is that of the first response; 0 when do reads what there is.
	status int
	// reason is its X-Deny-Reason.
	reason string
	// origin is exactly what the origin got, in all; "" nothing. $VIA is this proxy.
	origin string
	// dials is how many connections the origin got.
	dials int
	// audit are the records, as "event decision reason"; nil means one decision that denies
	// for reason.
	audit []string
}

// lab is one vector's proxy, origin and client.
type lab struct {
	*testing.T
	*proxytest.Env
	origin *origin
	wire   *wire
}

func usual() allowlist.Spec {
	return allowlist.Spec{
		AllowedHosts: []string{
			"example.com", "*.example.org", "db.example.net:5432", "203.0.113.7", "[2001:db8::7]",
			"127.0.0.1", "169.254.169.254", "10.0.0.5", "100.64.0.1", "0.0.0.0", "[::1]", "[64:ff9b::7f00:1]", "[fe80::1]", "[2002:7f00:1::]",
			"rebind.example.net", "internal.example.net", "mixed.example.net", "metadata.example.net", "mapped.example.net", "nat64.example.net",
			"gone.example.net", "servfail.example.net", "slow.example.net", "empty.example.net", "closed.example.net", "hang.example.net", "loop.example.net:8443",
			"ssh.example.net:22",
		},
		DeniedHosts: []string{"bad.example.org"},
		Rules: []allowlist.Rule{
			{Hosts: []string{"api.example.com"}, Methods: []string{"GET"}, Paths: []string{"/v1/*"}},
			{Hosts: []string{"optional.example.com"}, TLS: allowlist.TLSOptional},
		},
	}
}

func runVector(t *testing.T, v vector) {
	t.Parallel()
	spec := usual()
	if v.spec != nil {
		spec = *v.spec
	}
	l := &lab{T: t}
	l.origin = newOrigin(t)
	l.Env = proxytest.New(t, proxytest.Config{
		Spec: &spec, Policy: v.policy, State: v.state,
		Options: func(o *proxy.Options) {
			o.OwnAddresses = append(o.OwnAddresses, proxyOwn)
			o.HelloTimeout, o.HeaderTimeout = 5*time.Second, 5*time.Second
			if v.options != nil {
				v.options(o)
			}
		},
	})
	for _, name := range []string{"example.com", "a.example.org", "a.b.example.org", "bad.example.org", "api.example.com", "optional.example.com", "db.example.net", "ssh.example.net", "closed.example.net"} {
		l.DNS.Set(name, "203.0.113.7")
	}
	l.DNS.Set("closed.example.net", "203.0.113.9")
	for _, port := range []string{"80", "443", "5432", "22"} {
		l.Net.Route("203.0.113.7:"+port, l.origin.addr)
		l.Net.Route("[2001:db8::7]:"+port, l.origin.addr)
	}
	if v.with != nil {
		v.with(l)
	}
	l.wire = l.connect()
	l.wire.send(v.send)
	if v.status != 0 {
		res := l.wire.response(method(v.send))
		if res.status != v.status || res.header.Get("X-Deny-Reason") != v.reason {
			t.Errorf("status %d, reason %q; want %d, %q; body %q", res.status, res.header.Get("X-Deny-Reason"), v.status, v.reason, res.body)
		}
		if v.reason != "" && !strings.Contains(res.line, v.reason) {
			t.Errorf("the status line %q does not name the reason", res.line)
		}
		if v.status == 407 && res.header.Get("Proxy-Authenticate") == "" {
			t.Error("407 without Proxy-Authenticate")
		}
		if (v.status == 429 || v.status == 503) && res.header.Get("Retry-After") == "" {
			t.Errorf("%d without Retry-After", v.status)
		}
	}
	if v.do != nil {
		v.do(l)
	}
	l.wire.Close()

	want := v.audit
	if want == nil {
		want = []string{"decision deny " + v.reason}
	}
	recs, ok := l.Log.Wait(patience, func(r []audit.Record) bool { return len(r) >= len(want) })
	// A record too many would come at once.
	if ok && len(recs) == len(want) {
		time.Sleep(2 * time.Millisecond)
		recs = l.Log.Records()
	}
	var got []string
	for i := range recs {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", recs[i].Event, recs[i].Decision, recs[i].Reason)))
		if b := recs[i].AppendJSON(nil); bytes.Contains(b, []byte(l.Token)) {
			t.Error("the audit record contains the token")
		}
	}
	slices.Sort(got)
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("audit records %q, want %q: %+v", got, want, recs)
	}
	if got := l.origin.all(); got != strings.ReplaceAll(v.origin, "$VIA", "sandbox-egress-X") {
		t.Errorf("the origin got\n%q\nwant\n%q", got, v.origin)
	}
	// The kernel connects, the origin accepts a moment later.
	for deadline := time.Now().Add(patience); l.origin.dials() < v.dials && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := l.origin.dials(); n != v.dials {
		t.Errorf("the origin got %d connections, want %d", n, v.dials)
	}
}

func method(send string) string {
	m, _, _ := strings.Cut(strings.TrimLeft(send, "\r\n"), " ")
	return m
}

// wire is one raw client connection.
type wire struct {
	l *lab
	net.Conn
	r *bufio.Reader
}

func (l *lab) connect() *wire {
	l.Helper()
	return l.connectFrom("127.0.0.1")
}

func (l *lab) connectFrom(source string) *wire {
	l.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: patience}
	c, err := d.Dial("tcp", l.Addr)
	if err != nil {
		l.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	l.Cleanup(func() { c.Close() })
	return &wire{l: l, Conn: c, r: bufio.NewReader(c)}
}

func (w *wire) send(s string) {
	w.l.Helper()
	s = strings.ReplaceAll(s, "$AUTH", proxytest.Auth(proxytest.ContainerID, w.l.Token))
	// The proxy may have refused and closed before all is written.
	if _, err := io.WriteString(w, s); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.l.Logf("send: %v", err)
	}
}

type answer struct {
	line   string
	status int
	header http.Header
	body   string
}

func (w *wire) response(method string) answer {
	w.l.Helper()
	res, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		w.l.Fatalf("no response: %v", err)
	}
	a := answer{line: res.Status, status: res.StatusCode, header: res.Header}
	if method == "CONNECT" && res.StatusCode == http.StatusOK || res.StatusCode == http.StatusSwitchingProtocols {
		return a
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.l.Fatalf("response body: %v", err)
	}
	a.body = string(b)
	return a
}

// closed expects the connection to end without another byte, by FIN or RST.
func (w *wire) closed() {
	w.l.Helper()
	b, err := w.r.ReadByte()
	switch {
	case err == nil:
		w.l.Errorf("got byte %q, want the connection closed", b)
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.l.Error("the connection was not closed")
	}
}

func (w *wire) expect(s string) {
	w.l.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(w.r, b); err != nil || string(b) != s {
		w.l.Errorf("got %q, %v; want %q", b, err, s)
	}
}

// origin records what it gets and answers each message head.
type origin struct {
	t    testing.TB
	ln   net.Listener
	addr string

	mu    sync.Mutex
	cond  sync.Cond
	got   bytes.Buffer
	conns int
	reply string
	// serve replaces the usual behaviour.
	serve func(c net.Conn, got func([]byte))
	wg    sync.WaitGroup
	open  []net.Conn
}

const okReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func newOrigin(t testing.TB) *origin {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{t: t, ln: ln, addr: ln.Addr().String(), reply: okReply}
	o.cond.L = &o.mu
	o.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns++
			o.open = append(o.open, c)
			serve := o.serve
			o.mu.Unlock()
			if serve == nil {
				serve = o.http
			}
			o.wg.Go(func() {
				defer c.Close()
				serve(c, o.record)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		o.mu.Lock()
		for _, c := range o.open {
			c.Close()
		}
		o.mu.Unlock()
		o.wg.Wait()
	})
	return o
}

func (o *origin) record(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got.Write(b)
	o.cond.Broadcast()
}

// http answers every empty line with the reply: enough for requests with and without body.
func (o *origin) http(c net.Conn, got func([]byte)) {
	buf := make([]byte, 32<<10)
	var seen []byte
	for {
		n, err := c.Read(buf)
		got(buf[:n])
		seen = append(seen, buf[:n]...)
		for {
			i := bytes.Index(seen, []byte("\r\n\r\n"))
			if i < 0 {
				break
			}
			seen = seen[i+4:]
			if bytes.HasPrefix(seen, []byte("\r\n")) || len(seen) > 0 && !bytes.Contains(seen, []byte("HTTP/1.1")) {
				seen = nil // a body
			}
			o.mu.Lock()
			reply := o.reply
			o.mu.Unlock()
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

var pseudonym = regexp.MustCompile(`sandbox-egress-[0-9a-f]{8}`)

func (o *origin) all() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return pseudonym.ReplaceAllString(o.got.String(), "sandbox-egress-X")
}

// wait blocks until the origin has got want.
func (o *origin) wait(want string) {
	o.t.Helper()
	deadline := time.Now().Add(patience)
	for !strings.Contains(o.all(), want) {
		if time.Now().After(deadline) {
			o.t.Errorf("the origin got %q, want %q in it", o.all(), want)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (o *origin) dials() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conns
}

func reply(s string) func(*lab) {
	return func(l *lab) {
		l.origin.mu.Lock()
		defer l.origin.mu.Unlock()
		l.origin.reply = s
	}
}

func serve(fn func(c net.Conn, got func([]byte))) func(*lab) {
	return func(l *lab) {
		l.origin.mu.Lock()
		defer l.origin.mu.Unlock()
		l.origin.serve = fn
	}
}

// echo records and sends back.
func echo(c net.Conn, got func([]byte)) {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		got(buf[:n])
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hello is the ClientHello that crypto/tls sends for a server name; "" sends none.
func hello(name string) string {
	helloMu.Lock()
	defer helloMu.Unlock()
	if h, ok := hellos[name]; ok {
		return h
	}
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}).Handshake()
		client.Close()
	}()
	defer server.Close()
	head := make([]byte, 5)
	_, err1 := io.ReadFull(server, head)
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	_, err2 := io.ReadFull(server, body)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // crypto/tls did not send a ClientHello
	}
	hellos[name] = string(head) + string(body)
	return hellos[name]
}

var (
	helloMu sync.Mutex
	hellos  = map[string]string{}
)

// splitRecords cuts a one-record ClientHello into records of n bytes.
func splitRecords(h string, n int) string {
	var out strings.Builder
	for body := h[5:]; len(body) > 0; {
		k := min(n, len(body))
		out.WriteString(h[:3])
		out.WriteByte(byte(k >> 8))
		out.WriteByte(byte(k))
		out.WriteString(body[:k])
		body = body[k:]
	}
	return out.String()
}

// forge makes a token from raw header and claims, signed with key when it is not nil.
func forge(key *ecdsa.PrivateKey, header, claims map[string]any) string {
	h, err1 := json.Marshal(header)
	c, err2 := json.Marshal(claims)
	if err := errors.Join(err1, err2); err != nil {
		panic(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	signed := enc(h) + "." + enc(c)
	if key == nil {
		return signed + "."
	}
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + enc(append(pad32(r), pad32(s)...))
}

func pad32(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

// goodClaims are claims that the proxy accepts; without leaves some out.
func goodClaims(change map[string]any, without ...string) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": "secure-egress-control", "aud": []string{"egress-proxy"}, "iat": now, "nbf": now, "exp": now + 3600, "jti": "j",
		"container_id": proxytest.ContainerID, "organization_uuid": "o", "egress_policy": proxytest.Ref,
		"is_hipaa_regulated": "false", "use_egress_gateway": "false", "enforce_container_binding": "true", "enforce_centralized_egress": "false",
	}
	for k, v := range change {
		c[k] = v
	}
	for _, k := range without {
		delete(c, k)
	}
	return c
}

func basic(userpass string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(userpass)) + "\r\n"
}
