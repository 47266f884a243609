package ipguard

import (
	"fmt"
	"net/netip"
	"slices"
)

// The widest exceptions: 240.0.0.0/4 and fc00::/7 are the widest ranges that
// networks are numbered from. Anything wider is half the internet.
const (
	widestIPv4 = 4
	widestIPv6 = 7
)

// New returns a guard that opens privateNetworks. A network is refused, with an
// error that names it, when it is not in canonical form, when it is wider than
// any private network, or when it lies wholly in a range that is never open.
// Never-open ranges inside a wider network stay closed.
func New(privateNetworks []netip.Prefix) (*Guard, error) {
	open := make([]netip.Prefix, 0, len(privateNetworks))
	for _, p := range privateNetworks {
		if err := validate(p); err != nil {
			return nil, err
		}
		open = append(open, p)
	}
	slices.SortStableFunc(open, func(x, y netip.Prefix) int { return y.Bits() - x.Bits() })
	return &Guard{open: open}, nil
}

func validate(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("private network %q is not a CIDR: write it as 10.20.0.0/16", p)
	case p.Addr().Is4In6():
		return mapped(p)
	case p != p.Masked():
		return fmt.Errorf("private network %s has bits set behind its prefix length: write %s", p, p.Masked())
	case p.Addr().Is4() && p.Bits() < widestIPv4, p.Addr().Is6() && p.Bits() < widestIPv6:
		return fmt.Errorf("private network %s is too wide: it would open every private range at once; list the networks that are needed, such as 10.20.0.0/16", p)
	}
	for _, r := range slices.Concat(table.four, table.six) {
		if r.Never && r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) {
			return fmt.Errorf("private network %s can never be opened: it is in %s, %s (%s); remove it", p, r.Prefix, r.Name, r.Source)
		}
	}
	if p.Overlaps(nat64Local) && p.Bits() < 96 && p.Bits() != 48 && p.Bits() != 56 && p.Bits() != 64 {
		return fmt.Errorf("private network %s overlaps 64:ff9b:1::/48 (RFC 8215) but is no NAT64 prefix: write the translation prefix itself, of length 48, 56, 64 or 96 (RFC 6052)", p)
	}
	return nil
}

func mapped(p netip.Prefix) error {
	if p.Bits() < 96 {
		return fmt.Errorf("private network %s is an IPv4-mapped IPv6 network: write the IPv4 network", p)
	}
	v4 := netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	return fmt.Errorf("private network %s is an IPv4-mapped IPv6 network: write %s", p, v4)
}
