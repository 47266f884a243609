package internet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addresses(r Record) []string {
	var all []string
	for _, a := range r.Addresses {
		all = append(all, a.String())
	}
	return all
}

func TestLookup(t *testing.T) {
	zone := NewZone(DefaultRecords())
	tests := map[string]struct {
		name   string
		v6     bool
		want   []string
		exists bool
	}{
		"a record":                    {"allowed.example", false, []string{SiteA}, true},
		"case and trailing dot":       {"ALLOWED.Example.", false, []string{SiteA}, true},
		"below a wildcard":            {"a.b.example.com", false, []string{SiteA}, true},
		"a record beats its wildcard": {"api.example.com", false, []string{SiteA}, true},
		"a wildcard is not its zone":  {"example.net", false, nil, false},
		"no such name":                {"nowhere.example", false, nil, false},
		"no IPv6 address":             {"allowed.example", true, nil, true},
		"mapped address only as AAAA": {"mapped.example", true, []string{"::ffff:169.254.169.254"}, true},
		"mapped address not as A":     {"mapped.example", false, nil, true},
		"allowed beside forbidden":    {"mixed.example", false, []string{SiteA, "10.88.0.1"}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, exists := zone.Lookup(test.name, test.v6)
			if !slices.Equal(addresses(got), test.want) || exists != test.exists {
				t.Errorf("got %v, %v", addresses(got), exists)
			}
		})
	}
}

func TestRebindingNameAlternates(t *testing.T) {
	zone := NewZone(DefaultRecords())
	for i, want := range []string{SiteA, "10.96.0.1", SiteA} {
		// A query for IPv6 in between must not use up a turn.
		zone.Lookup("rebind.example", true)
		got, _ := zone.Lookup("rebind.example", false)
		if !slices.Equal(addresses(got), []string{want}) {
			t.Errorf("query %d: %v, want %s", i, addresses(got), want)
		}
	}
}

func TestZoneChanges(t *testing.T) {
	zone := NewZone(nil)
	zone.Set("New.Example.", to(SiteB))
	if got, ok := zone.Lookup("new.example", false); !ok || !slices.Equal(addresses(got), []string{SiteB}) {
		t.Errorf("after Set: %v, %v", got, ok)
	}
	zone.Remove("new.example")
	if _, ok := zone.Lookup("new.example", false); ok {
		t.Error("after Remove it still exists")
	}
}

// portOffset keeps clear of ephemeral ports and of privileged ones.
const portOffset = 21000

func port(n int) string { return strconv.Itoa(n + portOffset) }

// start runs the servers on loopback addresses.
func start(t *testing.T) (*Client, *pki.Authority) {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.NewAuthority("internet of the test")
	if err != nil {
		t.Fatal(err)
	}
	log, err := OpenLog(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	config := Config{
		Authority: authority, Log: log, Zone: NewZone(DefaultRecords()),
		Control: filepath.Join(dir, "control"), Hosts: []string{"127.77.0.1"}, Resolvers: []string{"127.77.0.53"},
		PortOffset: portOffset,
	}
	go func() { done <- Serve(ctx, config, func() error { close(ready); return nil }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return &Client{LogPath: filepath.Join(dir, "log"), Control: config.Control}, authority
}

func TestServersAnswerAndLog(t *testing.T) {
	client, authority := start(t)
	ctx, since := t.Context(), time.Now().Add(-time.Second)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM)
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, p, _ := net.SplitHostPort(address)
			n, err := strconv.Atoi(p)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.77.0.1:"+port(n))
		},
	}
	web := &http.Client{Transport: transport}
	for _, url := range []string{"http://allowed.example/a", "https://any.name.example/b"} {
		response, err := web.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "sandbox-egress test origin: GET ") {
			t.Errorf("%s: %q, %v", url, body, err)
		}
	}

	for network, n := range map[string]int{"tcp": 5432, "udp": 7} {
		conn, err := net.Dial(network, "127.77.0.1:"+port(n))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 8)
		if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "ping" {
			t.Errorf("%s echo: %q, %v", network, buffer[:n], err)
		}
		conn.Close()
	}

	tests := map[string]struct {
		kind  uint16
		rcode int
		want  string
	}{
		"allowed.example.":  {dns.TypeA, dns.RcodeSuccess, SiteA},
		"mapped.example.":   {dns.TypeAAAA, dns.RcodeSuccess, "169.254.169.254"},
		"nowhere.example.":  {dns.TypeA, dns.RcodeNameError, ""},
		"servfail.example.": {dns.TypeA, dns.RcodeServerFailure, ""},
		"example.com.":      {dns.TypeMX, dns.RcodeSuccess, ""},
	}
	for _, network := range []string{"udp", "tcp"} {
		for name, test := range tests {
			query := new(dns.Msg).SetQuestion(name, test.kind)
			reply, _, err := (&dns.Client{Net: network}).ExchangeContext(ctx, query, "127.77.0.53:"+port(53))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(reply.Answer) > 0 {
				got = reply.Answer[0].String()
			}
			if reply.Rcode != test.rcode || !strings.HasSuffix(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("%s %s: %s %q", network, name, dns.RcodeToString[reply.Rcode], got)
			}
		}
	}

	seen := map[string]bool{}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		events, err := client.Events(since)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			seen[strings.TrimSpace(string(e.Kind)+" "+e.Server+" "+e.Host+e.URI+e.SNI+e.Name)] = true
		}
		if seen["tcp 127.77.0.1:"+port(5432)] {
			break
		}
	}
	for _, want := range []string{
		"connect 127.77.0.1:" + port(80), "http 127.77.0.1:" + port(80) + " allowed.example/a",
		"http 127.77.0.1:" + port(443) + " any.name.example/bany.name.example",
		"tcp 127.77.0.1:" + port(5432), "udp 127.77.0.1:" + port(7), "dns 127.77.0.53:" + port(53) + " nowhere.example.",
	} {
		if !seen[want] {
			t.Errorf("the log lacks %q; it has %v", want, seen)
		}
	}

	record := Record{Addresses: []netip.Addr{netip.MustParseAddr(SiteC)}}
	if err := client.SetRecord(ctx, "nowhere.example", record); err != nil {
		t.Fatal(err)
	}
	ask := func() int {
		query := new(dns.Msg).SetQuestion("nowhere.example.", dns.TypeA)
		reply, _, err := (&dns.Client{}).ExchangeContext(ctx, query, "127.77.0.53:"+port(53))
		if err != nil {
			t.Fatal(err)
		}
		return reply.Rcode
	}
	if got := ask(); got != dns.RcodeSuccess {
		t.Errorf("after SetRecord: %s", dns.RcodeToString[got])
	}
	if err := client.RemoveRecord(ctx, "nowhere.example"); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != dns.RcodeNameError {
		t.Errorf("after RemoveRecord: %s", dns.RcodeToString[got])
	}
}

