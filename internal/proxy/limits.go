package proxy

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// quota is what one sandbox uses at this proxy.
type quota struct {
	active   atomic.Int64
	lastUsed atomic.Int64 // unix seconds

	mu       sync.Mutex
	limits   policy.Limits
	requests *rate.Limiter
	bytes    atomic.Pointer[rate.Limiter]
}

// quotas keeps one quota per container_id.
type quotas struct {
	mu sync.RWMutex
	m  map[string]*quota
}

func (q *quotas) of(containerID string, l policy.Limits, now time.Time) *quota {
	q.mu.RLock()
	c := q.m[containerID]
	q.mu.RUnlock()
	if c == nil {
		q.mu.Lock()
		if q.m == nil {
			q.m = make(map[string]*quota)
		}
		if c = q.m[containerID]; c == nil {
			c = &quota{}
			q.m[containerID] = c
		}
		q.mu.Unlock()
	}
	c.lastUsed.Store(now.Unix())
	c.apply(l)
	return c
}

// apply puts the limits in force; they change with the policy.
func (c *quota) apply(l policy.Limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l == c.limits {
		return
	}
	c.limits = l
	if c.requests = nil; l.RequestsPerSecond > 0 {
		c.requests = rate.NewLimiter(rate.Limit(l.RequestsPerSecond), int(min(l.RequestsPerSecond, math.MaxInt32)))
	}
	if l.BytesPerSecond > 0 {
		// The burst must hold one chunk of the copy loops.
		burst := min(max(l.BytesPerSecond/4, copySize), math.MaxInt32)
		c.bytes.Store(rate.NewLimiter(rate.Limit(l.BytesPerSecond), int(burst)))
	} else {
		c.bytes.Store(nil)
	}
}

// allow counts one request or tunnel against the rate.
func (c *quota) allow(now time.Time) *refusal {
	c.mu.Lock()
	requests := c.requests
	c.mu.Unlock()
	if requests != nil && !requests.AllowN(now, 1) {
		return limited(ReasonRequestRate, "this sandbox makes more requests per second than its policy's limits.requestsPerSecond")
	}
	return nil
}

// hold counts one request or tunnel in flight; the caller releases it.
func (c *quota) hold() *refusal {
	c.mu.Lock()
	limit := int64(c.limits.Connections)
	c.mu.Unlock()
	if n := c.active.Add(1); limit > 0 && n > limit {
		c.active.Add(-1)
		return limited(ReasonConnectionLimit, "this sandbox has as many connections open as its policy's limits.connections")
	}
	return nil
}

func (c *quota) release() { c.active.Add(-1) }

// pause is how long a copy loop that has moved n bytes must wait.
func (c *quota) pause(n int) time.Duration {
	l := c.bytes.Load()
	if l == nil {
		return 0
	}
	return l.ReserveN(time.Now(), n).Delay()
}

// forget drops what sandboxes that have gone left behind.
func (q *quotas) forget(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, c := range q.m {
		if c.active.Load() == 0 && now.Unix()-c.lastUsed.Load() > 60 {
			delete(q.m, id)
		}
	}
}
