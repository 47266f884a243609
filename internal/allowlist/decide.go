package allowlist

import (
	"slices"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

// Request is what Decide is asked about.
type Request struct {
	Authority hostname.Authority
	Method    string
	Path      string // raw (still percent-encoded) path, no query; "" stands for "/"
	// Visible is set when the proxy sees method and path (plain HTTP). In an
	// opaque tunnel the methods and paths of rules are not looked at.
	Visible bool
}

// Reason is the wire word for a refusal; "" when allowed.
type Reason string

// From the least to the most specific; a refusal carries the most specific one
// that any rule came to.
const (
	ReasonHostDenied       Reason = "host_denied"
	ReasonHostNotAllowed   Reason = "host_not_allowed"
	ReasonPortNotAllowed   Reason = "port_not_allowed"
	ReasonMethodNotAllowed Reason = "method_not_allowed"
	ReasonPathNotAllowed   Reason = "path_not_allowed"
)

// Decision is the answer. Rule names the entry that made it, such as
// `allowedHosts[2] "*.example.org"`; for a refusal by port, method or path the
// entry that came closest; "" when no entry matches the host.
type Decision struct {
	Allowed bool
	Reason  Reason
	Rule    string
	TLS     TLSMode
}

// Decide says whether r is allowed and by which entry. deniedHosts beat all; else
// any entry that allows is enough, the most specific host first, except that an
// entry with TLSOptional is preferred, since it allows more.
//
// The cost is one map lookup for the host and one for each length, in labels, that
// wildcards of the policy have, and no allocation unless a path needs decoding. A
// nil Matcher allows nothing.
func (m *Matcher) Decide(r Request) Decision {
	if m == nil || r.Authority.Port == 0 {
		return Decision{Reason: ReasonHostNotAllowed}
	}
	s := search{req: &r}
	host := r.Authority.Host
	if host.IsIP() {
		s.visit(m.addrs[host.Addr()], r.Authority.Port)
		return s.result()
	}
	name := host.Name()
	if name == "" {
		return Decision{Reason: ReasonHostNotAllowed}
	}
	if !s.visit(m.names[name], r.Authority.Port) {
		return s.result()
	}
	// Leave out the labels that no wildcard is long enough for: a name of 127
	// labels must not cost 127 lookups.
	at, labels := lastLabels(name, len(m.lengths)-1)
	for ; labels > 0; labels-- {
		if m.lengths[labels] && !s.visit(m.wildcards[name[at:]], r.Authority.Port) {
			break
		}
		at += strings.IndexByte(name[at:], '.') + 1
	}
	return s.result()
}

// lastLabels returns where the last labels of name begin and how many they are:
// at most limit, and not all, since a wildcard never stands for its own host.
func lastLabels(name string, limit int) (at, labels int) {
	for i := len(name); labels < limit; labels++ {
		i = strings.LastIndexByte(name[:i], '.')
		if i < 0 {
			break
		}
		at = i + 1
	}
	return at, labels
}

// search collects the best outcome over the nodes of one request.
type search struct {
	req     *Request
	best    *grant
	allowed bool
	denied  bool
	rank    uint8 // how far the best refused grant got
	path    pathCache
}

const (
	rankPort uint8 = iota + 1
	rankMethod
	rankPath
)

// visit weighs the entries of one node and returns false when the search is over.
func (s *search) visit(n *node, port uint16) bool {
	if n == nil {
		return true
	}
	for i := range n.deny {
		if d := &n.deny[i]; d.port == 0 || d.port == port {
			s.best, s.allowed, s.denied = d.grant, false, true
			return false
		}
	}
	for _, g := range n.allow {
		s.weigh(g, port)
	}
	return true
}

func (s *search) weigh(g *grant, port uint16) {
	rank := uint8(0)
	switch {
	case !slices.Contains(g.ports, port):
		rank = rankPort
	case s.req.Visible && len(g.methods) > 0 && !slices.Contains(g.methods, s.req.Method):
		rank = rankMethod
	case s.req.Visible && len(g.paths) > 0 && !s.path.matches(s.req.Path, g.paths):
		rank = rankPath
	}
	switch {
	case rank == 0:
		if !s.allowed || s.best.tls == TLSRequired && g.tls == TLSOptional {
			s.best, s.allowed = g, true
		}
	case !s.allowed && rank > s.rank:
		s.best, s.rank = g, rank
	}
}

func (s *search) result() Decision {
	switch {
	case s.denied:
		return Decision{Reason: ReasonHostDenied, Rule: s.best.label}
	case s.allowed:
		return Decision{Allowed: true, Rule: s.best.label, TLS: s.best.tls}
	case s.rank == rankPort:
		return Decision{Reason: ReasonPortNotAllowed, Rule: s.best.label}
	case s.rank == rankMethod:
		return Decision{Reason: ReasonMethodNotAllowed, Rule: s.best.label}
	case s.rank == rankPath:
		return Decision{Reason: ReasonPathNotAllowed, Rule: s.best.label}
	}
	return Decision{Reason: ReasonHostNotAllowed}
}
