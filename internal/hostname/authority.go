package hostname

import (
	"net/netip"
	"strconv"
	"strings"
)

// Authority is a canonical host and a port from 1 to 65535; comparable.
type Authority struct {
	Host Host
	Port uint16
}

// ParseAuthority parses the target of CONNECT: host and port, both required
// (RFC 9112 section 3.2.3). The error is always a *ParseError.
func ParseAuthority(s string) (Authority, error) {
	return parseAuthority(s, 0, true)
}

// ParseAuthorityDefault parses an authority whose port may be left out, as in
// absolute-form and the Host header; port then stands in. The colon without a
// port that RFC 3986 section 3.2.3 permits is refused. The error is always a
// *ParseError.
func ParseAuthorityDefault(s string, port uint16) (Authority, error) {
	return parseAuthority(s, port, false)
}

// String returns "host:port" with an IPv6 address in brackets.
func (a Authority) String() string {
	port := strconv.FormatUint(uint64(a.Port), 10)
	if a.Host.IsIP() {
		return netip.AddrPortFrom(a.Host.Addr(), a.Port).String()
	}
	return a.Host.name + ":" + port
}

func parseAuthority(s string, port uint16, required bool) (Authority, error) {
	refuse := func(reason string) (Authority, error) {
		return Authority{}, &ParseError{Input: s, Reason: reason}
	}
	// Before the split, so that "user:pw@host" is told what it is.
	if reason := forbidden(s); reason != "" {
		return refuse(reason)
	}
	host, digits, found, reason := splitPort(s)
	if reason != "" {
		return refuse(reason)
	}
	if found {
		if port, reason = parsePort(digits); reason != "" {
			return refuse(reason)
		}
	} else if required {
		return refuse("the port is missing: write host:port")
	}
	h, reason := parseHost(host)
	if reason != "" {
		return refuse(reason)
	}
	return Authority{Host: h, Port: port}, nil
}

// splitPort separates "host", "host:port", "[v6]" and "[v6]:port".
func splitPort(s string) (host, port string, found bool, reason string) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false, "the closing bracket of the IPv6 address is missing or not at its end"
		}
		host, rest := s[:end+1], s[end+1:]
		switch {
		case rest == "":
			return host, "", false, ""
		case rest[0] != ':':
			return "", "", false, "only :port may follow the closing bracket"
		}
		return host, rest[1:], true, ""
	}
	host, port, found = strings.Cut(s, ":")
	if strings.IndexByte(port, ':') >= 0 {
		return "", "", false, "it has more than one colon: write an IPv6 address in brackets, as in [2001:db8::1]:443"
	}
	return host, port, found, ""
}

// parsePort accepts 1 to 65535 in decimal; a leading zero or sign, which
// strconv would take, is another spelling that other parsers may read as octal.
func parsePort(s string) (uint16, string) {
	if s == "" {
		return 0, "the port after the colon is empty"
	}
	if s[0] == '0' && len(s) > 1 && strings.Trim(s, "0123456789") == "" {
		return 0, "the port has a leading zero"
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, "the port is not a decimal number"
		}
		if n = n*10 + int(s[i]-'0'); n > 65535 {
			return 0, "the port is not between 1 and 65535"
		}
	}
	if n == 0 {
		return 0, "the port is not between 1 and 65535"
	}
	return uint16(n), "" //nolint:gosec // bounded by the loop above
}
