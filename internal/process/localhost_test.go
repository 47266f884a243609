package process

import (
	"errors"
	"net"
	"testing"
)

func TestRefusal(t *testing.T) {
	own := func() ([]net.Addr, error) {
		var list []net.Addr
		for _, s := range []string{"127.0.0.1/8", "10.1.2.3/24", "2001:db8::5/64", "fe80::1/64", "::1/128"} {
			ip, n, err := net.ParseCIDR(s)
			if err != nil {
				return nil, err
			}
			list = append(list, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return list, nil
	}
	tcp := func(ip, zone string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 4711, Zone: zone} }
	tests := map[string]struct {
		remote, local net.Addr
		interfaces    func() ([]net.Addr, error)
		want          string
	}{
		"another host":                   {remote: tcp("10.1.2.9", "")},
		"another host, IPv6":             {remote: tcp("2001:db8::9", ""), local: tcp("2001:db8::5", "")},
		"127.0.0.1":                      {remote: tcp("127.0.0.1", ""), want: "loopback"},
		"end of 127/8":                   {remote: tcp("127.255.255.254", ""), want: "loopback"},
		"::1":                            {remote: tcp("::1", ""), want: "loopback"},
		"v4-mapped loopback":             {remote: &net.TCPAddr{IP: net.IP{10: 0xff, 11: 0xff, 12: 127, 15: 1}}, want: "loopback"},
		"own address":                    {remote: tcp("10.1.2.3", ""), local: tcp("10.9.9.9", ""), want: "own_address"},
		"v4-mapped own address":          {remote: &net.TCPAddr{IP: net.ParseIP("10.1.2.3").To16()}, local: tcp("10.9.9.9", ""), want: "own_address"},
		"own IPv6 address":               {remote: tcp("2001:db8::5", ""), local: tcp("2001:db8::6", ""), want: "own_address"},
		"own link-local address, zoned":  {remote: tcp("fe80::1", "eth0"), local: tcp("2001:db8::6", ""), want: "own_address"},
		"same address on both sides":     {remote: tcp("192.0.2.7", ""), local: tcp("192.0.2.7", ""), want: "same_address"},
		"same address, v4-mapped":        {remote: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7).To16()}, local: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7).To4()}, want: "same_address"},
		"unspecified":                    {remote: tcp("0.0.0.0", ""), want: "unspecified"},
		"unspecified IPv6":               {remote: tcp("::", ""), want: "unspecified"},
		"no IP at all":                   {remote: &net.UnixAddr{Name: "/s"}, want: "unknown_address"},
		"nil":                            {want: "unknown_address"},
		"own addresses cannot be listed": {remote: tcp("10.1.2.9", ""), interfaces: func() ([]net.Addr, error) { return nil, errors.New("x") }, want: "interfaces_unknown"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.local == nil {
				tt.local = tcp("10.1.2.3", "")
			}
			if tt.interfaces == nil {
				tt.interfaces = own
			}
			if got := refusal(tt.remote, tt.local, tt.interfaces); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
