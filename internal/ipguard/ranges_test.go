package ipguard

import (
	"net/netip"
	"slices"
	"testing"
)

// The IANA IPv4 and IPv6 Special-Purpose Address Registries, without
// ::ffff:0:0/96 and 64:ff9b::/96, which are read through to the IPv4 address.
var registries = []string{
	"0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32",
	"192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
	"192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32",
	"::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32",
	"2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
	"2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48",
	"3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10",
}

func TestEverySpecialPurposeRangeIsClosed(t *testing.T) {
	for _, s := range registries {
		p := netip.MustParsePrefix(s)
		if !slices.ContainsFunc(SpecialRanges(), func(r Range) bool { return r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) }) {
			t.Errorf("%s is in no range", s)
		}
		for _, a := range []netip.Addr{p.Addr(), last(p)} {
			if (*Guard)(nil).Check(a) == nil {
				t.Errorf("%s of %s may be dialled", a, p)
			}
		}
	}
}

func TestSpecialRangesAreWellFormed(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for _, r := range SpecialRanges() {
		if r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() || r.Name == "" || r.Source == "" || seen[r.Prefix] {
			t.Errorf("%+v", r)
		}
		seen[r.Prefix] = true
		for _, a := range []netip.Addr{r.Prefix.Addr(), last(r.Prefix)} {
			if (*Guard)(nil).Check(a) == nil {
				t.Errorf("%s of %s may be dialled", a, r.Prefix)
			}
		}
	}
	SpecialRanges()[0].Never = false
	if !SpecialRanges()[0].Never {
		t.Error("a caller can change the table")
	}
}

// last returns the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	off := 0
	if p.Addr().Is4() {
		off = 96
	}
	for i := p.Bits() + off; i < 128; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a := netip.AddrFrom16(b)
	if off != 0 {
		return a.Unmap()
	}
	return a
}