func site(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(Handler(log, "/nonexistent", t.TempDir()))
	t.Cleanup(func() {
		server.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, path
}

func TestSite(t *testing.T) {
	server, _ := site(t)
	tests := map[string]struct {
		path   string
		status int
		want   func(string) bool
	}{
		"bytes":              {"/bytes/1000", 200, func(s string) bool { return len(s) == 1000 }},
		"bytes, too many":    {"/bytes/99999999999", 400, func(s string) bool { return strings.Contains(s, "n must be") }},
		"bytes, no number":   {"/bytes/x", 400, func(s string) bool { return strings.Contains(s, "n must be") }},
		"status":             {"/status/418", 418, func(s string) bool { return s == "" }},
		"status, impossible": {"/status/1", 400, func(s string) bool { return strings.Contains(s, "200..599") }},
		"stream":             {"/stream?lines=3&interval=1ms", 200, func(s string) bool { return strings.Count(s, "\n") == 3 }},
		"stream, bad":        {"/stream?lines=-1", 400, func(s string) bool { return strings.Contains(s, "N at least 0") }},
		"slow":               {"/slow?delay=1ms", 200, func(s string) bool { return s == "after 1ms\n" }},
		"slow, bad":          {"/slow?delay=soon", 400, func(s string) bool { return strings.Contains(s, "invalid duration") }},
		"anything":           {"/v1/x?y=z", 200, func(s string) bool { return strings.HasSuffix(s, " /v1/x\n") }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			response, err := http.Get(server.URL + test.path)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.status || !test.want(string(body)) {
				t.Errorf("%d %.100q, %v", response.StatusCode, body, err)
			}
		})
	}
}

func TestSiteShowsTheRequestAsItArrived(t *testing.T) {
	server, path := site(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/headers?q=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Proxy-Authorization", "Basic leaked")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got struct {
		Method, URI string
		Header      http.Header
	}
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Method != http.MethodPost || got.URI != "/headers?q=1" || got.Header.Get("Proxy-Authorization") != "Basic leaked" {
		t.Errorf("got %+v", got)
	}
	events, err := ReadEvents(path, time.Time{})
	if err != nil || len(events) != 1 || events[0].Header.Get("Proxy-Authorization") != "Basic leaked" {
		t.Errorf("log: %+v, %v", events, err)
	}
}

func TestWebSocketEchoes(t *testing.T) {
	server, _ := site(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, server.URL+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if kind, got, err := conn.Read(ctx); err != nil || kind != websocket.MessageText || string(got) != "hello" {
		t.Errorf("%v %q, %v", kind, got, err)
	}
}

func TestReadEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if events, err := ReadEvents(path, time.Time{}); err != nil || len(events) != 0 {
		t.Errorf("a log that does not exist: %v, %v", events, err)
	}
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	log.now = func() time.Time { now = now.Add(time.Second); return now }
	for _, name := range []string{"first", "second"} {
		if err := log.Add(Event{Kind: KindDNS, Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	events, err := ReadEvents(path, now.Add(-time.Second))
	if err != nil || len(events) != 1 || events[0].Name != "second" {
		t.Errorf("since the first: %v, %v", events, err)
	}

	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	unfinished := append(bytes.Clone(content), `{"kind":"ht`...)
	if err := os.WriteFile(path, unfinished, 0o644); err != nil {
		t.Fatal(err)
	}
	if events, err := ReadEvents(path, time.Time{}); err != nil || len(events) != 2 {
		t.Errorf("with an unfinished line: %v, %v", events, err)
	}
	if err := os.WriteFile(path, append(unfinished, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEvents(path, time.Time{}); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("with a broken line: %v", err)
	}
}

func TestControlRefusesUnknownFields(t *testing.T) {
	server := httptest.NewServer(controlHandler(NewZone(nil)))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL+"/records/x.example", strings.NewReader(`{"address":["192.0.2.1"]}`))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("got %s", response.Status)
	}
}
