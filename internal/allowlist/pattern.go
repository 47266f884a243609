package allowlist

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

// Pattern is one entry of a host list: "host", "host:port", "*.host" or
// "*.host:port". A wildcard stands for one or more labels, never for the host
// itself. Comparable; the host is canonical.
type Pattern struct {
	host     hostname.Host
	wildcard bool
	port     uint16 // 0: none given
}

// Host is the host, or what follows "*." in a wildcard.
func (p Pattern) Host() hostname.Host { return p.host }

// Wildcard reports whether the pattern starts with "*.".
func (p Pattern) Wildcard() bool { return p.wildcard }

// Port returns the port, 0 when the pattern has none.
func (p Pattern) Port() uint16 { return p.port }

// String returns the canonical pattern; ParsePattern gives p back.
func (p Pattern) String() string {
	s := p.host.String()
	if p.host.IsIP() && p.host.Addr().Is6() {
		s = "[" + s + "]"
	}
	if p.wildcard {
		s = "*." + s
	}
	if p.port != 0 {
		s += ":" + strconv.Itoa(int(p.port))
	}
	return s
}

// ParsePattern parses one host pattern. The error is always a *FieldError
// without a field.
func ParsePattern(s string) (Pattern, error) {
	p, reason := parsePattern(s)
	if reason != "" {
		return Pattern{}, &FieldError{Value: s, Reason: reason}
	}
	return p, nil
}

func parsePattern(s string) (Pattern, string) {
	if reason := misfit(s); reason != "" {
		return Pattern{}, reason
	}
	rest, wildcard := strings.CutPrefix(s, "*.")
	if strings.Contains(rest, "*") {
		return Pattern{}, badWildcard(s)
	}
	a, err := hostname.ParseAuthorityDefault(rest, 0)
	if err != nil {
		var pe *hostname.ParseError
		if errors.As(err, &pe) {
			return Pattern{}, pe.Reason
		}
		return Pattern{}, err.Error()
	}
	p := Pattern{host: a.Host, wildcard: wildcard, port: a.Port}
	if wildcard {
		if p.host.IsIP() {
			return Pattern{}, "a wildcard needs a name, not an IP address: write each address"
		}
		if reason := tooWide(p.host.Name()); reason != "" {
			return Pattern{}, reason
		}
	}
	return p, ""
}

// misfit recognises what people write in place of a host, to say what to write.
func misfit(s string) string {
	switch {
	case s == "":
		return "it is empty: write a host such as api.example.com, or remove the entry"
	case s == "*" || strings.HasPrefix(s, "*:"):
		return "it would allow every host: list the hosts, or *.example.com for the hosts below one domain"
	case strings.Contains(s, "://"):
		return "it has a scheme: write only the host, as api.example.com or api.example.com:8443"
	case strings.Contains(s, ","):
		return "it has a comma: write one host per entry"
	case strings.HasPrefix(s, "."):
		return "it starts with a dot: write *.example.com for the hosts below a domain"
	case strings.Contains(s, "/"):
		return "it has a path or prefix length: write only the host here; paths go into rules[].paths, networks into privateNetworks"
	}
	return ""
}

func badWildcard(s string) string {
	if strings.HasPrefix(s, "**") {
		return "** is not a wildcard: *.example.com already stands for hosts at any depth below example.com"
	}
	return "* is only accepted as the whole first label: write *.example.com, which stands for hosts at any depth below example.com"
}

// tooWide refuses a wildcard below which unrelated people can register or rent
// names: a public suffix (ICANN or private section of the list), and a domain
// that has public suffixes below it, such as a cloud's with s3 inside.
func tooWide(base string) string {
	if suffix, _ := publicsuffix.PublicSuffix(base); suffix == base {
		return "*." + base + " is too wide: " + base + " is a public suffix, below which anyone can get a name; list the hosts, or write *.yourname." + base
	}
	// A list rule such as *.compute.example makes each child a public suffix.
	if suffix, _ := publicsuffix.PublicSuffix("x." + base); suffix == "x."+base {
		return "*." + base + " is too wide: each name below " + base + " is a public suffix with an owner of its own; list the hosts"
	}
	if suffix, ok := sharedParents()[base]; ok {
		return "*." + base + " is too wide: it holds " + suffix + ", a public suffix, below which anyone can get a name; list the hosts"
	}
	return ""
}
