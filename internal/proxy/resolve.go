package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Resolver looks names up; *net.Resolver is one. The name ends in a dot.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, name string) ([]netip.Addr, error)
}

// dnsCache remembers answers for a short fixed time: net.Resolver does not tell the TTL.
// No answer is used past its time, not even when the next lookup fails.
type dnsCache struct {
	resolver Resolver
	now      func() time.Time
	ttl      time.Duration
	negative time.Duration
	timeout  time.Duration
	max      int
	observe  func(result string, took time.Duration)

	flight singleflight.Group
	// slots bounds lookups under way: a sandbox that asks for thousands of names under a
	// wildcard must not exhaust sockets.
	slots chan struct{}

	mu sync.RWMutex
	m  map[string]dnsEntry
}

type dnsEntry struct {
	addrs   []netip.Addr
	err     *refusal
	expires time.Time
}

// lookup returns the addresses of a canonical name, unmapped, or a refusal. The slice is
// shared.
func (c *dnsCache) lookup(ctx context.Context, name string) ([]netip.Addr, *refusal) {
	c.mu.RLock()
	e, ok := c.m[name]
	c.mu.RUnlock()
	if ok && c.now().Before(e.expires) {
		return e.addrs, e.err
	}
	// The lookup does not depend on the first caller's patience: others wait for it too.
	ch := c.flight.DoChan(name, func() (any, error) {
		return c.query(context.WithoutCancel(ctx), name), nil
	})
	select {
	case res := <-ch:
		if e, ok := res.Val.(dnsEntry); ok {
			return e.addrs, e.err
		}
		return nil, failure(502, ReasonDNSFailure, "the name lookup failed")
	case <-ctx.Done():
		return nil, failure(504, ReasonDNSTimeout, "the name lookup for "+name+" took too long")
	}
}

func (c *dnsCache) query(ctx context.Context, name string) dnsEntry {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return dnsEntry{err: failure(504, ReasonDNSTimeout, "too many name lookups are under way")}
	}
	start := c.now()
	// The final dot keeps search domains out: "example.com" never becomes
	// "example.com.svc.cluster.local".
	addrs, err := c.resolver.LookupNetIP(ctx, "ip", name+".")
	e := dnsEntry{expires: c.now().Add(c.ttl)}
	if err != nil {
		e.err = dnsRefusal(name, err)
		e.expires = c.now().Add(c.negative)
	} else {
		e.addrs = make([]netip.Addr, len(addrs))
		for i, a := range addrs {
			e.addrs[i] = a.Unmap().WithZone("")
		}
		if len(addrs) == 0 {
			e.err = failure(502, ReasonDNSNotFound, "the name "+name+" has no address")
		}
	}
	result := "ok"
	if e.err != nil {
		result = string(e.err.reason)
	}
	c.observe(result, c.now().Sub(start))
	c.put(name, e)
	return e
}

func (c *dnsCache) put(name string, e dnsEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]dnsEntry)
	}
	if len(c.m) >= c.max {
		now := c.now()
		for k, old := range c.m {
			if !now.Before(old.expires) {
				delete(c.m, k)
			}
		}
		for k := range c.m { // still full of fresh ones: any of them goes
			if len(c.m) < c.max {
				break
			}
			delete(c.m, k)
		}
	}
	c.m[name] = e
}

func dnsRefusal(name string, err error) *refusal {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return failure(502, ReasonDNSNotFound, "the name "+name+" does not exist or has no address")
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return failure(504, ReasonDNSTimeout, "the name lookup for "+name+" timed out")
	}
	return failure(502, ReasonDNSFailure, "the name lookup for "+name+" failed")
}
