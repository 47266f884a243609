package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// flow is one allowed request or tunnel from its decision to its close: what the sweeper
// watches and what a change of policy, pods or keys is checked against.
type flow struct {
	srv    *Server
	id     *identity
	client netip.Addr
	state  *policy.State  // what it was decided from
	policy *policy.Policy // ditto
	req    allowlist.Request
	// sniChecked: the tunnel is TLS to the host asked for.
	sniChecked atomic.Bool
	// helloDue: the tunnel must start with a ClientHello, which has not been looked at yet.
	helloDue atomic.Bool
	quota    *quota
	holds    bool // a place in quota.active
	shard    int
	rec      audit.Record
	start    time.Time

	sent, received atomic.Int64
	// busy: requests of its own run inside this tunnel to port 80.
	busy atomic.Bool

	// ended is the first reason given for the end; cutting closes both sides.
	ended   atomic.Pointer[ending]
	mu      sync.Mutex
	ends    [2]*stream
	over    bool
	dialled netip.Addr

	// finished is closed by finish when somebody waits for it (HTTP/2 handlers).
	finished chan struct{}

	// For the sweeper alone.
	seen      int64
	seenAt    time.Time
	keepAlive bool
}

type ending struct {
	reason  Reason
	detail  string
	verdict audit.Verdict
}

// attach gives the flow the connections that cut closes.
func (f *flow) attach(client, org *stream) {
	f.mu.Lock()
	f.ends = [2]*stream{client, org}
	over := f.over
	f.mu.Unlock()
	if over {
		f.abort()
	}
}

// redialled notes the address of a second connection.
func (f *flow) redialled(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled, f.rec.DialledIP = a, a
}

func (f *flow) dialledAddr() netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dialled
}

// end notes why the flow ends, unless that is known already, and reports whether it was news.
func (f *flow) end(reason Reason, detail string, v audit.Verdict) bool {
	return f.ended.CompareAndSwap(nil, &ending{reason, detail, v})
}

// cut ends the flow now, without delivering what is queued.
func (f *flow) cut(reason Reason, detail string, v audit.Verdict) {
	if f.end(reason, detail, v) {
		f.abort()
	}
}

func (f *flow) abort() {
	f.mu.Lock()
	f.over = true
	ends := f.ends
	f.mu.Unlock()
	for _, s := range ends {
		if s != nil {
			s.abort()
		}
	}
}

// wait returns a channel that finish closes. It is called before the flow can finish.
func (f *flow) wait() <-chan struct{} {
	f.finished = make(chan struct{})
	return f.finished
}

// isCut reports whether the flow was ended from outside.
func (f *flow) isCut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// pace slows a copy loop down to the sandbox's bytes per second, in steps short enough for
// a cut to be noticed.
func (f *flow) pace(n int) {
	for d := f.quota.pause(n); d > 0 && !f.isCut(); {
		step := min(d, 200*time.Millisecond)
		time.Sleep(step)
		d -= step
	}
}

// recheck decides the flow again under st. It returns nil when it may go on.
func (f *flow) recheck(st *policy.State, now time.Time) *refusal {
	if !f.id.keyInForce(st.Keys()) {
		return unauthenticated(ReasonKeyRemoved, "the key that signed the token is no longer in force")
	}
	pod, refused := f.srv.bind(f.id, st, f.client, now)
	if refused != nil {
		return refused
	}
	p, refused := selectPolicy(f.id, pod, st)
	if refused != nil {
		return refused
	}
	v := authorize(f.id, pod, p, f.req)
	if !v.allowed {
		return forbidden(v.reason, "the policy no longer allows it")
	}
	switch {
	case v.tls == allowlist.TLSRequired && !f.req.Visible && f.req.Authority.Port == tlsPort && !f.sniChecked.Load() && !f.helloDue.Load():
		return forbidden(ReasonPolicyChanged, "the policy now requires TLS with a matching server name")
	case upstreamOf(p) != upstreamOf(f.policy):
		return forbidden(ReasonPolicyChanged, "the policy now takes another way out")
	case p.Upstream == nil && p.Guard.Check(f.dialledAddr()) != nil:
		return forbidden(ReasonAddressNotAllowed, "the address is no longer in privateNetworks")
	}
	return nil
}

// revoke cuts the flow when st no longer allows it.
func (f *flow) revoke(st *policy.State, now time.Time) {
	if refused := f.recheck(st, now); refused != nil {
		f.cut(refused.reason, refused.detail, audit.Deny)
	}
}

func upstreamOf(p *policy.Policy) policy.Upstream {
	if p.Upstream == nil {
		return policy.Upstream{}
	}
	return *p.Upstream
}

// expired reports whether the flow has outlived its token in a way that ends it. A bound
// flow whose pod is known lives as long as the pod; recheck sees to that.
func (f *flow) expired(now time.Time) bool {
	bound := bool(f.id.claims.EnforceContainerBinding)
	until := f.id.exp.Add(token.Leeway)
	if !now.After(until) {
		return false
	}
	if bound && f.srv.store.Load().PodsKnown() {
		return false
	}
	if bound && f.srv.firstUse != nil {
		return now.After(f.srv.firstUse.heldUntil(f.id.claims.ContainerID, f.client))
	}
	return true
}

// registry holds the live flows.
type registry struct {
	shards [16]struct {
		mu sync.Mutex
		m  map[*flow]struct{}
	}
	n    atomic.Int64
	turn atomic.Uint64
}

// add registers f and returns the shard to remove it from.
func (r *registry) add(f *flow) int {
	i := int(r.turn.Add(1) % uint64(len(r.shards)))
	sh := &r.shards[i]
	sh.mu.Lock()
	if sh.m == nil {
		sh.m = make(map[*flow]struct{})
	}
	sh.m[f] = struct{}{}
	sh.mu.Unlock()
	r.n.Add(1)
	return i
}

func (r *registry) remove(f *flow, shard int) {
	sh := &r.shards[shard]
	sh.mu.Lock()
	delete(sh.m, f)
	sh.mu.Unlock()
	r.n.Add(-1)
}

// each calls fn for every flow, a shard's flows at a time and outside its lock.
func (r *registry) each(fn func(*flow)) {
	var flows []*flow
	for i := range r.shards {
		sh := &r.shards[i]
		flows = flows[:0]
		sh.mu.Lock()
		for f := range sh.m {
			flows = append(flows, f)
		}
		sh.mu.Unlock()
		for _, f := range flows {
			fn(f)
		}
	}
	clear(flows)
}
