package ipguard

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mustGuard(t testing.TB, networks ...string) *Guard {
	t.Helper()
	var ps []netip.Prefix
	for _, n := range networks {
		ps = append(ps, netip.MustParsePrefix(n))
	}
	g, err := New(ps)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestPublicAddressesMayBeDialled(t *testing.T) {
	for _, a := range []string{
		"1.1.1.1", "8.8.8.8", "93.184.215.14", "9.255.255.255", "11.0.0.0",
		"100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
		"172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0",
		"198.17.255.255", "198.20.0.0", "223.255.255.255",
		"::ffff:8.8.8.8", "2606:4700::1111", "2001:4860:4860::8888", "2001:200::1",
		"2003::1", "2a00:1450:4001:82b::2011", "2620:fe::fe", "3ffe::1", "2606:4700::1111%eth0",
		// NAT64 of a public address: how IPv6-only clusters reach it.
		"64:ff9b::8.8.8.8", "64:ff9b::101:101",
		// An ISATAP identifier with a public address inside.
		"2606:4700::200:5efe:8.8.8.8",
	} {
		for name, g := range map[string]*Guard{"nil": nil, "no exceptions": mustGuard(t), "exceptions": mustGuard(t, "10.0.0.0/8", "fc00::/7")} {
			if err := g.Check(netip.MustParseAddr(a)); err != nil {
				t.Errorf("%s guard: %v", name, err)
			}
		}
	}
}

func TestClosedAddressesNameTheirRange(t *testing.T) {
	for a, want := range map[string]string{
		"0.0.0.0":                  "RFC 791",
		"0.1.2.3":                  "RFC 791",
		"10.0.0.1":                 "RFC 1918",
		"100.64.0.1":               "RFC 6598",
		"100.100.100.200":          "Alibaba Cloud metadata",
		"127.0.0.1":                "RFC 1122",
		"127.255.255.255":          "RFC 1122",
		"168.63.129.16":            "Azure",
		"169.254.1.1":              "RFC 3927",
		"169.254.169.254":          "Cloud metadata",
		"172.16.0.1":               "RFC 1918",
		"172.31.255.255":           "RFC 1918",
		"192.0.0.1":                "RFC 7335",
		"192.0.0.8":                "RFC 7600",
		"192.0.0.9":                "RFC 7723",
		"192.0.0.10":               "RFC 8155",
		"192.0.0.11":               "RFC 6890",
		"192.0.0.170":              "RFC 8880",
		"192.0.0.171":              "RFC 8880",
		"192.0.0.192":              "Oracle",
		"192.0.2.1":                "RFC 5737",
		"192.31.196.1":             "RFC 7535",
		"192.52.193.1":             "RFC 7450",
		"192.88.99.1":              "RFC 7526",
		"192.88.99.2":              "RFC 6751",
		"192.168.1.1":              "RFC 1918",
		"192.175.48.1":             "RFC 7534",
		"198.18.0.1":               "RFC 2544",
		"198.19.255.255":           "RFC 2544",
		"198.51.100.1":             "RFC 5737",
		"203.0.113.1":              "RFC 5737",
		"224.0.0.1":                "RFC 5771",
		"239.255.255.255":          "RFC 5771",
		"240.0.0.1":                "RFC 1112",
		"255.255.255.255":          "RFC 919",
		"::":                       "Unspecified",
		"::1":                      "Loopback",
		"::1%lo":                   "Loopback",
		"::2":                      "IPv4-compatible",
		"::127.0.0.1":              "IPv4-compatible",
		"::8.8.8.8":                "IPv4-compatible",
		"::ffff:0:8.8.8.8":         "IPv4-translated",
		"::fffe:8.8.8.8":           "Reserved by IETF",
		"64:ff9b::127.0.0.1":       "Loopback inside NAT64",
		"64:ff9b::169.254.169.254": "Cloud metadata inside NAT64",
		"64:ff9b::10.0.0.1":        "Private-Use inside NAT64",
		"64:ff9b::0.0.0.0":         "This network inside NAT64",
		"64:ff9b:1::8.8.8.8":       "RFC 8215",
		"64:ff9b:0:1::8.8.8.8":     "Reserved by IETF",
		"64:ff9c::1":               "Reserved by IETF",
		"100::1":                   "RFC 6666",
		"100:0:0:1::1":             "RFC 9780",
		"100:0:0:2::1":             "Reserved by IETF",
		"200::1":                   "RFC 4048",
		"400::1":                   "Reserved by IETF",
		"1fff::1":                  "Reserved by IETF",
		"2001::1":                  "RFC 4380",
		"2001:1::1":                "RFC 7723",
		"2001:1::2":                "RFC 8155",
		"2001:1::3":                "RFC 9665",
		"2001:1::4":                "RFC 2928",
		"2001:2::1":                "RFC 5180",
		"2001:3::1":                "RFC 7450",
		"2001:4:112::1":            "RFC 7535",
		"2001:10::1":               "RFC 4843",
		"2001:20::1":               "RFC 7343",
		"2001:30::1":               "RFC 9374",
		"2001:1ff::1":              "RFC 2928",
		"2001:db8::1":              "RFC 3849",
		"2002:808:808::1":          "RFC 3056",
		"2620:4f:8000::1":          "RFC 7534",
		"3fff::1":                  "RFC 9637",
		"4000::1":                  "Reserved by IETF",
		"5f00::1":                  "RFC 9602",
		"fbff::1":                  "Reserved by IETF",
		"fc00::1":                  "RFC 4193",
		"fd00:42::42":              "Scaleway",
		"fd00:a9fe:a9fe::1":        "Linode",
		"fd00:ec2::254":            "AWS instance",
		"fd20:ce::254":             "Google Cloud",
		"fe00::1":                  "Reserved by IETF",
		"fe80::1":                  "RFC 4291",
		"fe80::a9fe:a9fe%eth0":     "Link-Local",
		"fec0::1":                  "RFC 3879",
		"ff02::1":                  "Multicast",
		"ff0e::1":                  "Multicast",
		"::ffff:10.0.0.1":          "RFC 1918",
		"::ffff:127.0.0.1%eth0":    "RFC 1122",
		"::ffff:169.254.169.254":   "Cloud metadata",
		"2606:4700::5efe:10.0.0.1": "Private-Use inside ISATAP",
		"2606::200:5efe:127.0.0.1": "Loopback inside ISATAP",
	} {
		err := (*Guard)(nil).Check(netip.MustParseAddr(a))
		var denied *DeniedError
		if !errors.As(err, &denied) {
			t.Errorf("%s may be dialled", a)
			continue
		}
		if !strings.Contains(err.Error(), want) || denied.Addr != netip.MustParseAddr(a) || denied.Name == "" || denied.Source == "" || !denied.Range.IsValid() {
			t.Errorf("%s: %v (%#v), want %q", a, err, denied, want)
		}
	}
}

func TestTheInvalidAddressIsDenied(t *testing.T) {
	for name, g := range map[string]*Guard{"nil": nil, "exceptions": mustGuard(t, "10.0.0.0/8")} {
		var denied *DeniedError
		if err := g.Check(netip.Addr{}); !errors.As(err, &denied) || !strings.Contains(err.Error(), "not an IP address") {
			t.Errorf("%s guard: %v", name, err)
		}
	}
}

func TestExceptionsOpenTheirNetworkOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		networks     []string
		open, closed []string
	}{
		"one private network": {
			[]string{"10.20.0.0/16"},
			[]string{"10.20.0.1", "10.20.255.255", "::ffff:10.20.0.1", "64:ff9b::10.20.0.1"},
			[]string{"10.19.255.255", "10.21.0.0", "64:ff9b::10.21.0.1", "::10.20.0.1", "2002:a14:1::1"},
		},
		"documentation": {
			[]string{"198.51.100.0/24", "2001:db8:1::/48"},
			[]string{"198.51.100.7", "2001:db8:1::7"},
			[]string{"203.0.113.1", "2001:db8:2::1"},
		},
		"metadata inside shared address space": {
			[]string{"100.64.0.0/10"},
			[]string{"100.64.0.1", "100.100.100.199", "100.100.100.201"},
			[]string{"100.100.100.200", "::ffff:100.100.100.200", "64:ff9b::100.100.100.200"},
		},
		"metadata inside unique-local": {
			[]string{"fc00::/7"},
			[]string{"fd12::1", "fd00::1"},
			[]string{"fd00:ec2::254", "fd00:ec2::254%eth0", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fd00:a9fe:a9fe::1"},
		},
		"around the Azure platform endpoint": {
			[]string{"168.63.0.0/16"},
			[]string{"168.63.129.15"},
			[]string{"168.63.129.16"},
		},
		"around the Oracle metadata address": {
			[]string{"192.0.0.0/24"},
			[]string{"192.0.0.191"},
			[]string{"192.0.0.192"},
		},
		"wide networks around loopback and link-local": {
			[]string{"112.0.0.0/4", "160.0.0.0/4", "240.0.0.0/4", "fe00::/7"},
			[]string{"240.0.0.1", "fec0::1"},
			[]string{"127.0.0.1", "169.254.169.254", "255.255.255.255", "fe80::1", "ff02::1"},
		},
		"6to4 is as open as the IPv4 address inside": {
			[]string{"2002::/16"},
			[]string{"2002:808:808::1"},
			[]string{"2002:a9fe:a9fe::1", "2002:7f00:1::1", "2002:a00:1::1", "2002::1"},
		},
		"6to4 with a private network": {
			[]string{"2002::/16", "10.0.0.0/8"},
			[]string{"2002:a00:1::1"},
			[]string{"2002:c0a8:1::1"},
		},
		// Server 8.8.8.8; client 8.8.4.4, then 127.0.0.1 and 169.254.169.254, inverted.
		"Teredo needs server and client open": {
			[]string{"2001::/32"},
			[]string{"2001:0:808:808:0:0:f7f7:fbfb"},
			[]string{"2001:0:808:808:0:0:80ff:fffe", "2001:0:808:808:0:0:5601:5601", "2001:0:7f00:1:0:0:f7f7:fbfb", "2001:0:a00:1:0:0:f7f7:fbfb"},
		},
		"IPv4-compatible": {
			[]string{"::/96"},
			[]string{"::8.8.8.8"},
			[]string{"::127.0.0.1", "::169.254.169.254", "::1", "::", "::2"},
		},
		"IPv4-translated": {
			[]string{"::ffff:0:0:0/96"},
			[]string{"::ffff:0:8.8.8.8"},
			[]string{"::ffff:0:169.254.169.254", "::ffff:0:10.0.0.1"},
		},
		"NAT64 is no more open with an exception": {
			[]string{"64:ff9b::/96"},
			[]string{"64:ff9b::8.8.8.8"},
			[]string{"64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254"},
		},
		"local NAT64 of 96 bits": {
			[]string{"64:ff9b:1:2::/96"},
			[]string{"64:ff9b:1:2::8.8.8.8"},
			[]string{"64:ff9b:1:2::169.254.169.254", "64:ff9b:1:2::10.0.0.1", "64:ff9b:1:3::8.8.8.8"},
		},
		"local NAT64 of 48 bits": {
			[]string{"64:ff9b:1::/48"},
			[]string{"64:ff9b:1:808:8:800::"},
			// 169.254.169.254; a suffix; a non-zero octet 8; the /96 layout.
			[]string{"64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:808:8:800::1", "64:ff9b:1:808:108:800::", "64:ff9b:1::169.254.169.254", "64:ff9b:1::8.8.8.8"},
		},
		"local NAT64 of 56 bits": {
			[]string{"64:ff9b:1:1200::/56"},
			[]string{"64:ff9b:1:1208:8:808::"},
			[]string{"64:ff9b:1:12a9:fe:a9fe::", "64:ff9b:1:1208:8:808:1::"},
		},
		"local NAT64 of 64 bits": {
			[]string{"64:ff9b:1:2::/64"},
			[]string{"64:ff9b:1:2:8:808:800:0"},
			[]string{"64:ff9b:1:2:a9:fea9:fe00:0", "64:ff9b:1:2:8:808:800:1"},
		},
		"the narrower exception gives the NAT64 prefix": {
			[]string{"64:ff9b:1::/48", "64:ff9b:1:2::/96"},
			[]string{"64:ff9b:1:2::8.8.8.8"},
			[]string{"64:ff9b:1:2::10.0.0.1"},
		},
		"ISATAP inside an exception": {
			[]string{"fd00:1::/32"},
			[]string{"fd00:1::5efe:8.8.8.8"},
			[]string{"fd00:1::5efe:169.254.169.254", "fd00:1::200:5efe:10.0.0.1"},
		},
		"reserved space": {
			[]string{"4000::/8", "64:ff9a::/32"},
			[]string{"4000::1", "64:ff9a::1"},
			[]string{"4100::1", "64:ff99::1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := mustGuard(t, tc.networks...)
			for _, a := range tc.open {
				if err := g.Check(netip.MustParseAddr(a)); err != nil {
					t.Error(err)
				}
			}
			for _, a := range tc.closed {
				if g.Check(netip.MustParseAddr(a)) == nil {
					t.Errorf("%s may be dialled", a)
				}
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for cidr, want := range map[string]string{
		"0.0.0.0/0":             "too wide",
		"::/0":                  "too wide",
		"0.0.0.0/1":             "too wide",
		"224.0.0.0/3":           "too wide",
		"8000::/1":              "too wide",
		"fc00::/6":              "too wide",
		"10.20.0.1/16":          "write 10.20.0.0/16",
		"fd00::1/64":            "write fd00::/64",
		"::ffff:10.0.0.0/104":   "write 10.0.0.0/8",
		"::ffff:0.0.0.0/64":     "write the IPv4 network",
		"127.0.0.0/8":           "can never be opened",
		"127.0.0.1/32":          "127.0.0.0/8, Loopback (RFC 1122)",
		"0.0.0.0/8":             "can never be opened",
		"0.0.0.0/32":            "can never be opened",
		"169.254.0.0/16":        "can never be opened",
		"169.254.169.254/32":    "can never be opened",
		"169.254.169.0/24":      "can never be opened",
		"224.0.0.0/4":           "can never be opened",
		"239.1.0.0/16":          "can never be opened",
		"255.255.255.255/32":    "can never be opened",
		"168.63.129.16/32":      "Azure",
		"100.100.100.200/32":    "Alibaba",
		"192.0.0.192/32":        "Oracle",
		"::/128":                "can never be opened",
		"::1/128":               "can never be opened",
		"fe80::/10":             "can never be opened",
		"fe80::a9fe:a9fe/128":   "can never be opened",
		"ff00::/8":              "can never be opened",
		"ff02::/16":             "can never be opened",
		"fd00:ec2::254/128":     "AWS",
		"fd00:ec2::/32":         "AWS",
		"fd20:ce::254/128":      "Google",
		"fd00:42::42/128":       "Scaleway",
		"fd00:a9fe:a9fe::1/128": "Linode",
		"64:ff9b:1::/49":        "no NAT64 prefix",
		"64:ff9b:1:100::/60":    "no NAT64 prefix",
		"64:ff9b::/32":          "no NAT64 prefix",
	} {
		t.Run(cidr, func(t *testing.T) {
			p := netip.MustParsePrefix(cidr)
			g, err := New([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), p})
			if err == nil || g != nil {
				t.Fatalf("New accepts %s", cidr)
			}
			if !strings.Contains(err.Error(), cidr) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: want %s and %q in it", err, cidr, want)
			}
		})
	}
	if _, err := New([]netip.Prefix{{}}); err == nil || !strings.Contains(err.Error(), "not a CIDR") {
		t.Errorf("the zero Prefix: %v", err)
	}
}

func TestNewKeepsNothingOfItsArgument(t *testing.T) {
	ps := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	g, err := New(ps)
	if err != nil {
		t.Fatal(err)
	}
	ps[0] = netip.MustParsePrefix("192.168.0.0/16")
	if g.Check(netip.MustParseAddr("192.168.0.1")) == nil || g.Check(netip.MustParseAddr("10.0.0.1")) != nil {
		t.Error("the guard changed with the slice")
	}
}

func TestCheckDoesNotAllocateForOpenAddresses(t *testing.T) {
	g := mustGuard(t, "10.0.0.0/8")
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "2606:4700::1111"} {
		a := netip.MustParseAddr(s)
		if n := testing.AllocsPerRun(100, func() {
			if err := g.Check(a); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("Check(%s) allocates %v times", s, n)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	g := mustGuard(b, "10.20.0.0/16", "192.168.0.0/16", "fd12:3456::/32")
	for name, s := range map[string]string{"public4": "93.184.215.14", "public6": "2606:4700::1111", "private4": "10.20.1.1", "nat64": "64:ff9b::8.8.8.8", "denied4": "10.0.0.1"} {
		a := netip.MustParseAddr(s)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = g.Check(a)
			}
		})
	}
}
