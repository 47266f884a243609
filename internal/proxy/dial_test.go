package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

func listen(t *testing.T) (netip.AddrPort, *atomic.Int32) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return netip.MustParseAddrPort(ln.Addr().String()), &n
}

func TestProductionDialChecksTheAddressBeforeTheFirstPacket(t *testing.T) {
	ap, seen := listen(t)
	var guard *ipguard.Guard
	var asked []netip.AddrPort
	_, err := dialGuarded(t.Context(), ap, func(a netip.AddrPort, _ syscall.RawConn) error {
		asked = append(asked, a)
		return guard.Check(a.Addr())
	})
	var denied *ipguard.DeniedError
	if !errors.As(err, &denied) {
		t.Fatalf("dialling %v: %v, want it denied", ap, err)
	}
	if len(asked) != 1 || asked[0] != ap {
		t.Errorf("checked %v, want exactly %v", asked, ap)
	}
	time.Sleep(20 * time.Millisecond)
	if n := seen.Load(); n != 0 {
		t.Errorf("the listener saw %d connections", n)
	}
	c, err := dialGuarded(t.Context(), ap, func(netip.AddrPort, syscall.RawConn) error { return nil })
	if err != nil {
		t.Fatalf("with a check that allows: %v", err)
	}
	c.Close()
}

