// Package hostname is the one canonical parse of a host and of an authority
// (host and port). What it returns is matched, logged and dialled; nothing else
// in this module parses hosts, so no two parts can read one input differently.
//
// Names are canonicalised with the UTS 46 lookup mapping (non-transitional),
// then held to LDH-plus-underscore. Everything that some other parser could read
// as something else (zones, userinfo, percent escapes, shorthand IPv4) is refused.
package hostname

import (
	"net/netip"
	"strings"
)

const (
	maxName  = 253 // RFC 1035 section 2.3.4: 255 octets on the wire, less the length and root octets
	maxLabel = 63  // RFC 1035 section 2.3.4
	// A 253 octet name has at most 253 characters of up to 4 bytes before
	// mapping; anything longer cannot become a valid name and is not worth mapping.
	maxInput = 4 * maxName
)

// Host is a canonical DNS name or IP address: exactly one of the two. It is
// comparable; two spellings of one host are equal. The zero value is no host.
type Host struct {
	name string
	addr netip.Addr
}

// ParseHost returns the canonical form of a DNS name, a strict dotted-quad IPv4
// address, or an IPv6 address with or without brackets (RFC 3986 section 3.2.2).
// One trailing dot of a name is dropped, IPv4-mapped IPv6 becomes IPv4.
//
// The error is always a *ParseError. Input that is already canonical costs no
// allocation.
func ParseHost(s string) (Host, error) {
	h, reason := parseHost(s)
	if reason != "" {
		return Host{}, &ParseError{Input: s, Reason: reason}
	}
	return h, nil
}

// Name returns the canonical name, or "" for an IP address.
func (h Host) Name() string { return h.name }

// Addr returns the address, never v4-mapped and never with a zone; it is the
// zero Addr for a name.
func (h Host) Addr() netip.Addr { return h.addr }

// IsIP reports whether the host is an IP address.
func (h Host) IsIP() bool { return h.addr.IsValid() }

// String returns the name, or the address without brackets; "" for the zero value.
func (h Host) String() string {
	if h.IsIP() {
		return h.addr.String()
	}
	return h.name
}

// parseHost returns a host, or the reason why s is not one.
func parseHost(s string) (Host, string) {
	switch {
	case s == "":
		return Host{}, "the host is empty"
	case len(s) > maxInput:
		return Host{}, "the host is longer than 253 characters (RFC 1035)"
	}
	if reason := forbidden(s); reason != "" {
		return Host{}, reason
	}
	if s[0] == '[' {
		return parseBracketed(s)
	}
	if strings.IndexByte(s, ']') >= 0 || strings.IndexByte(s, '[') >= 0 {
		return Host{}, "brackets may only enclose an IPv6 address, as in [2001:db8::1]"
	}
	if strings.IndexByte(s, ':') >= 0 {
		return parseIPv6(s)
	}
	return parseNameOrIPv4(s)
}

// forbidden looks for the characters that no host has and that other parsers
// give a meaning to: they end the host, start another component, or escape.
func forbidden(s string) string {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case 0:
			return "it contains a NUL byte"
		case ' ', '\t', '\n', '\r', '\v', '\f':
			return "it contains white space"
		case '%':
			return "it contains %: neither percent escapes nor IPv6 zones are accepted"
		case '@':
			return "it contains @: userinfo is not accepted"
		case '/', '\\':
			return "it contains a slash or backslash: only a host is accepted, no scheme and no path"
		case '?', '#':
			return "it contains ? or #: only a host is accepted, no query and no fragment"
		default:
			if c < 0x20 || c == 0x7f {
				return "it contains a control character"
			}
		}
	}
	return ""
}

func parseBracketed(s string) (Host, string) {
	if s[len(s)-1] != ']' {
		return Host{}, "the closing bracket of the IPv6 address is missing or not at its end"
	}
	inner := s[1 : len(s)-1]
	if strings.IndexByte(inner, ':') < 0 {
		return Host{}, "brackets may only enclose an IPv6 address, as in [2001:db8::1]"
	}
	return parseIPv6(inner)
}

func parseIPv6(s string) (Host, string) {
	// The longest text form has 45 characters (RFC 4291 section 2.2, form 3).
	if len(s) > 45 {
		return Host{}, "it is not a valid IPv6 address"
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return Host{}, "it is not a valid IPv6 address"
	}
	return Host{addr: a.Unmap()}, ""
}

func parseNameOrIPv4(s string) (Host, string) {
	switch shapeOf(s) {
	case canonical:
		if last := s[strings.LastIndexByte(s, '.')+1:]; isNumeric(last) {
			return parseIPv4(s)
		}
		if reason := checkName(s); reason != "" {
			return Host{}, reason
		}
		return Host{name: s}, ""
	case lowerable:
		return finishName(strings.ToLower(s))
	default:
		mapped, reason := mapIDNA(s)
		if reason != "" {
			return Host{}, reason
		}
		h, reason := finishName(mapped)
		if reason == "" && h.IsIP() {
			// Only reached through characters such as full-width digits.
			return Host{}, "it maps to an IP address: write the address in ASCII digits"
		}
		return h, reason
	}
}

// finishName takes lower-case ASCII: drops one trailing dot and checks the rest.
func finishName(s string) (Host, string) {
	trimmed := strings.TrimSuffix(s, ".")
	if trimmed == "" {
		return Host{}, "it has an empty label"
	}
	if isNumeric(trimmed[strings.LastIndexByte(trimmed, '.')+1:]) {
		return parseIPv4(s)
	}
	if reason := checkName(trimmed); reason != "" {
		return Host{}, reason
	}
	return Host{name: trimmed}, ""
}

// parseIPv4 takes a host whose last label is a number. Only the strict
// dotted-quad is accepted: inet_aton also reads 127.1, 0x7f.1, 0177.0.0.1 and
// 2130706433 as 127.0.0.1, the URL standard does too, and resolvers differ.
func parseIPv4(s string) (Host, string) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return Host{}, "it is an ambiguous numeric host: write an IPv4 address as four decimal numbers without leading zeros, as in 192.0.2.1"
	}
	return Host{addr: a}, ""
}

// isNumeric reports whether a label would make the URL standard ("ends in a
// number") or inet_aton read the whole host as an IPv4 address.
func isNumeric(label string) bool {
	if label == "" {
		return false
	}
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		return strings.Trim(label[2:], "0123456789abcdefABCDEF") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
