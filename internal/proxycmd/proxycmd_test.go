package proxycmd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, args ...string) (*settings, error) {
	t.Helper()
	var o options
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o.check(fs, nil)
}

func TestWrongFlagsAreNamed(t *testing.T) {
	good := []string{"--jwks-file=x"}
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no keys":                      {nil, []string{"--jwks-file", "egressctl keygen"}},
		"unknown source":               {[]string{"--policy-source=etcd"}, []string{"--policy-source", "etcd", "file"}},
		"bad listen address":           {append(good, "--listen=8443"), []string{"--listen"}},
		"pprof on all interfaces":      {append(good, "--pprof-listen=:6060"), []string{"--pprof-listen", "loopback"}},
		"pprof on a name":              {append(good, "--pprof-listen=localhost:6060"), []string{"--pprof-listen"}},
		"bad range":                    {append(good, "--private-network=10.0.0.0"), []string{"--private-network", "10.0.0.0"}},
		"bad trusted range":            {append(good, "--proxy-protocol-from=x"), []string{"--proxy-protocol-from"}},
		"bad own address":              {append(good, "--own-address=x:1"), []string{"--own-address"}},
		"binding":                      {append(good, "--binding=maybe"), []string{"--binding", "maybe"}},
		"binding file missing":         {append(good, "--binding=file"), []string{"--binding-file"}},
		"binding file without binding": {append(good, "--binding-file=x"), []string{"--binding-file"}},
		"manifest with flags":          {append(good, "--manifest=m", "--allow=a.example", "--private-network=10.0.0.0/8", "--limit-connections=1"), []string{"--allow", "--private-network", "--limit-connections"}},
		"certificate without key":      {append(good, "--tls-cert-file=c"), []string{"--tls-cert-file", "--tls-key-file"}},
		"negative limit":               {append(good, "--limit-connections=-1"), []string{"--limit-connections"}},
		"zero timeout":                 {append(good, "--header-timeout=0"), []string{"--header-timeout"}},
		"upstream with credentials":    {append(good, "--upstream=http://u:p@x:1"), []string{"--upstream"}},
		"upstream over https":          {append(good, "--upstream=https://x:1"), []string{"--upstream"}},
		"log level":                    {append(good, "--log-level=loud"), []string{"--log-level"}},
		"all of them at once":          {[]string{"--listen=x", "--binding=y", "--log-level=z"}, []string{"--listen", "--binding", "--log-level", "--jwks-file"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, tc.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not name %s", err, want)
				}
			}
		})
	}
}

func TestMainExitCodes(t *testing.T) {
	var out, errs bytes.Buffer
	if code := Main("v1.2.3", []string{"--no-such-flag"}, &out, &errs, nil); code != 2 {
		t.Errorf("unknown flag: exit %d", code)
	}
	if code := Main("v1.2.3", []string{"surplus"}, &out, &errs, nil); code != 2 {
		t.Errorf("surplus argument: exit %d", code)
	}
	if code := Main("v1.2.3", nil, &out, &errs, nil); code != 2 || !strings.Contains(errs.String(), "--jwks-file") {
		t.Errorf("no flags: exit %d, %s", code, errs.String())
	}
	if code := Main("v1.2.3", []string{"--version"}, &out, &errs, nil); code != 0 || out.String() != "v1.2.3\n" {
		t.Errorf("--version: exit %d, %q", code, out.String())
	}
	if code := Main("v1.2.3", []string{"--jwks-file=/does/not/exist", "--listen=127.0.0.1:0", "--admin-listen="}, &out, &errs, nil); code != 1 || !strings.Contains(errs.String(), "/does/not/exist") {
		t.Errorf("missing file: exit %d, %s", code, errs.String())
	}
}

