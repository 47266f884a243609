package ipguard

import "net/netip"

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
	compatible = netip.MustParsePrefix("::/96")
	translated = netip.MustParsePrefix("::ffff:0:0:0/96")
	// Global unicast; the rest is reserved by the IETF (RFC 4291 section 2.4).
	globalUnicast = netip.MustParsePrefix("2000::/3")
)

// embedded returns the IPv4 addresses that a packet to a (IPv6, no zone) may end
// up at, and the name and source of the mechanism; none for a native address.
//
// ok is false when a carries an IPv4 address in a way that cannot be read with
// certainty; such an address is closed.
func embedded(a netip.Addr, localBits int) (v4 []netip.Addr, name, source string, ok bool) {
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return []netip.Addr{at(b, 12)}, "NAT64", "RFC 6052", true
	case nat64Local.Contains(a):
		x, ok := rfc6052(b, localBits)
		return []netip.Addr{x}, "NAT64", "RFC 6052", ok
	case sixToFour.Contains(a):
		return []netip.Addr{at(b, 2)}, "6to4", "RFC 3056", true
	case teredo.Contains(a):
		// RFC 4380 section 4: server in the clear, client with its bits inverted.
		client := [4]byte{^b[12], ^b[13], ^b[14], ^b[15]}
		return []netip.Addr{at(b, 4), netip.AddrFrom4(client)}, "Teredo", "RFC 4380", true
	case compatible.Contains(a):
		return []netip.Addr{at(b, 12)}, "IPv4-compatible", "RFC 4291", true
	case translated.Contains(a):
		return []netip.Addr{at(b, 12)}, "IPv4-translated", "RFC 2765", true
	case (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		// RFC 5214 section 6.1; the prefix can be anyone's.
		return []netip.Addr{at(b, 12)}, "ISATAP", "RFC 5214", true
	}
	return nil, "", "", true
}

func at(b [16]byte, i int) netip.Addr {
	return netip.AddrFrom4([4]byte(b[i : i+4]))
}

// rfc6052 reads the IPv4 address behind a translation prefix of 48, 56, 64 or 96
// bits (RFC 6052 section 2.2). Octet 8 and the suffix must be zero: then an
// address that was built for another prefix length is not misread.
func rfc6052(b [16]byte, bits int) (netip.Addr, bool) {
	if b[8] != 0 {
		return netip.Addr{}, false
	}
	var v4 [4]byte
	end := 16
	switch bits {
	case 48:
		v4, end = [4]byte{b[6], b[7], b[9], b[10]}, 11
	case 56:
		v4, end = [4]byte{b[7], b[9], b[10], b[11]}, 12
	case 64:
		v4, end = [4]byte{b[9], b[10], b[11], b[12]}, 13
	case 96:
		v4 = [4]byte(b[12:16])
	default:
		return netip.Addr{}, false
	}
	for _, x := range b[end:] {
		if x != 0 {
			return netip.Addr{}, false
		}
	}
	return netip.AddrFrom4(v4), true
}
