package proxy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// exchange is one request on its way through the checks.
type exchange struct {
	srv    *Server
	client netip.Addr
	start  time.Time
	req    *request
	state  *policy.State

	id      *identity
	pod     *policy.Pod
	policy  *policy.Policy
	verdict verdict
	quota   *quota
	holds   bool
	rec     audit.Record
}

func (s *Server) newExchange(client netip.Addr, r *request) *exchange {
	x := &exchange{srv: s, client: client, start: s.opt.Now(), req: r, state: s.store.Load()}
	x.rec = audit.Record{Event: audit.Decision, ClientIP: client}
	if r != nil {
		x.rec.Method, x.rec.Host, x.rec.Port = strings.Clone(r.method), r.authority.Host.String(), r.authority.Port
		x.rec.Scheme = "http"
		if r.kind == kindConnect {
			x.rec.Scheme = "tunnel"
		}
	}
	return x
}

// admit runs every check that comes before DNS, in this order: authenticate, bind, select
// the policy, authorize by name, limits. After it has returned nil the caller owes one
// quota release, which flow.finish and exchange.refuse make.
func (s *Server) admit(x *exchange) *refusal {
	if s.draining.Load() {
		return failure(503, ReasonDraining, "this proxy is shutting down; try again")
	}
	if !s.store.Ready() {
		return failure(503, ReasonNotReady, "this proxy has not read its policy yet; try again")
	}
	id, refused := s.authenticate(x.req, x.state)
	if refused != nil {
		return refused
	}
	x.identify(id)
	if refused := s.decide(x); refused != nil {
		return refused
	}
	if refused := x.quota.allow(x.start); refused != nil {
		return refused
	}
	refused = x.quota.hold()
	x.holds = refused == nil
	return refused
}

// admitInner runs the checks again for a request inside a tunnel to port 80, on behalf of
// whoever opened the tunnel.
func (s *Server) admitInner(x *exchange, id *identity) *refusal {
	if !id.keyInForce(x.state.Keys()) {
		return unauthenticated(ReasonKeyRemoved, "the key that signed the token is no longer in force")
	}
	x.identify(id)
	refused := s.decide(x)
	if refused == nil {
		refused = x.quota.allow(x.start)
	}
	return refused // the tunnel holds the place
}

func (x *exchange) identify(id *identity) {
	x.id = id
	x.rec.ContainerID, x.rec.Organization = id.claims.ContainerID, id.claims.OrganizationUUID
	x.rec.Namespace, x.rec.Policy = splitRef(id.claims.EgressPolicy)
}

func (s *Server) decide(x *exchange) *refusal {
	pod, refused := s.bind(x.id, x.state, x.client, x.start)
	if pod != nil {
		x.pod = pod
		x.rec.Namespace, x.rec.Pod, x.rec.PodUID = pod.Namespace, pod.Name, pod.UID
	}
	if refused != nil {
		return refused
	}
	p, refused := selectPolicy(x.id, pod, x.state)
	if refused != nil {
		return refused
	}
	x.policy = p
	x.rec.Namespace, x.rec.Policy = splitRef(p.Ref)
	x.rec.PolicyGeneration = p.Generation
	x.verdict = authorize(x.id, pod, p, x.wanted())
	x.rec.Rule = x.verdict.rule
	if !x.verdict.allowed {
		r := forbidden(x.verdict.reason, deniedDetail(x))
		r.rule, r.remedy = x.verdict.rule, x.verdict.remedy
		return r
	}
	if via := x.req.head.viaContains(s.via); via {
		return forbidden(ReasonLoop, "the request has been through this proxy already")
	}
	x.quota = s.quotas.of(x.id.claims.ContainerID, p.Limits, x.start)
	return nil
}

func (x *exchange) wanted() allowlist.Request {
	return allowlist.Request{
		Authority: x.req.authority, Method: x.req.method, Path: x.req.path,
		Visible: x.req.kind == kindForward,
	}
}