// newServer is a Server without listeners.
func newServer(t *testing.T, change func(*Options)) *Server {
	t.Helper()
	o := Options{Store: &policy.Store{}, Audit: audit.SinkFunc(func(*audit.Record) {})}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestProductionServerNeverReachesLoopback(t *testing.T) {
	ap, seen := listen(t)
	s := newServer(t, nil)
	to, err := hostname.ParseAuthority(ap.String())
	if err != nil {
		t.Fatal(err)
	}
	guard, err := ipguard.New([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*policy.Policy{"default table": {}, "with private networks": {Guard: guard}} {
		if _, refused := s.connect(t.Context(), p, to, true); refused == nil || refused.reason != ReasonAddressNotAllowed {
			t.Errorf("%s: %v", name, refused)
		}
	}
	up := &policy.Policy{Upstream: &policy.Upstream{Authority: to}}
	public, _ := hostname.ParseAuthority("example.com:443")
	if _, refused := s.connect(t.Context(), up, public, true); refused == nil || refused.reason != ReasonUpstreamFailed {
		t.Errorf("upstream on loopback: %v", refused)
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("the listener saw %d connections", n)
	}
}

// sockets counts what is done to the sockets of dials.
type sockets struct{ prepared int }

func (s *sockets) Control(func(uintptr)) error    { s.prepared++; return nil }
func (s *sockets) Read(func(uintptr) bool) error  { return nil }
func (s *sockets) Write(func(uintptr) bool) error { return nil }

func TestHandshakeACKWaitsOnlyWhereTheClientSpeaksFirst(t *testing.T) {
	to, _ := hostname.ParseAuthority("8.8.8.8:22")
	for clientFirst, want := range map[bool]int{true: 1, false: 0} {
		var seen sockets
		s := newServer(t, func(o *Options) {
			o.Dial = func(_ context.Context, ap netip.AddrPort, check Control) (net.Conn, error) {
				if err := check(ap, &seen); err != nil {
					return nil, err
				}
				return nil, syscall.ECONNREFUSED
			}
		})
		if _, refused := s.connect(t.Context(), &policy.Policy{}, to, clientFirst); refused == nil || refused.reason != ReasonConnectFailed {
			t.Fatalf("got %v", refused)
		}
		if seen.prepared != want {
			t.Errorf("client first %v: %d sockets prepared, want %d", clientFirst, seen.prepared, want)
		}
	}
}

func TestDialTriesAddressesInTurn(t *testing.T) {
	a := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	for name, tc := range map[string]struct {
		addrs   []netip.Addr
		answer  map[string]time.Duration // negative: refused at once; missing: never
		want    string
		wantErr error
		within  time.Duration
	}{
		"the first that answers":            {[]netip.Addr{a("203.0.113.1"), a("203.0.113.2")}, map[string]time.Duration{"203.0.113.1": 0, "203.0.113.2": 0}, "203.0.113.1", nil, 200 * time.Millisecond},
		"the next after a refusal, at once": {[]netip.Addr{a("203.0.113.1"), a("203.0.113.2")}, map[string]time.Duration{"203.0.113.1": -1, "203.0.113.2": 0}, "203.0.113.2", nil, 200 * time.Millisecond},
		"the next after the attempt delay":  {[]netip.Addr{a("203.0.113.1"), a("203.0.113.2")}, map[string]time.Duration{"203.0.113.2": 0}, "203.0.113.2", nil, time.Second},
		"the other family second":           {[]netip.Addr{a("2001:db8::1"), a("2001:db8::2"), a("203.0.113.1")}, map[string]time.Duration{"203.0.113.1": 0, "2001:db8::2": 0}, "203.0.113.1", nil, time.Second},
		"none":                              {[]netip.Addr{a("203.0.113.1"), a("203.0.113.2")}, map[string]time.Duration{"203.0.113.1": -1, "203.0.113.2": -1}, "", syscall.ECONNREFUSED, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(o *Options) {
				o.Dial = func(ctx context.Context, ap netip.AddrPort, _ Control) (net.Conn, error) {
					d, ok := tc.answer[ap.Addr().String()]
					switch {
					case !ok:
						<-ctx.Done()
						return nil, ctx.Err()
					case d < 0:
						return nil, syscall.ECONNREFUSED
					}
					c, peer := net.Pipe()
					peer.Close()
					return c, nil
				}
			})
			start := time.Now()
			got, err := s.dialAny(t.Context(), tc.addrs, 443, func(netip.AddrPort, syscall.RawConn) error { return nil })
			if !errors.Is(err, tc.wantErr) || tc.want != "" && got.addr.String() != tc.want {
				t.Errorf("%v, %v", got.addr, err)
			}
			if took := time.Since(start); took > tc.within {
				t.Errorf("took %v", took)
			}
			if got.Conn != nil {
				got.Close()
			}
		})
	}
}

// names is a Resolver that counts.
type names struct {
	mu    sync.Mutex
	asked map[string]int
	hold  chan struct{}
	err   error
}

func (n *names) LookupNetIP(ctx context.Context, _, name string) ([]netip.Addr, error) {
	n.mu.Lock()
	if n.asked == nil {
		n.asked = map[string]int{}
	}
	n.asked[name]++
	n.mu.Unlock()
	if n.hold != nil {
		select {
		case <-n.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []netip.Addr{netip.MustParseAddr("::ffff:203.0.113.7")}, n.err
}

func newCache(r Resolver, now func() time.Time) *dnsCache {
	return &dnsCache{resolver: r, now: now, ttl: 5 * time.Second, negative: time.Second, timeout: 200 * time.Millisecond, max: 4,
		observe: func(string, time.Duration) {}, slots: make(chan struct{}, 8)}
}

func TestDNSCache(t *testing.T) {
	defer goleak.VerifyNone(t)
	clock := time.Unix(1000, 0)
	n := &names{}
	c := newCache(n, func() time.Time { return clock })

	for range 3 {
		addrs, refused := c.lookup(t.Context(), "example.com")
		if refused != nil || len(addrs) != 1 || addrs[0].String() != "203.0.113.7" {
			t.Fatalf("%v %v; want the unmapped address", addrs, refused)
		}
	}
	if n.asked["example.com."] != 1 {
		t.Errorf("asked %v, want once and with the final dot", n.asked)
	}
	clock = clock.Add(5 * time.Second)
	n.err = errors.New("server misbehaving")
	if addrs, refused := c.lookup(t.Context(), "example.com"); refused == nil || addrs != nil {
		t.Errorf("a stale answer was served: %v", addrs)
	}
	if _, refused := c.lookup(t.Context(), "example.com"); refused == nil || n.asked["example.com."] != 2 {
		t.Errorf("the failure was not remembered: %v", n.asked)
	}
	clock = clock.Add(time.Second)
	n.err = nil
	if _, refused := c.lookup(t.Context(), "example.com"); refused != nil {
		t.Errorf("the failure outlived its time: %v", refused)
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		if _, refused := c.lookup(t.Context(), name); refused != nil {
			t.Fatal(refused)
		}
	}
	if len(c.m) > 4 {
		t.Errorf("%d entries, the bound is 4", len(c.m))
	}
}

func TestDNSLookupsOfOneNameAreShared(t *testing.T) {
	n := &names{hold: make(chan struct{})}
	c := newCache(n, time.Now)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, refused := c.lookup(t.Context(), "example.com"); refused != nil {
				t.Error(refused)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(n.hold)
	wg.Wait()
	if n.asked["example.com."] != 1 {
		t.Errorf("asked %d times", n.asked["example.com."])
	}
}

func TestDNSCallerThatGivesUpDoesNotFailTheOthers(t *testing.T) {
	n := &names{hold: make(chan struct{})}
	c := newCache(n, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan *refusal, 1)
	go func() {
		_, refused := c.lookup(ctx, "example.com")
		first <- refused
	}()
	time.Sleep(10 * time.Millisecond)
	second := make(chan *refusal, 1)
	go func() {
		_, refused := c.lookup(t.Context(), "example.com")
		second <- refused
	}()
	time.Sleep(10 * time.Millisecond)
	cancel()
	if refused := <-first; refused == nil || refused.status != 504 {
		t.Errorf("the one that gave up: %v", refused)
	}
	close(n.hold)
	if refused := <-second; refused != nil {
		t.Errorf("the other: %v", refused)
	}
}

func TestFirstUseBinding(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Now()
	id := func(container string, exp time.Duration) *identity {
		return &identity{claims: claimsFor(container), exp: now.Add(exp)}
	}
	var f firstUse
	for range 2 {
		if !f.claim(id("c1", time.Hour), a, now) {
			t.Error("the first address was refused")
		}
	}
	if f.claim(id("c1", 2*time.Hour), b, now) {
		t.Error("a second address got in, with a newer token")
	}
	if !f.claim(id("c1", 2*time.Hour), a, now) || !f.heldUntil("c1", a).After(now.Add(2*time.Hour)) {
		t.Error("a newer token did not prolong the hold")
	}
	if f.claim(id("c1", 3*time.Hour), b, now.Add(2*time.Hour)) {
		t.Error("the hold did not outlast the first token")
	}
	if !f.claim(id("c1", 4*time.Hour), b, now.Add(2*time.Hour+time.Minute)) {
		t.Error("the hold outlived every token")
	}
}
