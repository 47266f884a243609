// Package proxy is the data plane: a forward proxy for clients that are not trusted. It
// knows policies, pods and keys only through policy.Store, and speaks HTTP/1.x with its own
// reader, so that what is checked is what was sent. One request's whole way is in
// connect.go (CONNECT) and forward.go (plain requests).
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// Options configure a Server. Zero values take the defaults named here.
type Options struct {
	// Store is required: policies, pods and keys in force.
	Store *policy.Store
	// Audit is required: every decision and close.
	Audit audit.Sink
	// Denials gets the denials among them besides, for whoever turns them into Events.
	// It is called on the request's way and must not block.
	Denials audit.Sink
	// Registerer takes the metrics; a registry of its own when nil.
	Registerer prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
	// Auth verifies tokens; a token.Verifier when nil.
	Auth Authenticator
	// Resolver looks names up; the pure Go resolver when nil.
	Resolver Resolver
	// Dial connects to checked addresses. Tests put their own here, to reach origins on
	// loopback, which the guard never opens; the egress-proxy binary has no flag for it.
	Dial DialFunc
	// FirstUse binds a container_id to the first source address where pods are not known.
	FirstUse bool
	// OwnAddresses are further addresses of this proxy, such as its Service's.
	OwnAddresses []netip.AddrPort
	// TrustedProxies put a PROXY protocol header before every connection.
	TrustedProxies []netip.Prefix
	// TLS, when set, is spoken on every listener, with HTTP/2 and HTTP/1.1.
	TLS *tls.Config

	MaxConns          int           // 16384
	MaxConnsPerSource int           // 2048
	HeaderTimeout     time.Duration // 10 s: from the first byte to the end of a head
	HelloTimeout      time.Duration // 10 s: for the TLS ClientHello in a tunnel
	KeepAliveTimeout  time.Duration // 2 min: between two requests of a connection
	IdleTimeout       time.Duration // 1 h: without a byte either way
	DialTimeout       time.Duration // 10 s: DNS included
	DNSTTL            time.Duration // 5 s
	DNSNegativeTTL    time.Duration // 1 s
	DNSTimeout        time.Duration // 5 s
	DNSCacheSize      int           // 8192 names
	SweepInterval     time.Duration // 500 ms
}