// command is a running egress-proxy.
type command struct {
	t       *testing.T
	dir     string
	key     *token.SigningKey
	proxy   string
	admin   string
	canary  string
	signals chan os.Signal
	hup     chan os.Signal
	done    chan error
	log     *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, stdout io.Writer, args ...string) *command {
	t.Helper()
	c := &command{
		t: t, dir: t.TempDir(),
		signals: make(chan os.Signal, 2), hup: make(chan os.Signal, 1), done: make(chan error, 1), log: &lockedBuffer{},
	}
	var err error
	if c.key, err = token.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	c.writeKeys(c.key)
	args = append(args, "--jwks-file="+c.path("jwks.json"), "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--canary-listen=127.0.0.1:0", "--drain-timeout=5s")
	s, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c.done <- run(ctx, s, nil, stdout, slog.New(slog.NewTextHandler(c.log, nil)), c.signals, c.hup)
		close(c.done)
	}()
	t.Cleanup(func() {
		cancel()
		for range c.done { // until it is closed
		}
	})
	c.proxy, c.admin, c.canary = c.address("listen"), c.address("admin-listen"), c.address("canary-listen")
	return c
}

// address is that of a port that the kernel chose, from the log.
func (c *command) address(flag string) (addr string) {
	c.t.Helper()
	pattern := regexp.MustCompile(`egress-proxy serves".* ` + flag + `=(\S+)`)
	c.eventually("the address of --"+flag, func() bool {
		m := pattern.FindStringSubmatch(c.log.String())
		if m != nil {
			addr = m[1]
		}
		return m != nil
	})
	return addr
}

func (c *command) path(name string) string { return filepath.Join(c.dir, name) }

func (c *command) writeKeys(keys ...*token.SigningKey) {
	c.t.Helper()
	var pub []token.PublicKey
	for _, k := range keys {
		pub = append(pub, k.Public())
	}
	set, err := token.NewKeySet(pub...)
	if err != nil {
		c.t.Fatal(err)
	}
	data, err := set.MarshalJWKS()
	if err != nil {
		c.t.Fatal(err)
	}
	c.write("jwks.json", string(data))
}

