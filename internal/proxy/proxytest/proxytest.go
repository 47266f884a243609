// Package proxytest runs the real proxy against origins on loopback, for tests. The names
// and addresses that a test uses are documentation ones: a resolver of its own answers for
// them, and the dial hook, after the guard has checked the address, leads to the origin.
package proxytest

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// Ref is the policy of Env.State.
const Ref = "team-a/agents"

// ContainerID is the one sandbox of Env.State.
const ContainerID = "c1"

// Public is the range that the guard of Env.State opens: documentation addresses stand for
// the internet.
var Public = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}

// Env is one running proxy.
type Env struct {
	TB     testing.TB
	Addr   string
	Server *proxy.Server
	Store  *policy.Store
	DNS    *Resolver
	Net    *Net
	Log    *Log
	Key    *token.SigningKey
	Token  string
}

// Config shapes an Env.
type Config struct {
	// Allow are spec.allowedHosts; Spec, when set, is the whole list instead.
	Allow []string
	Spec  *allowlist.Spec
	// Policy and State may change what Env would use.
	Policy func(*policy.Policy)
	State  func(*policy.Config)
	// Options may change the server's options.
	Options func(*proxy.Options)
	// Wrap may wrap the listener.
	Wrap func(net.Listener) net.Listener
}

// New starts a proxy on loopback; it ends with the test.
func New(tb testing.TB, c Config) *Env {
	tb.Helper()
	key, err := token.GenerateKey(nil)
	must(tb, err)
	e := &Env{
		TB: tb, Store: &policy.Store{}, DNS: &Resolver{answers: map[string]func() ([]netip.Addr, error){}},
		Net: &Net{routes: map[netip.AddrPort]string{}}, Log: &Log{}, Key: key,
	}
	e.Log.cond.L = &e.Log.mu
	e.Store.Swap(policy.NewState(e.Config(c)))
	e.Token = e.Mint(nil)
	o := proxy.Options{Store: e.Store, Audit: e.Log, Resolver: e.DNS, Dial: e.Net.Dial, SweepInterval: 20 * time.Millisecond}
	if c.Options != nil {
		c.Options(&o)
	}
	e.Server, err = proxy.New(o)
	must(tb, err)
	tb.Cleanup(e.Server.Close)
	var lc net.ListenConfig
	ln, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	must(tb, err)
	e.Addr = ln.Addr().String()
	if c.Wrap != nil {
		ln = c.Wrap(ln)
	}
	e.Server.SetOwn(ln.Addr())
	served := make(chan error, 1)
	go func() { served <- e.Server.Serve(ln) }()
	tb.Cleanup(func() {
		e.Server.Close()
		if err := <-served; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
	return e
}

// Config is the state that New puts in force: one policy, one pod on loopback.
func (e *Env) Config(c Config) policy.Config {
	e.TB.Helper()
	spec := allowlist.Spec{AllowedHosts: c.Allow}
	if c.Spec != nil {
		spec = *c.Spec
	}
	m, err := allowlist.Compile(spec)
	must(e.TB, err)
	guard, err := ipguard.New(Public)
	must(e.TB, err)
	keys, err := token.NewKeySet(e.Key.Public())
	must(e.TB, err)
	p := &policy.Policy{Ref: Ref, Generation: 3, Matcher: m, Guard: guard}
	if c.Policy != nil {
		c.Policy(p)
	}
	st := policy.Config{
		Policies: []*policy.Policy{p},
		Pods: []*policy.Pod{{
			Namespace: "team-a", Name: "sandbox-1", UID: "uid-1", ContainerID: ContainerID,
			IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, PolicyRef: Ref,
		}},
		PodsKnown: true,
		Keys:      keys,
	}
	if c.State != nil {
		c.State(&st)
	}
	return st
}

// Swap puts another state in force.
func (e *Env) Swap(c Config) { e.Store.Swap(policy.NewState(e.Config(c))) }

// Mint returns a token for ContainerID under Ref; change may alter it.
func (e *Env) Mint(change func(*token.MintOptions)) string {
	e.TB.Helper()
	o := token.MintOptions{
		Now: time.Now(), TTL: time.Hour, ContainerID: ContainerID, Organization: "org-1", EgressPolicy: Ref, ContainerBinding: true,
	}
	if change != nil {
		change(&o)
	}
	c, err := token.NewClaims(o)
	must(e.TB, err)
	raw, err := e.Key.Mint(c)
	must(e.TB, err)
	return raw
}

// Auth is the Proxy-Authorization line for a token, with CRLF.
func Auth(containerID, raw string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("container_"+containerID+":jwt_"+raw)) + "\r\n"
}

// Authority parses "host:port".
func Authority(s string) hostname.Authority {
	a, err := hostname.ParseAuthority(s)
	if err != nil {
		panic(err) //nolint:forbidigo // a typing error in a test
	}
	return a
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Resolver answers from a table; names that are not in it do not exist.
type Resolver struct {
	mu      sync.Mutex
	answers map[string]func() ([]netip.Addr, error)
	asked   []string
}

// Set makes name resolve to addrs.
func (r *Resolver) Set(name string, addrs ...string) {
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	r.SetFunc(name, func() ([]netip.Addr, error) { return out, nil })
}

// SetFunc makes fn answer for name.
func (r *Resolver) SetFunc(name string, fn func() ([]netip.Addr, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[name+"."] = fn
}

// Asked returns the names that were looked up.
func (r *Resolver) Asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.asked...)
}

// LookupNetIP implements proxy.Resolver.
func (r *Resolver) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	r.mu.Lock()
	fn := r.answers[name]
	r.asked = append(r.asked, name)
	r.mu.Unlock()
	if fn == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return fn()
}

// Net leads checked addresses to origins on loopback.
type Net struct {
	mu     sync.Mutex
	routes map[netip.AddrPort]string
	dialed []netip.AddrPort
}

// Route makes "address:port" lead to a listener.
func (n *Net) Route(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.routes[netip.MustParseAddrPort(from)] = to
}

// Dialled returns the addresses that passed the check and were dialled.
func (n *Net) Dialled() []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]netip.AddrPort(nil), n.dialed...)
}

// ErrUnrouted is what dialling an address without a route gives.
var ErrUnrouted = errors.New("no route in this test")

// Dial is a proxy.DialFunc.
func (n *Net) Dial(ctx context.Context, addr netip.AddrPort, check proxy.Control) (net.Conn, error) {
	if err := check(addr, nil); err != nil {
		return nil, err
	}
	n.mu.Lock()
	to, ok := n.routes[addr]
	n.dialed = append(n.dialed, addr)
	n.mu.Unlock()
	if !ok {
		return nil, ErrUnrouted
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to)
}

// Log is an audit.Sink that keeps its records.
type Log struct {
	mu   sync.Mutex
	cond sync.Cond
	recs []audit.Record
}

// Write implements audit.Sink.
func (l *Log) Write(r *audit.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recs = append(l.recs, *r)
	l.cond.Broadcast()
}

// Records returns what has been written.
func (l *Log) Records() []audit.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]audit.Record(nil), l.recs...)
}

// Wait returns the records as soon as want holds for them, or after timeout.
func (l *Log) Wait(timeout time.Duration, want func([]audit.Record) bool) ([]audit.Record, bool) {
	deadline := time.Now().Add(timeout)
	stop := time.AfterFunc(timeout, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cond.Broadcast()
	})
	defer stop.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !want(l.recs) {
		if !time.Now().Before(deadline) {
			return append([]audit.Record(nil), l.recs...), false
		}
		l.cond.Wait()
	}
	return append([]audit.Record(nil), l.recs...), true
}