func (o *Options) setDefaults() {
	def(&o.MaxConns, 16384)
	def(&o.MaxConnsPerSource, 2048)
	def(&o.HeaderTimeout, 10*time.Second)
	def(&o.HelloTimeout, 10*time.Second)
	def(&o.KeepAliveTimeout, 2*time.Minute)
	def(&o.IdleTimeout, time.Hour)
	def(&o.DialTimeout, 10*time.Second)
	def(&o.DNSTTL, 5*time.Second)
	def(&o.DNSNegativeTTL, time.Second)
	def(&o.DNSTimeout, 5*time.Second)
	def(&o.DNSCacheSize, 8192)
	def(&o.SweepInterval, 500*time.Millisecond)
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Auth == nil {
		o.Auth = token.NewVerifier(nil, token.WithClock(o.Now))
	}
	if o.Resolver == nil {
		o.Resolver = &net.Resolver{PreferGo: true}
	}
	if o.Dial == nil {
		o.Dial = dialGuarded
	}
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// maxLookups bounds the name lookups under way.
const maxLookups = 256

// Server is a forward proxy. Start it with New, give it listeners with Serve, end it with
// Shutdown and Close.
type Server struct {
	opt     Options
	store   *policy.Store
	auth    Authenticator
	log     *slog.Logger
	metrics *metrics
	// via is this process's pseudonym in Via fields (RFC 9110 section 7.6.3). It is random
	// so that a chain of two proxies is not taken for a loop.
	via string

	ctx    context.Context //nolint:containedctx // the lifetime of the server, for work that outlives a request
	cancel context.CancelFunc
	wg     sync.WaitGroup // connections
	tasks  sync.WaitGroup // watch and sweep

	identities    identities
	firstUse      *firstUse
	quotas        quotas
	dns           *dnsCache
	upstreamGuard *ipguard.Guard
	upstreamAuth  atomic.Pointer[string]
	own           atomic.Pointer[ownAddrs]
	flows         registry
	pipes         *pipes
	flowID        atomic.Uint64

	slots     chan struct{}
	open      atomic.Int64
	perSource sources
	conns     connSet
	draining  atomic.Bool

	mu        sync.Mutex
	listeners []net.Listener
}

// New starts a Server that has no listener yet.
func New(o Options) (*Server, error) {
	if o.Store == nil || o.Audit == nil {
		return nil, errors.New("proxy: Options.Store and Options.Audit are required")
	}
	o.setDefaults()
	guard, err := upstreamGuard()
	if err != nil {
		return nil, fmt.Errorf("proxy: upstream networks: %w", err)
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	s := &Server{
		opt: o, store: o.Store, auth: o.Auth, log: o.Log,
		via:           "sandbox-egress-" + hex.EncodeToString(random[:]),
		upstreamGuard: guard,
		slots:         make(chan struct{}, o.MaxConns),
		pipes:         newPipes(),
	}
	if o.FirstUse {
		s.firstUse = &firstUse{}
	}
	if s.metrics, err = newMetrics(o.Registerer, s); err != nil {
		return nil, fmt.Errorf("proxy: metrics: %w", err)
	}
	s.dns = &dnsCache{
		resolver: o.Resolver, now: o.Now, ttl: o.DNSTTL, negative: o.DNSNegativeTTL, timeout: o.DNSTimeout,
		max: o.DNSCacheSize, observe: s.metrics.dns, slots: make(chan struct{}, maxLookups),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.auth.SetKeys(s.store.Load().Keys())
	changed := s.store.Subscribe(s.ctx)
	s.tasks.Go(func() { s.watch(s.ctx, changed) })
	s.tasks.Go(func() { s.sweep(s.ctx) })
	return s, nil
}

// SetOwn tells the proxy which addresses are its own listeners', so that no request is sent
// back to it. Call it when all listeners are open.
func (s *Server) SetOwn(listeners ...net.Addr) {
	s.own.Store(learnOwn(listeners, s.opt.OwnAddresses))
}

// record writes r to the audit log, the denial sink and the metrics.
func (s *Server) record(r *audit.Record) {
	r.Time = s.opt.Now()
	label := policyName(r)
	if st := s.store.Load(); st.Policy(label) == nil && (st.Default() == nil || st.Default().Ref != label) {
		label = ""
	}
	s.metrics.count(r, label)
	s.opt.Audit.Write(r)
	if r.Decision != audit.Allow && s.opt.Denials != nil {
		s.opt.Denials.Write(r)
	}
}

// Flows returns the number of requests and tunnels in flight.
func (s *Server) Flows() int { return int(s.flows.n.Load()) }

// Drain refuses new requests with 503 and lets what runs go on.
func (s *Server) Drain() {
	s.draining.Store(true)
	s.conns.closeIdle()
}

// Shutdown closes the listeners, drains, and waits until nothing runs any more or ctx
// ends. What still runs then is cut; Close must follow.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closeListeners()
	s.Drain()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s.open.Load() > 0 {
		select {
		case <-ctx.Done():
			s.flows.each(func(f *flow) { f.cut(ReasonShutdown, "the proxy shut down", audit.Allow) })
			return ctx.Err()
		case <-tick.C:
			s.conns.closeIdle()
		}
	}
	return nil
}

func (s *Server) closeListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.listeners {
		_ = ln.Close()
	}
	s.listeners = nil
}

// Close ends everything at once and waits for it.
func (s *Server) Close() {
	s.draining.Store(true)
	s.closeListeners()
	s.cancel()
	s.flows.each(func(f *flow) { f.cut(ReasonShutdown, "the proxy shut down", audit.Allow) })
	s.conns.closeAll()
	s.wg.Wait()
	s.tasks.Wait()
	s.pipes.close()
}
