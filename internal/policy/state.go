package policy

import (
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// State is one immutable snapshot. Build it with NewState and do not change what was
// passed in afterwards.
type State struct {
	policies map[string]*Policy
	pods     map[string]podEntry
	keys     *token.KeySet
	dflt     *Policy
	podsLive bool
}

type podEntry struct {
	pod       *Pod
	ambiguous bool
}

// Config is what a State is made of.
type Config struct {
	// Policies by their Ref; a later duplicate Ref replaces an earlier one.
	Policies []*Policy
	// Pods that are known. Two that are not Terminal with one ContainerID make the id
	// ambiguous, and it is refused.
	Pods []*Pod
	// PodsKnown says that Pods is the whole truth: a container_id that is not in it is
	// refused, and a bound token works only from its pod's addresses. A standalone proxy
	// without a binding file leaves it false.
	PodsKnown bool
	// Keys verify tokens; nil verifies none.
	Keys *token.KeySet
	// Default is the policy for tokens without egress_policy; nil refuses them.
	Default *Policy
}

// NewState indexes c.
func NewState(c Config) *State {
	s := &State{
		policies: make(map[string]*Policy, len(c.Policies)),
		pods:     make(map[string]podEntry, len(c.Pods)),
		keys:     c.Keys,
		dflt:     c.Default,
		podsLive: c.PodsKnown,
	}
	for _, p := range c.Policies {
		s.policies[p.Ref] = p
	}
	for _, p := range c.Pods {
		old, seen := s.pods[p.ContainerID]
		switch {
		case !seen, old.pod.Terminal && !p.Terminal:
			// A finished pod gives its session id up to the one that follows it.
			s.pods[p.ContainerID] = podEntry{pod: p}
		case !p.Terminal:
			old.ambiguous = true
			s.pods[p.ContainerID] = old
		}
	}
	return s
}

// Policy returns the policy with the given Ref, or nil.
func (s *State) Policy(ref string) *Policy { return s.policies[ref] }

// Policies returns the Refs of all policies, in no order.
func (s *State) Policies() []string {
	refs := make([]string, 0, len(s.policies))
	for r := range s.policies {
		refs = append(refs, r)
	}
	return refs
}

// Default returns the policy for tokens without egress_policy, or nil.
func (s *State) Default() *Policy { return s.dflt }

// PodsKnown reports whether a container_id that Pod does not know must be refused.
func (s *State) PodsKnown() bool { return s.podsLive }

// Keys returns the keys that verify tokens; nil when there are none.
func (s *State) Keys() *token.KeySet { return s.keys }

// Pod returns the pod with the container_id, terminal or not.
// The error is ErrUnknownContainer or ErrAmbiguousContainer.
func (s *State) Pod(containerID string) (*Pod, error) {
	e, ok := s.pods[containerID]
	switch {
	case !ok:
		return nil, ErrUnknownContainer
	case e.ambiguous:
		return nil, ErrAmbiguousContainer
	}
	return e.pod, nil
}

// PodCount returns the number of distinct container_ids.
func (s *State) PodCount() int { return len(s.pods) }
