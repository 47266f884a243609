package ipguard

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// mustStayClosed is written apart from the table: what no configuration may open.
var mustStayClosed = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("192.0.0.192/32"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	netip.MustParsePrefix("fd00:ec2::254/128"), netip.MustParsePrefix("fd20:ce::254/128"),
}

// anyAddr draws addresses of all families, near the edges of ranges more often
// than chance would.
func anyAddr() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		var b [16]byte
		copy(b[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes"))
		if rapid.Bool().Draw(t, "near a range") {
			rs := SpecialRanges()
			p := rs[rapid.IntRange(0, len(rs)-1).Draw(t, "range")].Prefix
			inside(p, &b)
			if p.Addr().Is4() {
				return embed(t, netip.AddrFrom4([4]byte(b[12:])))
			}
			return netip.AddrFrom16(b)
		}
		if rapid.Bool().Draw(t, "IPv4") {
			return embed(t, netip.AddrFrom4([4]byte(b[12:])))
		}
		return netip.AddrFrom16(b)
	})
}

// inside forces the leading bits of b to those of p.
func inside(p netip.Prefix, b *[16]byte) {
	want, off := p.Addr().As16(), 0
	if p.Addr().Is4() {
		off = 96
	}
	for i := off; i < off+p.Bits(); i++ {
		mask := byte(1) << (7 - i%8)
		b[i/8] = b[i/8]&^mask | want[i/8]&mask
	}
}

// embed wraps an IPv4 address in one of the forms that carry one.
func embed(t *rapid.T, v4 netip.Addr) netip.Addr {
	x := v4.As4()
	var b [16]byte
	switch rapid.IntRange(0, 6).Draw(t, "form") {
	case 0:
		return netip.AddrFrom16(v4.As16()) // v4-mapped
	case 1:
		b = nat64.Addr().As16()
		copy(b[12:], x[:])
	case 2:
		b[0], b[1] = 0x20, 0x02
		copy(b[2:], x[:])
	case 3:
		b = teredo.Addr().As16()
		copy(b[4:], []byte{8, 8, 8, 8})
		for i := range x {
			b[12+i] = ^x[i]
		}
	case 4:
		copy(b[12:], x[:])
	case 5:
		b = netip.MustParseAddr("2606:4700::5efe:0:0").As16()
		copy(b[12:], x[:])
	default:
		return v4
	}
	return netip.AddrFrom16(b)
}

func anyNetworks() *rapid.Generator[[]netip.Prefix] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := anyAddr().Draw(t, "network").Unmap()
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	}), 0, 4)
}

// carried gives what an address stands for by a reading of the RFCs that is
// independent of embedded().
func carried(a netip.Addr) []netip.Addr {
	b := a.As16()
	v4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case a.Is4():
		return []netip.Addr{a}
	case a.Is4In6():
		return []netip.Addr{a.Unmap()}
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return []netip.Addr{a, v4(12)}
	case b[0] == 0x20 && b[1] == 2:
		return []netip.Addr{a, v4(2)}
	case b[0] == 0x20 && b[1] == 1 && b[2] == 0 && b[3] == 0:
		return []netip.Addr{a, v4(4), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return []netip.Addr{a, v4(12)}
	}
	return []netip.Addr{a}
}

func TestNoExceptionOpensWhatMustStayClosed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, err := New(anyNetworks().Draw(t, "networks"))
		if err != nil {
			return // refusing is safe
		}
		a := anyAddr().Draw(t, "addr")
		if g.Check(a) != nil {
			return
		}
		for _, x := range carried(a) {
			for _, p := range mustStayClosed {
				if p.Contains(x) {
					t.Fatalf("%s, which is in %s by way of %s, may be dialled", a, p, x)
				}
			}
		}
	})
}

func TestExceptionsOnlyEverOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		networks := anyNetworks().Draw(t, "networks")
		g, err := New(networks)
		if err != nil {
			return
		}
		a := anyAddr().Draw(t, "addr")
		// A local NAT64 exception names the layout, which may close an address
		// that no exception would have opened anyway.
		if (*Guard)(nil).Check(a) == nil && g.Check(a) != nil {
			t.Fatalf("%v close %s", networks, a)
		}
		if (*Guard)(nil).Check(a) != nil && g.Check(a) == nil {
			covered := false
			for _, x := range carried(a) {
				for _, p := range networks {
					covered = covered || p.Contains(x)
				}
			}
			if !covered {
				t.Fatalf("%v open %s, which they do not hold", networks, a)
			}
		}
	})
}

func TestSpellingsOfAnAddressAreDecidedAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, err := New(anyNetworks().Draw(t, "networks"))
		if err != nil {
			g = nil
		}
		a := anyAddr().Draw(t, "addr")
		want := g.Check(a) == nil
		spellings := []netip.Addr{a.Unmap()}
		if a.Is4() {
			spellings = append(spellings, netip.AddrFrom16(a.As16()))
		} else {
			spellings = append(spellings, a.WithZone("eth0"))
		}
		for _, s := range spellings {
			if (g.Check(s) == nil) != want {
				t.Fatalf("%s: %v, %s: %v", a, g.Check(a), s, g.Check(s))
			}
		}
	})
}

func FuzzCheck(f *testing.F) {
	for _, r := range SpecialRanges() {
		f.Add(r.Prefix.Addr().String(), r.Prefix.String())
	}
	f.Add("fe80::1%eth0", "10.0.0.0/8")
	f.Add("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::/48")
	f.Add("", "0.0.0.0/0")
	f.Fuzz(func(t *testing.T, addr, cidr string) {
		p, _ := netip.ParsePrefix(cidr)
		a, _ := netip.ParseAddr(addr)
		g, err := New([]netip.Prefix{p})
		if err != nil && g != nil {
			t.Fatal("a guard with an error")
		}
		err = g.Check(a)
		var denied *DeniedError
		if err != nil && (!errors.As(err, &denied) || err.Error() == "") {
			t.Fatalf("%v is not a DeniedError", err)
		}
		if err != nil {
			return
		}
		for _, x := range carried(a.WithZone("")) {
			for _, never := range mustStayClosed {
				if never.Contains(x) {
					t.Fatalf("%s may be dialled with %s", a, p)
				}
			}
		}
	})
}
