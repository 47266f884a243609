package proxycmd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
)

// Main runs egress-proxy and returns its exit code: 0 after an orderly end, 1 after a
// failure, 2 for wrong flags. sources are the values of --policy-source besides "file".
func Main(version string, args []string, stdout, stderr io.Writer, sources map[string]SourceFactory) int {
	var o options
	fs := pflag.NewFlagSet("egress-proxy", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(stderr)
	o.addFlags(fs)
	for _, name := range sourceNames(sources)[1:] {
		sources[name].AddFlags(fs)
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(stderr, "egress-proxy:", err)
		return 2
	}
	if o.version {
		fmt.Fprintln(stdout, version)
		return 0
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "egress-proxy: unexpected argument %q; see --help\n", fs.Arg(0))
		return 2
	}
	s, err := o.check(fs, sources)
	if err != nil {
		fmt.Fprintf(stderr, "egress-proxy: wrong flags; see --help\n%v\n", err)
		return 2
	}
	floor := heapFloor()
	defer runtime.KeepAlive(floor)
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: s.level}))
	log.Info("egress-proxy starts", "version", version)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(signals)
	defer signal.Stop(hup)
	if err := run(context.Background(), s, sources, stdout, log, signals, hup); err != nil {
		log.Error("egress-proxy ends", "error", err)
		return 1
	}
	return 0
}

func sourceNames(sources map[string]SourceFactory) []string {
	names := make([]string, 0, len(sources)+1)
	for n := range sources {
		names = append(names, n)
	}
	slices.Sort(names)
	return append([]string{SourceFile}, names...)
}

// run serves until a signal or a failure.
func run(parent context.Context, s *settings, sources map[string]SourceFactory, stdout io.Writer, log *slog.Logger, signals, hup <-chan os.Signal) error {
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	reload, err := newReloader(log, reg)
	if err != nil {
		return err
	}
	source, denials, err := s.source(sources, log, reload)
	if err != nil {
		return err
	}
	tlsConfig, err := s.tls(reload)
	if err != nil {
		return err
	}
	listeners, err := s.openListeners(parent)
	if err != nil {
		return err
	}
	defer listeners.close()

	store := &policy.Store{}
	records := audit.NewLog(stdout)
	server, err := proxy.New(proxy.Options{
		Store: store, Audit: records, Denials: denials, Registerer: reg, Log: log,
		FirstUse: s.policySource == SourceFile && s.binding == bindFirstUse, OwnAddresses: s.own, TrustedProxies: s.trusted, TLS: tlsConfig,
		MaxConns: s.connectionLimit(log), MaxConnsPerSource: s.maxConnsPerSource,
		HeaderTimeout: s.headerTimeout, HelloTimeout: s.helloTimeout, KeepAliveTimeout: s.keepAliveTimeout,
		IdleTimeout: s.idleTimeout, DialTimeout: s.dialTimeout, DNSTTL: s.dnsTTL, DNSNegativeTTL: s.dnsNegativeTTL,
	})
	if err != nil {
		return err
	}
	defer func() { _ = records.Close() }() // after server.Close, which still writes; a write error has ended run already
	defer server.Close()
	if err := s.upstreamCredentials(server, reload); err != nil {
		return err
	}
	server.SetOwn(listeners.addrs()...)

	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var draining atomic.Bool
	ready := func() string {
		switch {
		case draining.Load():
			return "shutting down"
		case !store.Ready():
			return "policy not read yet"
		case records.Err() != nil:
			return "audit log failed"
		}
		return ""
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := source.Run(ctx, store); err != nil {
			return fmt.Errorf("policy source %s: %w", s.policySource, err)
		}
		return nil
	})
	g.Go(func() error { reload.run(ctx, hup); return nil })
	g.Go(func() error {
		stop := context.AfterFunc(ctx, func() { _ = listeners.proxy.Close() })
		defer stop()
		return server.Serve(listeners.proxy) //nolint:contextcheck // the server has its own lifetime: it drains after ctx
	})
	if listeners.admin != nil {
		g.Go(func() error { return serveHTTP(ctx, listeners.admin, adminHandler(reg, ready)) })
	}
	if listeners.pprof != nil {
		g.Go(func() error { return serveHTTP(ctx, listeners.pprof, pprofHandler()) })
	}
	if listeners.canary != nil {
		g.Go(func() error { return serveCanary(ctx, listeners.canary) })
	}
	g.Go(func() error {
		select {
		case <-records.Done():
			return fmt.Errorf("the audit log cannot be written, and the proxy does not work unseen: %w", records.Err())
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		defer cancel()
		select {
		case <-ctx.Done():
			return nil
		case sig := <-signals:
			log.Info("shutting down", "signal", sig.String(), "delay", s.drainDelay.String(), "timeout", s.drainTimeout.String(), "flows", server.Flows())
		}
		draining.Store(true)
		s.drain(ctx, server, signals, log)
		return nil
	})
	log.Info("egress-proxy serves", append(listeners.attrs(), "tls", tlsConfig != nil, "policySource", s.policySource)...)
	return g.Wait()
}

