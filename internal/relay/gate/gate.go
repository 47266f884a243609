// Package gate is the start gate of a sandbox: it lets the pod's containers start only
// once the pod itself has seen that the egress proxy answers and that NetworkPolicies are
// enforced.
//
// The proof of enforcement is the canary, a port of the same proxy pods that listens but
// that no policy allows. While the proxy port of the same address answers, a canary that
// does not is a canary that something keeps away. A policy engine may learn of a new pod a
// moment after the pod's first packet, so one blocked attempt proves nothing: several in a
// row must be blocked, between two that reach the proxy.
package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	proxyTimeout = 2 * time.Second
	// canaryTimeout is below the first SYN retransmission of Linux (1 s); the other
	// attempts stand in for it.
	canaryTimeout = 900 * time.Millisecond
	// canaryAttempts start canaryStagger apart, so that one lost packet, or one short gap
	// in a policy engine's work, does not look like enforcement.
	canaryAttempts = 3
	canaryStagger  = 200 * time.Millisecond
	pause          = 250 * time.Millisecond
)

var (
	// ErrProxyUnreachable means that the proxy did not answer.
	ErrProxyUnreachable = errors.New("the egress proxy is not reachable")
	// ErrNotEnforced means that the canary could be reached.
	ErrNotEnforced = errors.New("NetworkPolicy is not enforced for this pod")
	// ErrInconclusive means that the attempts failed for a reason that proves nothing.
	ErrInconclusive = errors.New("the start gate could not tell")
)

// Gate is one pod's start gate. It speaks TCP only and resolves nothing.
type Gate struct {
	Proxy, Canary netip.AddrPort
	// Timeout bounds Wait; it must be positive.
	Timeout time.Duration
	// Dial opens a TCP connection; nil means net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Wait returns nil once the gate may open. Otherwise the error says which of the two
// conditions was wrong at last: ErrProxyUnreachable, ErrNotEnforced or ErrInconclusive.
func (g Gate) Wait(ctx context.Context) error {
	if !g.Proxy.IsValid() || !g.Canary.IsValid() || g.Timeout <= 0 {
		return errors.New("proxy, canary and a positive timeout are required")
	}
	if g.Dial == nil {
		g.Dial = dialTCP
	}
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()

	last := fmt.Errorf("%w: no attempt was finished within %s", ErrInconclusive, g.Timeout)
	for {
		err := g.round(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up after %s)", last, g.Timeout)
		}
	}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

func (g Gate) round(ctx context.Context) error {
	if err := g.reachProxy(ctx); err != nil {
		return err
	}
	if err := g.missCanary(ctx); err != nil {
		return err
	}
	return g.reachProxy(ctx)
}

func (g Gate) reachProxy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	c, err := g.Dial(ctx, g.Proxy.String())
	if err != nil {
		return fmt.Errorf("%w: %w; see the Ready condition of the SandboxEgress, and whether the pod's NetworkPolicy exists and admits TCP %d", ErrProxyUnreachable, err, g.Proxy.Port())
	}
	c.Close()
	return nil
}

// missCanary returns nil when every attempt was blocked. It waits for all attempts, so
// that none outlives the round.
func (g Gate) missCanary(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, canaryAttempts)
	for i := range canaryAttempts {
		go func() {
			err := g.tryCanary(ctx, time.Duration(i)*canaryStagger)
			if err != nil {
				cancel() // the verdict stands, the others need not go on
			}
			results <- err
		}()
	}
	var verdict error
	for range canaryAttempts {
		err := <-results
		if verdict == nil || errors.Is(err, ErrNotEnforced) {
			verdict = err
		}
	}
	return verdict
}

func (g Gate) tryCanary(ctx context.Context, after time.Duration) error {
	select {
	case <-time.After(after):
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrInconclusive, ctx.Err())
	}
	attempt, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	c, err := g.Dial(attempt, g.Canary.String())
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%w: the canary %s accepted a connection; the cluster's CNI must enforce egress NetworkPolicies on this node (a service mesh that accepts connections on the pod's behalf looks the same)", ErrNotEnforced, g.Canary)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrInconclusive, ctx.Err())
	case blocked(err):
		return nil
	default:
		return fmt.Errorf("%w: the canary %s failed with %w", ErrInconclusive, g.Canary, err)
	}
}

// blocked are the ways in which policy engines keep a connection away: dropped packets, a
// reset, an ICMP error, or a connect(2) that a socket filter forbids. Local trouble such
// as EMFILE or EADDRNOTAVAIL is none of them.
func blocked(err error) bool {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true
	}
	for _, e := range []syscall.Errno{
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EPERM,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