func (c *command) write(name, content string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// get asks the admin listener.
func (c *command) get(path string) (int, string) {
	res, err := http.Get("http://" + c.admin + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// reason is the X-Deny-Reason for a CONNECT to target with a token for hosts.
func (c *command) reason(target string, hosts ...string) string {
	c.t.Helper()
	claims, err := token.NewClaims(token.MintOptions{Now: time.Now(), TTL: time.Hour, ContainerID: "c1", AllowedHosts: hosts, ContainerBinding: true})
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := c.key.Mint(claims)
	if err != nil {
		c.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", c.proxy)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(conn, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+proxytest.Auth("c1", raw)+"\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	return res.Header.Get("X-Deny-Reason")
}

func (c *command) eventually(what string, ok func() bool) {
	c.t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%s did not come; log:\n%s", what, c.log.String())
}

func (c *command) ready() {
	c.t.Helper()
	c.eventually("readiness", func() bool { code, _ := c.get("/readyz"); return code == 200 })
}

func TestStandaloneServesFromTheTokenAlone(t *testing.T) {
	audit := &lockedBuffer{}
	c := start(t, audit)
	c.ready()
	if got := c.reason("evil.example:443", "example.com"); got != "host_not_allowed" {
		t.Errorf("host off the token's list: %s", got)
	}
	// Loopback is never reached, whatever the token says: that is how allowed is told here.
	if got := c.reason("127.0.0.1:443", "127.0.0.1"); got != "address_not_allowed" {
		t.Errorf("host on the token's list: %s", got)
	}
	if got := c.reason("127.0.0.1:443"); got != "host_not_allowed" {
		t.Errorf("token without hosts: %s", got)
	}
	c.eventually("the audit log", func() bool { return strings.Count(audit.String(), "\n") == 3 })
	if code, body := c.get("/metrics"); code != 200 || !strings.Contains(body, `sandbox_egress_decisions_total{decision="deny",policy="standalone",reason="host_not_allowed"} 2`) {
		t.Errorf("metrics: %d\n%s", code, body)
	}
	if code, _ := c.get("/healthz"); code != 200 {
		t.Errorf("/healthz: %d", code)
	}
	if code, _ := c.get("/debug/pprof/"); code != 404 {
		t.Errorf("profiles on the admin port: %d", code)
	}
}

func TestCanaryListensAndSaysNothing(t *testing.T) {
	c := start(t, io.Discard)
	c.ready()
	conn, err := net.Dial("tcp", c.canary)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(conn); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q %v", b, err)
	}
}

const manifestHead = "apiVersion: egress.sandbox.dev/v1alpha1\nkind: SandboxEgress\nmetadata: {name: agents, namespace: team-a}\n"

func TestChangedManifestIsReloadedAndABrokenOneRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.yaml")
	write := func(spec string) {
		if err := os.WriteFile(path, []byte(manifestHead+"spec: "+spec+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{}")
	c := start(t, io.Discard, "--manifest="+path)
	c.ready()
	ask := func() string { return c.reason("127.0.0.1:443", "127.0.0.1") }
	if got := ask(); got != "host_not_allowed" {
		t.Fatalf("empty policy: %s", got)
	}
	write("{allowedHosts: ['127.0.0.1']}")
	c.eventually("the new policy", func() bool { return ask() == "address_not_allowed" })

	write("{allowedHosts: ['http://nonsense/']}")
	c.eventually("the refusal", func() bool {
		_, body := c.get("/metrics")
		return strings.Contains(body, `sandbox_egress_config_last_reload_successful{config="policy"} 0`)
	})
	if got := ask(); got != "address_not_allowed" {
		t.Errorf("a broken policy took the old one away: %s", got)
	}
	if !strings.Contains(c.log.String(), "spec.allowedHosts[0]") {
		t.Errorf("the log does not say what is wrong:\n%s", c.log.String())
	}
	if code, _ := c.get("/readyz"); code != 200 {
		t.Errorf("/readyz with a broken reload: %d", code)
	}
	write("{}")
	c.eventually("the repaired policy", func() bool { return ask() == "host_not_allowed" })
}

func TestKeysAreSwappedLikeAMountedConfigMap(t *testing.T) {
	c := start(t, io.Discard)
	c.ready()
	if got := c.reason("evil.example:443", "example.com"); got != "host_not_allowed" {
		t.Fatal(got)
	}
	other, err := token.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	// A new file under another name is renamed over the old one.
	set, _ := token.NewKeySet(other.Public())
	data, _ := set.MarshalJWKS()
	c.write("new", string(data))
	if err := os.Rename(c.path("new"), c.path("jwks.json")); err != nil {
		t.Fatal(err)
	}
	c.eventually("the new key", func() bool { return c.reason("evil.example:443", "example.com") == "token_unknown_key" })
}

func TestSIGHUPReloads(t *testing.T) {
	c := start(t, io.Discard)
	c.ready()
	c.hup <- syscall.SIGHUP
	c.eventually("the reload", func() bool {
		_, body := c.get("/metrics")
		return strings.Contains(body, `sandbox_egress_config_reloads_total{config="policy",result="applied"} 1`)
	})
}

func TestBindingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.yaml")
	if err := os.WriteFile(path, []byte("c1: [192.0.2.1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, io.Discard, "--binding=file", "--binding-file="+path)
	c.ready()
	if got := c.reason("127.0.0.1:443", "127.0.0.1"); got != "source_not_bound" {
		t.Errorf("from another address: %s", got)
	}
	if err := os.WriteFile(path, []byte("c1: [192.0.2.1, 127.0.0.1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.eventually("the new binding", func() bool { return c.reason("127.0.0.1:443", "127.0.0.1") == "address_not_allowed" })
}

func TestSIGTERMDrains(t *testing.T) {
	c := start(t, io.Discard, "--drain-delay=300ms")
	c.ready()
	c.signals <- syscall.SIGTERM
	c.eventually("unreadiness", func() bool { code, _ := c.get("/readyz"); return code == 503 })
	if got := c.reason("evil.example:443", "example.com"); got != "host_not_allowed" {
		t.Errorf("within the drain delay requests are still served: %s", got)
	}
	select {
	case err := <-c.done:
		if err != nil {
			t.Errorf("run ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("run did not end")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestProxyEndsWhenItsAuditLogCannotBeWritten(t *testing.T) {
	c := start(t, failing{})
	c.ready()
	c.reason("evil.example:443", "example.com")
	select {
	case err := <-c.done:
		if err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("run ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the proxy goes on without an audit log")
	}
}