// drain keeps serving for the delay, in which load balancers notice that this replica is
// not ready, and then lets what runs end. A second signal cuts it short.
func (s *settings) drain(ctx context.Context, server *proxy.Server, signals <-chan os.Signal, log *slog.Logger) {
	select {
	case <-time.After(s.drainDelay):
	case <-signals:
		return
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.drainTimeout)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("connections were cut at the end of the drain timeout", "flows", server.Flows())
	}
}

func (s *settings) source(sources map[string]SourceFactory, log *slog.Logger, reload *reloader) (policy.Source, audit.Sink, error) {
	if s.policySource == SourceFile {
		return &fileSource{s: s, log: log, reload: reload}, nil, nil
	}
	source, denials, err := sources[s.policySource].New(log)
	if err != nil {
		return nil, nil, fmt.Errorf("--policy-source=%s: %w", s.policySource, err)
	}
	return source, denials, nil
}

func (s *settings) tls(reload *reloader) (*tls.Config, error) {
	if s.tlsCert == "" {
		return nil, nil
	}
	var cert atomic.Pointer[tls.Certificate]
	load := func() error {
		c, err := tls.LoadX509KeyPair(s.tlsCert, s.tlsKey)
		if err != nil {
			return fmt.Errorf("--tls-cert-file, --tls-key-file: %w", err)
		}
		cert.Store(&c)
		return nil
	}
	if err := load(); err != nil {
		return nil, err
	}
	reload.add("tls", load, s.tlsCert, s.tlsKey)
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert.Load(), nil },
	}, nil
}

func (s *settings) upstreamCredentials(server *proxy.Server, reload *reloader) error {
	if s.upstreamAuth == "" {
		return nil
	}
	user, pass := filepath.Join(s.upstreamAuth, "username"), filepath.Join(s.upstreamAuth, "password")
	load := func() error {
		u, err := os.ReadFile(user)
		if err != nil {
			return fmt.Errorf("--upstream-credentials: %w", err)
		}
		p, err := os.ReadFile(pass)
		if err != nil {
			return fmt.Errorf("--upstream-credentials: %w", err)
		}
		return server.SetUpstreamCredentials(strings.TrimRight(string(u), "\r\n"), strings.TrimRight(string(p), "\r\n"))
	}
	if err := load(); err != nil {
		return err
	}
	reload.add("upstream-credentials", load, user, pass)
	return nil
}

// connectionLimit leaves two descriptors for each connection and some for the rest.
func (s *settings) connectionLimit(log *slog.Logger) int {
	limit := s.maxConns
	descriptors := 1 << 20
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err == nil && r.Cur < 1<<20 {
		descriptors = int(r.Cur) //nolint:gosec // below 1<<20
	}
	fit := max((descriptors-128)/2, 16)
	switch {
	case limit == 0:
		limit = min(fit, 65536)
	case limit > fit:
		log.Warn("--max-connections is more than the file descriptor limit allows", "asked", limit, "used", fit, "descriptors", descriptors)
		limit = fit
	}
	return limit
}

// listenerSet are the open ports; those that are off are nil.
type listenerSet struct{ proxy, admin, canary, pprof net.Listener }

func (s *settings) openListeners(ctx context.Context) (*listenerSet, error) {
	l := &listenerSet{}
	// Keep-alive is turned on by the sweeper for connections that live long enough.
	clientFirst := net.ListenConfig{KeepAlive: -1, Control: deferAccept}
	plain := net.ListenConfig{KeepAlive: -1}
	for _, p := range []struct {
		flag, addr string
		config     net.ListenConfig
		ln         *net.Listener
	}{
		{"listen", s.listen, clientFirst, &l.proxy}, {"admin-listen", s.adminListen, plain, &l.admin},
		{"canary-listen", s.canaryListen, plain, &l.canary}, {"pprof-listen", s.pprofListen, plain, &l.pprof},
	} {
		if p.addr == "" {
			continue
		}
		ln, err := p.config.Listen(ctx, "tcp", p.addr)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("--%s: %w", p.flag, err)
		}
		*p.ln = ln
	}
	return l, nil
}

// openPort is a listener and the flag that opened it.
type openPort struct {
	flag string
	net.Listener
}

func (l *listenerSet) all() (out []openPort) {
	for _, p := range []openPort{{"listen", l.proxy}, {"admin-listen", l.admin}, {"canary-listen", l.canary}, {"pprof-listen", l.pprof}} {
		if p.Listener != nil {
			out = append(out, p)
		}
	}
	return out
}

func (l *listenerSet) addrs() (out []net.Addr) {
	for _, ln := range l.all() {
		out = append(out, ln.Addr())
	}
	return out
}

// attrs names each open port by its flag, for the log: with port 0 the kernel chose it.
func (l *listenerSet) attrs() (out []any) {
	for _, p := range l.all() {
		out = append(out, p.flag, p.Addr().String())
	}
	return out
}

func (l *listenerSet) close() {
	for _, ln := range l.all() {
		_ = ln.Close()
	}
}