func deniedDetail(x *exchange) string {
	to := x.req.authority.Host.String() + " port " + strconv.Itoa(int(x.req.authority.Port))
	switch x.verdict.reason {
	case ReasonHostDenied:
		return to + " is denied by the policy"
	case ReasonPortNotAllowed:
		return to + ": the host is allowed, but not on this port"
	case ReasonMethodNotAllowed:
		return to + ": method " + x.req.method + " is not allowed"
	case ReasonPathNotAllowed:
		return to + ": this path is not allowed"
	}
	return to + " is not on the allowlist"
}

// refuse writes the one audit record of a refusal, with the status the client gets; 0 when
// a tunnel is cut instead.
func (x *exchange) refuse(r *refusal, status int) {
	if x.holds {
		x.quota.release()
		x.holds = false
	}
	x.rec.Decision, x.rec.Reason, x.rec.Detail, x.rec.Status = r.verdict(), string(r.reason), r.detail, status
	if r.rule != "" {
		x.rec.Rule = r.rule
	}
	x.srv.record(&x.rec)
}

// open registers the exchange as a live flow to o. It is refused after all when the policy
// has changed meanwhile and no longer allows it.
func (x *exchange) open(client, o *stream, dialled netip.Addr) (*flow, *refusal) {
	f := &flow{
		srv: x.srv, id: x.id, client: x.client, state: x.state, policy: x.policy,
		req: x.wanted(), quota: x.quota, holds: x.holds, start: x.start, seenAt: x.start, rec: x.rec,
	}
	if f.req.Path != "" {
		f.req.Path = strings.Clone(f.req.Path) // not the whole head
	}
	f.req.Method = x.rec.Method
	f.rec.DialledIP, f.dialled = dialled, dialled
	f.rec.ID = strconv.FormatUint(x.srv.flowID.Add(1), 36)
	f.helloDue.Store(x.req.kind == kindConnect && x.mustBeTLS())
	f.shard = x.srv.flows.add(f)
	// A change that came between the decision and the registration was checked against the
	// registered flows without this one.
	if st := x.srv.store.Load(); st != x.state {
		if refused := f.recheck(st, x.srv.opt.Now()); refused != nil {
			x.srv.flows.remove(f, f.shard)
			return nil, refused
		}
	}
	x.holds = false // the flow's now
	f.attach(client, o)
	return f, nil
}

// allow writes the decision record of an allowed flow. problem is what a policy in mode
// Audit lets pass, besides the verdict by name.
func (x *exchange) allow(f *flow, problem *refusal) {
	f.rec.Decision = audit.Allow
	if x.verdict.wouldDeny {
		f.rec.Decision, f.rec.Reason = audit.WouldDeny, string(x.verdict.reason)
	} else if problem != nil {
		f.rec.Decision, f.rec.Reason, f.rec.Detail = audit.WouldDeny, string(problem.reason), problem.detail
	}
	x.srv.record(&f.rec)
}

// finish writes the close record. It is called exactly once.
func (f *flow) finish(status int) {
	f.discard()
	f.rec.Event, f.rec.Status = audit.Close, status
	f.rec.Reason, f.rec.Detail = string(ReasonClosed), ""
	if e := f.ended.Load(); e != nil {
		f.rec.Reason, f.rec.Detail = string(e.reason), e.detail
		if e.verdict != audit.Allow {
			f.rec.Decision = e.verdict
		}
	}
	f.rec.BytesSent, f.rec.BytesReceived = f.sent.Load(), f.received.Load()
	f.rec.Duration = f.srv.opt.Now().Sub(f.start)
	f.srv.record(&f.rec)
	if f.finished != nil {
		close(f.finished)
	}
}

// discard takes the flow off the books without a close record.
func (f *flow) discard() {
	f.srv.flows.remove(f, f.shard)
	if f.holds {
		f.quota.release()
	}
}

// splitRef splits "namespace/name"; a bare name has no namespace.
func splitRef(ref string) (namespace, name string) {
	if ns, n, ok := strings.Cut(ref, "/"); ok {
		return ns, n
	}
	return "", ref
}

// viaContains reports whether a Via field names pseudonym (RFC 9110 section 7.6.3).
func (h *head) viaContains(pseudonym string) bool {
	for i := range h.fields {
		if strings.EqualFold(h.fields[i].name, "Via") && strings.Contains(h.fields[i].value, pseudonym) {
			return true
		}
	}
	return false
}
