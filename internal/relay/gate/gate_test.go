package gate_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/relay/gate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	proxy  = netip.MustParseAddrPort("10.96.12.7:8443")
	canary = netip.MustParseAddrPort("10.96.12.7:9902")
)

// network answers the gate's attempts from two functions of the time since the start.
type network struct {
	start         time.Time
	proxy, canary func(since time.Duration) error
	open          atomic.Int32
	attempts      atomic.Int32
}

type conn struct {
	net.Conn
	n *network
}

func (c conn) Close() error { c.n.open.Add(-1); return nil }

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	answer := n.proxy
	if address == canary.String() {
		answer = n.canary
		n.attempts.Add(1)
	}
	err := answer(time.Since(n.start))
	if errors.Is(err, os.ErrDeadlineExceeded) { // a dropped packet
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)}
	}
	n.open.Add(1)
	return conn{n: n}, nil
}

func always(err error) func(time.Duration) error { return func(time.Duration) error { return err } }

func after(d time.Duration, then, before error) func(time.Duration) error {
	return func(since time.Duration) error {
		if since >= d {
			return then
		}
		return before
	}
}

func TestGate(t *testing.T) {
	dropped := os.ErrDeadlineExceeded
	for name, tc := range map[string]struct {
		proxy, canary func(time.Duration) error
		want          error
		within        time.Duration // when it opens
	}{
		"opens when the canary is dropped":       {always(nil), always(dropped), nil, 2 * time.Second},
		"opens when the canary is refused":       {always(nil), always(syscall.ECONNREFUSED), nil, time.Second},
		"opens when the canary is unreachable":   {always(nil), always(syscall.EHOSTUNREACH), nil, time.Second},
		"opens when connect is forbidden":        {always(nil), always(syscall.EPERM), nil, time.Second},
		"waits for the proxy":                    {after(20*time.Second, nil, dropped), always(dropped), nil, 25 * time.Second},
		"waits for enforcement":                  {always(nil), after(10*time.Second, dropped, nil), nil, 13 * time.Second},
		"never opens without proxy":              {always(syscall.ECONNREFUSED), always(syscall.ECONNREFUSED), gate.ErrProxyUnreachable, 0},
		"never opens when everything is dropped": {always(dropped), always(dropped), gate.ErrProxyUnreachable, 0},
		"never opens without enforcement":        {always(nil), always(nil), gate.ErrNotEnforced, 0},
		"local trouble is no proof":              {always(nil), always(syscall.EADDRNOTAVAIL), gate.ErrInconclusive, 0},
		"running out of files is no proof":       {always(nil), always(syscall.EMFILE), gate.ErrInconclusive, 0},
		"a proxy that goes meanwhile voids the proof": {func(since time.Duration) error {
			if since%time.Second < 100*time.Millisecond { // up at the start of rounds only
				return nil
			}
			return syscall.ECONNREFUSED
		}, always(dropped), gate.ErrProxyUnreachable, 0},
		"one blocked attempt of three is no proof": {always(nil), func(since time.Duration) error {
			if since%(600*time.Millisecond) < 100*time.Millisecond {
				return dropped
			}
			return nil
		}, gate.ErrNotEnforced, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{start: time.Now(), proxy: tc.proxy, canary: tc.canary}
				g := gate.Gate{Proxy: proxy, Canary: canary, Timeout: time.Minute, Dial: n.dial}
				err := g.Wait(t.Context())
				took := time.Since(n.start)
				if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
					t.Fatalf("Wait = %v, want %v", err, tc.want)
				}
				if err == nil && (took > tc.within || n.attempts.Load() < 3) {
					t.Errorf("opened after %s and %d attempts at the canary, want within %s and 3", took, n.attempts.Load(), tc.within)
				}
				if err != nil && (took < time.Minute || took > time.Minute+time.Second) {
					t.Errorf("gave up after %s, want the timeout", took)
				}
				if open := n.open.Load(); open != 0 {
					t.Errorf("%d connections left open", open)
				}
			})
		})
	}
}

func TestErrorsSayWhichOfTheTwoIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		proxy, canary error
		want          []string
	}{
		"proxy":  {syscall.ECONNREFUSED, syscall.ECONNREFUSED, []string{"egress proxy is not reachable", "connection refused", "SandboxEgress", "gave up after 5s"}},
		"canary": {nil, nil, []string{"NetworkPolicy is not enforced", canary.String(), "CNI", "gave up after 5s"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{start: time.Now(), proxy: always(tc.proxy), canary: always(tc.canary)}
				err := gate.Gate{Proxy: proxy, Canary: canary, Timeout: 5 * time.Second, Dial: n.dial}.Wait(t.Context())
				for _, part := range tc.want {
					if err == nil || !strings.Contains(err.Error(), part) {
						t.Errorf("%v does not say %q", err, part)
					}
				}
			})
		})
	}
}

func TestGateStopsWhenThePodDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		n := &network{start: time.Now(), proxy: always(os.ErrDeadlineExceeded), canary: always(nil)}
		if err := (gate.Gate{Proxy: proxy, Canary: canary, Timeout: time.Minute, Dial: n.dial}).Wait(ctx); err == nil || time.Since(n.start) > 4*time.Second {
			t.Errorf("Wait = %v after %s", err, time.Since(n.start))
		}
	})
}

func TestGateRefusesAnIncompleteConfiguration(t *testing.T) {
	for name, g := range map[string]gate.Gate{
		"no proxy":   {Canary: canary, Timeout: time.Second},
		"no canary":  {Proxy: proxy, Timeout: time.Second},
		"no timeout": {Proxy: proxy, Canary: canary},
	} {
		t.Run(name, func(t *testing.T) {
			if err := g.Wait(t.Context()); err == nil {
				t.Error("opened")
			}
		})
	}
}

// On real sockets: a closed port stands for a CNI that rejects.
func TestGateOnLoopback(t *testing.T) {
	listen := func() (netip.AddrPort, func()) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		})
		return l.Addr().(*net.TCPAddr).AddrPort(), func() { l.Close(); wg.Wait() }
	}
	open, stop := listen()
	defer stop()
	closed, stopNow := listen()
	stopNow()

	start := time.Now()
	if err := (gate.Gate{Proxy: open, Canary: closed, Timeout: 10 * time.Second}).Wait(t.Context()); err != nil {
		t.Errorf("Wait = %v", err)
	}
	t.Logf("opened after %s", time.Since(start))
	if err := (gate.Gate{Proxy: open, Canary: open, Timeout: time.Second}).Wait(t.Context()); !errors.Is(err, gate.ErrNotEnforced) {
		t.Errorf("with an open canary Wait = %v", err)
	}
	if err := (gate.Gate{Proxy: closed, Canary: closed, Timeout: time.Second}).Wait(t.Context()); !errors.Is(err, gate.ErrProxyUnreachable) {
		t.Errorf("with a closed proxy Wait = %v", err)
	}
}
