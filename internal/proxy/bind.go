package proxy

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// bind holds a token to the container it was minted for. Where the pods are known, the
// container must be one live pod, and a bound token must come from one of its addresses.
// Elsewhere a bound token belongs to the first source address that presents it, unless
// binding is off. The pod is nil where pods are not known.
func (s *Server) bind(id *identity, st *policy.State, client netip.Addr, now time.Time) (*policy.Pod, *refusal) {
	bound := bool(id.claims.EnforceContainerBinding)
	if !st.PodsKnown() {
		if bound && s.firstUse != nil && !s.firstUse.claim(id, client, now) {
			return nil, forbidden(ReasonSourceNotBound, "this token is in use from another source address")
		}
		return nil, nil
	}
	pod, err := st.Pod(id.claims.ContainerID)
	switch {
	case errors.Is(err, policy.ErrAmbiguousContainer):
		return nil, forbidden(ReasonContainerAmbiguous, err.Error())
	case err != nil:
		return nil, forbidden(ReasonContainerUnknown, err.Error())
	case pod.Quarantined:
		return pod, forbidden(ReasonQuarantined, "this sandbox is quarantined")
	case pod.Terminal:
		return pod, forbidden(ReasonContainerTerminated, "this sandbox has ended")
	case bound && !pod.HasIP(client):
		return pod, forbidden(ReasonSourceNotBound, "the request does not come from an address of the pod that this token belongs to")
	}
	return pod, nil
}

// firstUse remembers which source address a container_id belongs to.
type firstUse struct {
	mu sync.Mutex
	m  map[string]firstUseEntry
}

type firstUseEntry struct {
	addr netip.Addr
	// until is when the last token that the address has shown stops being valid.
	until time.Time
}

const maxFirstUse = 1 << 17

// claim reports whether id may be used from addr, and takes the container_id for addr when
// nobody holds it. A newer token from the same address prolongs the hold.
func (f *firstUse) claim(id *identity, addr netip.Addr, now time.Time) bool {
	until := id.exp.Add(token.Leeway)
	f.mu.Lock()
	defer f.mu.Unlock()
	e, held := f.m[id.claims.ContainerID]
	held = held && !now.After(e.until)
	switch {
	case held && e.addr != addr:
		return false
	case held && !until.After(e.until):
		return true
	case !held && len(f.m) >= maxFirstUse:
		f.forgetLocked(now)
		if len(f.m) >= maxFirstUse {
			return false // a full table must not let a token roam
		}
	}
	if f.m == nil {
		f.m = make(map[string]firstUseEntry)
	}
	f.m[id.claims.ContainerID] = firstUseEntry{addr: addr, until: until}
	return true
}

// heldUntil returns until when addr holds the container_id; zero when it does not.
func (f *firstUse) heldUntil(containerID string, addr netip.Addr) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.m[containerID]; ok && e.addr == addr {
		return e.until
	}
	return time.Time{}
}

func (f *firstUse) forget(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked(now)
}

func (f *firstUse) forgetLocked(now time.Time) {
	for k, e := range f.m {
		if now.After(e.until) {
			delete(f.m, k)
		}
	}
}
