// Package proxycmd is the egress-proxy command: flags, files, listeners, signals. What it
// does to a request is in internal/proxy.
package proxycmd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// SourceFactory makes a policy source other than files; see Main.
type SourceFactory interface {
	// AddFlags registers the source's own flags.
	AddFlags(fs *pflag.FlagSet)
	// New is called once when --policy-source names this factory. denials, when not nil,
	// gets every denial; its Write must not block.
	New(log *slog.Logger) (source policy.Source, denials audit.Sink, err error)
}

// SourceFile is the built-in value of --policy-source.
const SourceFile = "file"

// Values of --binding.
const (
	bindFirstUse = "first-use"
	bindFile     = "file"
	bindOff      = "off"
)

type options struct {
	listen, adminListen, canaryListen, pprofListen string

	policySource string
	jwksFile     string
	manifest     string
	allow        []string
	privateNets  []string
	binding      string
	bindingFile  string
	limits       policy.Limits

	upstream     string
	upstreamAuth string

	tlsCert, tlsKey string
	trustedProxies  []string
	ownAddresses    []string

	maxConns, maxConnsPerSource int
	headerTimeout               time.Duration
	helloTimeout                time.Duration
	keepAliveTimeout            time.Duration
	idleTimeout                 time.Duration
	dialTimeout                 time.Duration
	dnsTTL, dnsNegativeTTL      time.Duration

	drainDelay, drainTimeout time.Duration
	logLevel                 string
	version                  bool
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.listen, "listen", ":8443", "address of the proxy listener")
	fs.StringVar(&o.adminListen, "admin-listen", ":9901", "address for /healthz, /readyz and /metrics; empty turns it off")
	fs.StringVar(&o.canaryListen, "canary-listen", "", "address of the canary, a port that no NetworkPolicy may let a sandbox reach; empty turns it off")
	fs.StringVar(&o.pprofListen, "pprof-listen", "", "loopback address for /debug/pprof/; empty turns it off")

	fs.StringVar(&o.policySource, "policy-source", SourceFile, "where policies, pods and keys come from")
	fs.StringVar(&o.jwksFile, "jwks-file", "", "public keys that verify tokens (JWK Set)")
	fs.StringVar(&o.manifest, "manifest", "", "SandboxEgress manifest that every token is held to; without it the token's allowed_hosts decide")
	fs.StringArrayVar(&o.allow, "allow", nil, "host pattern that every token is held to, instead of --manifest; may be repeated")
	fs.StringArrayVar(&o.privateNets, "private-network", nil, "private address range that may be dialled; may be repeated; not with --manifest")
	fs.StringVar(&o.binding, "binding", bindFirstUse, "what a token is bound to: first-use, file, or off")
	fs.StringVar(&o.bindingFile, "binding-file", "", "YAML or JSON file for --binding=file: container_id to list of source addresses")
	fs.IntVar(&o.limits.Connections, "limit-connections", 256, "requests and tunnels in flight per container; 0 for no limit; not with --manifest")
	fs.Int64Var(&o.limits.RequestsPerSecond, "limit-requests-per-second", 200, "requests per second per container; 0 for no limit; not with --manifest")
	fs.Int64Var(&o.limits.BytesPerSecond, "limit-bytes-per-second", 0, "bytes per second per container, both directions; 0 for no limit; not with --manifest")

	fs.StringVar(&o.upstream, "upstream", "", "HTTP proxy that all connections go through, http://host:port; not with --manifest")
	fs.StringVar(&o.upstreamAuth, "upstream-credentials", "", "directory with the files username and password for the upstream proxy, such as a mounted Secret")

	fs.StringVar(&o.tlsCert, "tls-cert-file", "", "certificate chain; with it the listener speaks TLS, HTTP/2 and HTTP/1.1")
	fs.StringVar(&o.tlsKey, "tls-key-file", "", "private key of --tls-cert-file")
	fs.StringArrayVar(&o.trustedProxies, "proxy-protocol-from", nil, "address range of load balancers that put a PROXY protocol header (v1 or v2) before each connection; may be repeated")
	fs.StringArrayVar(&o.ownAddresses, "own-address", nil, "further host:port of this proxy, such as its Service's, that requests must not lead to; may be repeated")

	fs.IntVar(&o.maxConns, "max-connections", 0, "client connections; accepting pauses above; 0 derives it from the file descriptor limit")
	fs.IntVar(&o.maxConnsPerSource, "max-connections-per-source", 2048, "client connections per source address")
	fs.DurationVar(&o.headerTimeout, "header-timeout", 10*time.Second, "time for a request's header")
	fs.DurationVar(&o.helloTimeout, "client-hello-timeout", 10*time.Second, "time for the TLS ClientHello in a tunnel to port 443")
	fs.DurationVar(&o.keepAliveTimeout, "keep-alive-timeout", 2*time.Minute, "time between two requests of a connection")
	fs.DurationVar(&o.idleTimeout, "idle-timeout", time.Hour, "time without a byte after which a request or tunnel is closed")
	fs.DurationVar(&o.dialTimeout, "dial-timeout", 10*time.Second, "time to resolve and connect")
	fs.DurationVar(&o.dnsTTL, "dns-ttl", 5*time.Second, "how long a DNS answer is used")
	fs.DurationVar(&o.dnsNegativeTTL, "dns-negative-ttl", time.Second, "how long a failed DNS lookup is remembered")

	fs.DurationVar(&o.drainDelay, "drain-delay", 5*time.Second, "after SIGTERM: how long new connections are still served while not ready")
	fs.DurationVar(&o.drainTimeout, "drain-timeout", 30*time.Second, "after the drain delay: how long what runs may go on")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; the log is on stderr, the audit log on stdout")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
}

