package policy

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
)

// Pod is one sandbox as the binding check sees it.
type Pod struct {
	Namespace, Name, UID string
	// ContainerID is the container_id claim its token carries.
	ContainerID  string
	Organization string
	// IPs are the current pod IPs, unmapped and without zone.
	IPs []netip.Addr
	// Narrow further restricts the policy for this pod; nil means not narrowed. A source
	// that cannot read the annotation sets a matcher that allows nothing.
	Narrow *allowlist.Matcher
	// Quarantined cuts the pod off.
	Quarantined bool
	// Terminal pods (Succeeded, Failed or being deleted past their containers) have no
	// egress, and do not make a container_id ambiguous.
	Terminal bool
	// PolicyRef is the "namespace/name" of the policy that the pod is under.
	PolicyRef string
}

// HasIP reports whether a is one of the pod's current addresses.
func (p *Pod) HasIP(a netip.Addr) bool {
	return slices.Contains(p.IPs, a.Unmap().WithZone(""))
}

var (
	// ErrUnknownContainer means that no live pod has the container_id.
	ErrUnknownContainer = errors.New("no pod with this container_id is known to the proxy")
	// ErrAmbiguousContainer means that more than one live pod has it, so neither is believed.
	ErrAmbiguousContainer = errors.New("more than one live pod has this container_id")
)
