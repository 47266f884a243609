// Package policy holds what the egress proxy decides from: the policies, the sandboxes and
// the public keys in force, as one immutable snapshot that a source replaces whole. It
// knows nothing of Kubernetes; internal/policy/kube and internal/policy/manifest fill it.
package policy

import (
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
)

// Mode says what happens to destinations off the list.
type Mode uint8

const (
	// Enforce refuses them. It is the zero value, so a forgotten field fails closed.
	Enforce Mode = iota
	// Audit lets them pass and records would_deny; authentication, binding and the
	// address guard still enforce.
	Audit
)

func (m Mode) String() string {
	if m == Audit {
		return "Audit"
	}
	return "Enforce"
}

// Limits bound one sandbox at one proxy; 0 means no limit.
type Limits struct {
	// Connections is the number of tunnels and requests in flight.
	Connections int
	// RequestsPerSecond counts plain requests and tunnel set-ups.
	RequestsPerSecond int64
	// BytesPerSecond counts both directions together.
	BytesPerSecond int64
}

// Upstream is another HTTP proxy that every connection goes through (HTTP CONNECT). Its
// credentials come from a file that the proxy is told of, never from the policy.
type Upstream struct {
	Authority hostname.Authority
}

// Policy is one compiled SandboxEgress. It is immutable once it is in a State.
type Policy struct {
	// Ref is "namespace/name", the value of the egress_policy claim.
	Ref string
	// Generation is metadata.generation of the object it was compiled from.
	Generation int64
	Mode       Mode
	// Matcher decides hosts, ports, methods and paths. nil allows nothing.
	Matcher *allowlist.Matcher
	// TokenHosts makes the allowed_hosts claim decide as well: a request must be in the
	// claim and, when Matcher is not nil, in Matcher too. Only State.Default has it.
	TokenHosts bool
	// Guard is the address check after DNS. nil is the default table.
	Guard    *ipguard.Guard
	Limits   Limits
	Upstream *Upstream
}
