package process

import (
	"net"
	"net/netip"
)

// refusal says why a connection comes from the machine itself, or "" when it
// does not. An address that cannot be understood, or own addresses that cannot be
// listed, count as local: the code in the sandbox must not reach its own API.
func refusal(remote, local net.Addr, interfaces func() ([]net.Addr, error)) string {
	from, ok := addrOf(remote)
	if !ok {
		return "unknown_address"
	}
	switch {
	case from.IsUnspecified():
		return "unspecified"
	case from.IsLoopback():
		return "loopback"
	}
	if to, ok := addrOf(local); !ok || from == to {
		return "same_address"
	}
	addrs, err := interfaces()
	if err != nil {
		return "interfaces_unknown"
	}
	for _, a := range addrs {
		if own, ok := addrOf(a); ok && own == from {
			return "own_address"
		}
	}
	return ""
}

// addrOf returns the address without its v4-in-v6 form and zone: ::ffff:127.0.0.1
// is 127.0.0.1, and fe80::1%eth0 is fe80::1 of whatever interface.
func addrOf(a net.Addr) (netip.Addr, bool) {
	var ip net.IP
	switch a := a.(type) {
	case *net.TCPAddr:
		ip = a.IP
	case *net.IPNet:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, ok := netip.AddrFromSlice(ip)
	return addr.Unmap().WithZone(""), ok
}
