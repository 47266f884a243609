package ipguard

import "net/netip"

// Range is a block of addresses that is closed by default.
type Range struct {
	Prefix netip.Prefix
	Name   string // as in the IANA registry
	Source string // the RFC, or the vendor's manual for a cloud metadata address
	Never  bool   // no exception reopens it
}

// SpecialRanges returns the closed ranges, IPv4 first, each time a new slice. It
// is the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), the
// multicast and reserved blocks, and the cloud metadata addresses. For 64:ff9b::/96
// (NAT64) it lists the translations of the IPv4 ranges, since the prefix itself
// is as open as the IPv4 address inside.
//
// The IPv4-mapped block ::ffff:0:0/96 is not listed: Check reads its addresses as
// IPv4, and a NetworkPolicy ipBlock cannot hold it.
func SpecialRanges() []Range {
	four, six := ipv4Ranges(), ipv6Ranges()
	out := append([]Range{}, four...)
	out = append(out, six...)
	for _, r := range four {
		b := nat64.Addr().As16()
		v4 := r.Prefix.Addr().As4()
		copy(b[12:], v4[:])
		out = append(out, Range{
			Prefix: netip.PrefixFrom(netip.AddrFrom16(b), 96+r.Prefix.Bits()),
			Name:   "NAT64 of " + r.Name,
			Source: r.Source + ", RFC 6052",
			Never:  r.Never,
		})
	}
	return out
}

func closed(prefix, name, source string) Range {
	return Range{Prefix: netip.MustParsePrefix(prefix), Name: name, Source: source}
}

func never(prefix, name, source string) Range {
	r := closed(prefix, name, source)
	r.Never = true
	return r
}

// The metadata addresses hand out the credentials of the node; two of them lie
// outside every special-purpose range, so the registries alone would miss them.
func ipv4Ranges() []Range {
	return []Range{
		never("0.0.0.0/8", "This network", "RFC 791"),
		closed("10.0.0.0/8", "Private-Use", "RFC 1918"),
		closed("100.64.0.0/10", "Shared Address Space", "RFC 6598"),
		never("100.100.100.200/32", "Alibaba Cloud metadata", "Alibaba Cloud ECS user guide"),
		never("127.0.0.0/8", "Loopback", "RFC 1122"),
		never("168.63.129.16/32", "Azure platform endpoint", "Azure Virtual Network documentation"),
		never("169.254.0.0/16", "Link Local", "RFC 3927"),
		never("169.254.169.254/32", "Cloud metadata", "RFC 3927; AWS, Azure, Google Cloud, OpenStack documentation"),
		closed("172.16.0.0/12", "Private-Use", "RFC 1918"),
		closed("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890"),
		closed("192.0.0.0/29", "IPv4 Service Continuity Prefix", "RFC 7335"),
		closed("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
		closed("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723"),
		closed("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
		closed("192.0.0.170/31", "NAT64/DNS64 Discovery", "RFC 8880"),
		never("192.0.0.192/32", "Oracle Cloud metadata", "Oracle Cloud Infrastructure Classic documentation"),
		closed("192.0.2.0/24", "Documentation (TEST-NET-1)", "RFC 5737"),
		closed("192.31.196.0/24", "AS112-v4", "RFC 7535"),
		closed("192.52.193.0/24", "AMT", "RFC 7450"),
		closed("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
		closed("192.88.99.2/32", "6a44 relay anycast address", "RFC 6751"),
		closed("192.168.0.0/16", "Private-Use", "RFC 1918"),
		closed("192.175.48.0/24", "Direct Delegation AS112 Service", "RFC 7534"),
		closed("198.18.0.0/15", "Benchmarking", "RFC 2544"),
		closed("198.51.100.0/24", "Documentation (TEST-NET-2)", "RFC 5737"),
		closed("203.0.113.0/24", "Documentation (TEST-NET-3)", "RFC 5737"),
		never("224.0.0.0/4", "Multicast", "RFC 5771"),
		closed("240.0.0.0/4", "Reserved", "RFC 1112"),
		never("255.255.255.255/32", "Limited Broadcast", "RFC 919"),
	}
}

func ipv6Ranges() []Range {
	return []Range{
		never("::/128", "Unspecified Address", "RFC 4291"),
		never("::1/128", "Loopback Address", "RFC 4291"),
		closed("::/96", "IPv4-compatible (deprecated)", "RFC 4291"),
		closed("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
		closed("64:ff9b:1::/48", "IPv4-IPv6 Translation (local use)", "RFC 8215"),
		closed("100::/64", "Discard-Only Address Block", "RFC 6666"),
		closed("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780"),
		closed("100::/8", "Reserved by IETF", "RFC 4291"),
		closed("200::/7", "Reserved by IETF", "RFC 4048"),
		closed("400::/6", "Reserved by IETF", "RFC 4291"),
		closed("800::/5", "Reserved by IETF", "RFC 4291"),
		closed("1000::/4", "Reserved by IETF", "RFC 4291"),
		closed("2001::/23", "IETF Protocol Assignments", "RFC 2928"),
		closed("2001::/32", "Teredo", "RFC 4380"),
		closed("2001:1::1/128", "Port Control Protocol Anycast", "RFC 7723"),
		closed("2001:1::2/128", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
		closed("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "RFC 9665"),
		closed("2001:2::/48", "Benchmarking", "RFC 5180"),
		closed("2001:3::/32", "AMT", "RFC 7450"),
		closed("2001:4:112::/48", "AS112-v6", "RFC 7535"),
		closed("2001:10::/28", "Deprecated (ORCHID)", "RFC 4843"),
		closed("2001:20::/28", "ORCHIDv2", "RFC 7343"),
		closed("2001:30::/28", "Drone Remote ID Protocol Entity Tags", "RFC 9374"),
		closed("2001:db8::/32", "Documentation", "RFC 3849"),
		closed("2002::/16", "6to4", "RFC 3056"),
		closed("2620:4f:8000::/48", "Direct Delegation AS112 Service", "RFC 7534"),
		closed("3fff::/20", "Documentation", "RFC 9637"),
		closed("4000::/3", "Reserved by IETF", "RFC 4291"),
		closed("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602"),
		closed("6000::/3", "Reserved by IETF", "RFC 4291"),
		closed("8000::/3", "Reserved by IETF", "RFC 4291"),
		closed("a000::/3", "Reserved by IETF", "RFC 4291"),
		closed("c000::/3", "Reserved by IETF", "RFC 4291"),
		closed("e000::/4", "Reserved by IETF", "RFC 4291"),
		closed("f000::/5", "Reserved by IETF", "RFC 4291"),
		closed("f800::/6", "Reserved by IETF", "RFC 4291"),
		closed("fc00::/7", "Unique-Local", "RFC 4193"),
		never("fd00:42::42/128", "Scaleway metadata", "Scaleway Instances documentation"),
		never("fd00:a9fe:a9fe::1/128", "Linode metadata", "Akamai Linode Metadata documentation"),
		never("fd00:ec2::/32", "AWS instance services", "Amazon EC2 user guide"),
		never("fd00:ec2::254/128", "AWS instance metadata", "Amazon EC2 user guide"),
		never("fd20:ce::254/128", "Google Cloud metadata", "Google Compute Engine documentation"),
		closed("fe00::/9", "Reserved by IETF", "RFC 4291"),
		never("fe80::/10", "Link-Local Unicast", "RFC 4291"),
		closed("fec0::/10", "Deprecated (site-local)", "RFC 3879"),
		never("ff00::/8", "Multicast", "RFC 4291"),
	}
}
