// Package ipguard decides which IP addresses may be dialled. It is asked after
// DNS, on every dial attempt (net.Dialer.Control), so that no name, rebinding or
// address literal leads to the node, the cluster, or the cloud's metadata.
//
// Every special-purpose range is closed. privateNetworks reopens ranges, except
// loopback, link-local, multicast, unspecified and metadata addresses: those stay
// closed also inside a wider exception.
//
// An IPv6 address that carries IPv4 addresses is only as open as each of them:
//   - 64:ff9b::/96 (NAT64, how IPv6-only clusters reach IPv4 hosts through DNS64)
//     is open exactly when the IPv4 address inside is;
//   - 6to4, Teredo, IPv4-compatible, IPv4-translated and local NAT64 are closed,
//     and when an exception reopens them the IPv4 addresses inside must be open too;
//   - an ISATAP interface identifier closes an otherwise open address when the
//     IPv4 address inside is closed.
//
// A NAT64 prefix out of an operator's own global space (RFC 6052 section 3.3)
// cannot be told from native IPv6 and is not recognised.
package ipguard

import (
	"fmt"
	"net/netip"
	"slices"
)

// Guard answers Check. It is immutable and safe for concurrent use; nil is the
// default table without exceptions.
type Guard struct {
	open []netip.Prefix
}

// DeniedError says which range keeps an address from being dialled.
type DeniedError struct {
	Addr   netip.Addr   // the address that was asked for
	Range  netip.Prefix // the range that closed it; the zero Prefix for an invalid address
	Name   string       // name of the range
	Source string       // where the range is defined, "RFC 6598"
}

func (e *DeniedError) Error() string {
	if !e.Addr.IsValid() {
		return "address not allowed: it is not an IP address"
	}
	return fmt.Sprintf("address %s not allowed: it is in %s, %s (%s)", e.Addr, e.Range, e.Name, e.Source)
}

// Check returns nil when a may be dialled, else a *DeniedError. An IPv4-mapped
// address is read as IPv4, a zone is ignored: netip.Prefix.Contains would
// otherwise match neither.
func (g *Guard) Check(a netip.Addr) error {
	asked := a
	if a = a.Unmap().WithZone(""); !a.IsValid() {
		return &DeniedError{}
	}
	if r, via := g.deny(a); r != nil {
		name, source := r.Name, r.Source
		if via != nil {
			name, source = name+" inside "+via.Name, source+", "+via.Source
		}
		return &DeniedError{Addr: asked, Range: r.Prefix, Name: name, Source: source}
	}
	return nil
}

// deny returns the range that closes a, and for an IPv4 address embedded in a
// the mechanism that carries it.
func (g *Guard) deny(a netip.Addr) (r, via *Range) {
	r = tightest(a)
	if r != nil && r.Never {
		return r, nil
	}
	exception, excepted := g.exception(a)
	if r != nil && !excepted {
		return r, nil
	}
	if a.Is4() {
		return nil, nil
	}
	v4, name, source, ok := embedded(a, translationBits(exception))
	if !ok {
		return r, nil
	}
	for _, x := range v4 {
		if inner, _ := g.deny(x); inner != nil {
			return inner, &Range{Name: name, Source: source}
		}
	}
	if !excepted && !globalUnicast.Contains(a) && !nat64.Contains(a) {
		return &Range{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 8), Name: "Reserved by IETF", Source: "RFC 4291"}, nil
	}
	return nil, nil
}

// exception returns the narrowest exception that holds a.
func (g *Guard) exception(a netip.Addr) (netip.Prefix, bool) {
	if g == nil {
		return netip.Prefix{}, false
	}
	// open is sorted narrowest first.
	for _, p := range g.open {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// translationBits is the length of the NAT64 prefix that an exception inside
// 64:ff9b:1::/48 names; New has let only 48, 56, 64 and 96 or more through.
func translationBits(p netip.Prefix) int {
	return min(p.Bits(), 96)
}

var table = struct{ four, six []Range }{sorted(ipv4Ranges()), sorted(ipv6Ranges())}

// sorted puts never-ranges first, then the narrowest first, so that the first hit
// is the one to report.
func sorted(rs []Range) []Range {
	slices.SortStableFunc(rs, func(x, y Range) int {
		if x.Never != y.Never {
			if x.Never {
				return -1
			}
			return 1
		}
		return y.Prefix.Bits() - x.Prefix.Bits()
	})
	return rs
}

func tightest(a netip.Addr) *Range {
	rs := table.six
	if a.Is4() {
		rs = table.four
	}
	for i := range rs {
		if rs[i].Prefix.Contains(a) {
			return &rs[i]
		}
	}
	return nil
}