// settings are the options in the types that they are used in.
type settings struct {
	options
	private  []netip.Prefix
	trusted  []netip.Prefix
	own      []netip.AddrPort
	upstream *policy.Upstream
	level    slog.Level
}

// check reads and checks the options; the error names every wrong flag.
func (o *options) check(fs *pflag.FlagSet, sources map[string]SourceFactory) (*settings, error) {
	s := &settings{options: *o}
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	prefixes := func(flag string, in []string) (out []netip.Prefix) {
		for _, v := range in {
			p, err := netip.ParsePrefix(v)
			if err != nil {
				bad(flag, "%q is not an address range such as 10.20.0.0/16", v)
				continue
			}
			out = append(out, p.Masked())
		}
		return out
	}
	s.private = prefixes("private-network", o.privateNets)
	s.trusted = prefixes("proxy-protocol-from", o.trustedProxies)
	for _, v := range o.ownAddresses {
		ap, err := netip.ParseAddrPort(v)
		if err != nil {
			bad("own-address", "%q is not address:port", v)
			continue
		}
		s.own = append(s.own, ap)
	}
	if err := s.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		bad("log-level", "%q is not debug, info, warn or error", o.logLevel)
	}
	s.checkListeners(bad)
	s.checkNumbers(bad)
	if (o.tlsCert == "") != (o.tlsKey == "") {
		bad("tls-cert-file", "must come together with --tls-key-file")
	}
	if o.policySource == SourceFile {
		s.checkFileSource(fs, bad)
	} else {
		if _, ok := sources[o.policySource]; !ok {
			bad("policy-source", "%q is not known; one of %s", o.policySource, strings.Join(sourceNames(sources), ", "))
		}
		for _, name := range fileSourceFlags {
			if fs.Changed(name) {
				bad(name, "is only for --policy-source=file")
			}
		}
	}
	return s, errors.Join(errs...)
}

// fileSourceFlags mean nothing to another source, which has all this from its policies.
var fileSourceFlags = []string{"jwks-file", "manifest", "allow", "private-network", "binding", "binding-file", "limit-connections", "limit-requests-per-second", "limit-bytes-per-second", "upstream"}

// manifestFlags are what a manifest says itself.
var manifestFlags = []string{"allow", "private-network", "limit-connections", "limit-requests-per-second", "limit-bytes-per-second", "upstream"}

func (s *settings) checkFileSource(fs *pflag.FlagSet, bad func(flag, format string, args ...any)) {
	if s.jwksFile == "" {
		bad("jwks-file", "is required; make one with: egressctl keygen --out k.pem --jwks jwks.json")
	}
	if s.manifest != "" {
		for _, name := range manifestFlags {
			if fs.Changed(name) {
				bad(name, "cannot be combined with --manifest, which says it itself")
			}
		}
	}
	switch s.binding {
	case bindFirstUse, bindOff:
		if s.bindingFile != "" {
			bad("binding-file", "needs --binding=file")
		}
	case bindFile:
		if s.bindingFile == "" {
			bad("binding", "file needs --binding-file")
		}
	default:
		bad("binding", "%q is not first-use, file or off", s.binding)
	}
	if s.options.upstream != "" {
		up, err := parseUpstream(s.options.upstream)
		if err != nil {
			bad("upstream", "%v", err)
		}
		s.upstream = up
	}
}

func (s *settings) checkListeners(bad func(flag, format string, args ...any)) {
	for flag, v := range map[string]string{"listen": s.listen, "admin-listen": s.adminListen, "canary-listen": s.canaryListen, "pprof-listen": s.pprofListen} {
		if v == "" && flag != "listen" {
			continue
		}
		host, _, err := net.SplitHostPort(v)
		if err != nil {
			bad(flag, "%q is not host:port or :port", v)
			continue
		}
		if flag == "pprof-listen" {
			if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
				bad(flag, "%q: profiles show memory contents, so the address must be a loopback one such as 127.0.0.1:6060", v)
			}
		}
	}
}

func (s *settings) checkNumbers(bad func(flag, format string, args ...any)) {
	for flag, v := range map[string]int64{
		"limit-connections": int64(s.limits.Connections), "limit-requests-per-second": s.limits.RequestsPerSecond,
		"limit-bytes-per-second": s.limits.BytesPerSecond, "max-connections": int64(s.maxConns),
		"drain-delay": int64(s.drainDelay), "drain-timeout": int64(s.drainTimeout),
	} {
		if v < 0 {
			bad(flag, "must not be negative")
		}
	}
	for flag, v := range map[string]int64{
		"max-connections-per-source": int64(s.maxConnsPerSource), "header-timeout": int64(s.headerTimeout), "client-hello-timeout": int64(s.helloTimeout),
		"keep-alive-timeout": int64(s.keepAliveTimeout), "idle-timeout": int64(s.idleTimeout), "dial-timeout": int64(s.dialTimeout),
		"dns-ttl": int64(s.dnsTTL), "dns-negative-ttl": int64(s.dnsNegativeTTL),
	} {
		if v <= 0 {
			bad(flag, "must be greater than 0")
		}
	}
}
