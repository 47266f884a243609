// Package allowlist turns host lists, presets and rules into a matcher that says
// of one request whether it is allowed, and which entry said so. It is pure: no
// I/O, no clock, no DNS.
package allowlist

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Matcher answers Decide. It is immutable and safe for concurrent use; nil
// allows nothing.
type Matcher struct {
	names     map[string]*node // exact names
	wildcards map[string]*node // by what follows "*."
	addrs     map[netip.Addr]*node
	lengths   []bool // by number of labels: whether a wildcard has that many after "*."
	hosts     []string
}

// node holds the entries of one host or wildcard, in the order of the Spec.
type node struct {
	allow []*grant
	deny  []denial
}

type denial struct {
	port uint16 // 0: all
	*grant
}

// grant is an entry of the Spec; label is built once so that Decide allocates nothing.
type grant struct {
	label   string
	ports   []uint16
	methods []string
	paths   []pathPattern
	tls     TLSMode
}

var defaultPorts = []uint16{80, 443}

// Compile builds the matcher. The error is FieldErrors: all problems at once, in
// the order presets, allowedHosts, deniedHosts, rules.
func Compile(s Spec) (*Matcher, error) {
	c := compiler{
		m: &Matcher{
			names:     make(map[string]*node, len(s.AllowedHosts)),
			wildcards: map[string]*node{},
			addrs:     map[netip.Addr]*node{},
		},
		flat: map[string]bool{},
	}
	// Own lists before presets: of two entries that allow the same, the one the
	// owner of the policy wrote is the one to name.
	c.allowedHosts(s.AllowedHosts)
	c.rules(s.Rules)
	c.presets(s.Presets)
	c.deniedHosts(s.DeniedHosts)
	if errs := c.sortedErrors(); len(errs) > 0 {
		return nil, errs
	}
	c.m.hosts = c.flatten()
	return c.m, nil
}

// Hosts returns the entries that allow, as "host", "host:port" or "*.host",
// sorted and without duplicates. Compiled as AllowedHosts they allow the same
// authorities; deniedHosts, methods and paths are not in it.
func (m *Matcher) Hosts() []string {
	if m == nil {
		return nil
	}
	return slices.Clone(m.hosts)
}

type compiler struct {
	m    *Matcher
	errs [4]FieldErrors // presets, allowedHosts, deniedHosts, rules
	flat map[string]bool
}

const (
	inPresets = iota
	inAllowed
	inDenied
	inRules
)

func (c *compiler) fail(in int, field, value, reason string) {
	c.errs[in] = append(c.errs[in], &FieldError{Field: field, Value: value, Reason: reason})
}

func (c *compiler) sortedErrors() FieldErrors {
	return slices.Concat(c.errs[:]...)
}

func (c *compiler) allowedHosts(hosts []string) {
	for i, h := range hosts {
		field := "allowedHosts[" + strconv.Itoa(i) + "]"
		p, reason := parsePattern(h)
		if reason != "" {
			c.fail(inAllowed, field, h, reason)
			continue
		}
		c.allow(p, &grant{label: label(field, p), ports: portsOf(p, nil)})
	}
}

func (c *compiler) deniedHosts(hosts []string) {
	for i, h := range hosts {
		field := "deniedHosts[" + strconv.Itoa(i) + "]"
		p, reason := parsePattern(h)
		if reason != "" {
			c.fail(inDenied, field, h, reason)
			continue
		}
		n := c.node(p)
		n.deny = append(n.deny, denial{port: p.port, grant: &grant{label: label(field, p)}})
	}
}

func (c *compiler) presets(names []string) {
	for i, name := range names {
		field := "presets[" + strconv.Itoa(i) + "]"
		resolved, reason := resolvePreset(name)
		if reason != "" {
			c.fail(inPresets, field, name, reason)
			continue
		}
		for _, ps := range resolved {
			origin := field + " " + name
			if ps.Name != name {
				origin += "/" + ps.Name
			}
			for _, h := range ps.Hosts {
				p, reason := parsePattern(h)
				if reason != "" {
					c.fail(inPresets, field, name, "host "+strconv.Quote(h)+": "+reason)
					continue
				}
				c.allow(p, &grant{label: label(origin, p), ports: portsOf(p, nil)})
			}
		}
	}
}

func (c *compiler) rules(rules []Rule) {
	for i, r := range rules {
		field := "rules[" + strconv.Itoa(i) + "]"
		before := len(c.errs[inRules])
		paths := c.ruleParts(field, r)
		sound := len(c.errs[inRules]) == before
		for j, h := range r.Hosts {
			hostField := field + ".hosts[" + strconv.Itoa(j) + "]"
			p, reason := parsePattern(h)
			if reason == "" && p.port != 0 && len(r.Ports) > 0 {
				reason = "it has a port and the rule has ports too: write the port in one place"
			}
			if reason != "" {
				c.fail(inRules, hostField, h, reason)
				continue
			}
			if sound {
				c.allow(p, &grant{
					label:   label(hostField, p),
					ports:   portsOf(p, r.Ports),
					methods: slices.Clone(r.Methods),
					paths:   paths,
					tls:     r.TLS,
				})
			}
		}
	}
}

// ruleParts checks all of a rule but its hosts and returns its paths.
func (c *compiler) ruleParts(field string, r Rule) []pathPattern {
	if len(r.Hosts) == 0 {
		c.fail(inRules, field+".hosts", "", "a rule needs at least one host")
	}
	for j, port := range r.Ports {
		if port == 0 {
			c.fail(inRules, fmt.Sprintf("%s.ports[%d]", field, j), "0", "a port is between 1 and 65535")
		}
	}
	for j, m := range r.Methods {
		if reason := badMethod(m); reason != "" {
			c.fail(inRules, fmt.Sprintf("%s.methods[%d]", field, j), m, reason)
		}
	}
	if r.TLS > TLSOptional {
		c.fail(inRules, field+".tls", strconv.Itoa(int(r.TLS)), "tls is Required or Optional")
	}
	var paths []pathPattern
	for j, s := range r.Paths {
		p, reason := parsePathPattern(s)
		if reason != "" {
			c.fail(inRules, fmt.Sprintf("%s.paths[%d]", field, j), s, reason)
			continue
		}
		paths = append(paths, p)
	}
	return paths
}

// badMethod holds methods to tokens (RFC 9110 section 5.6.2) without lower case:
// methods are case-sensitive and every registered one is upper case.
func badMethod(m string) string {
	switch {
	case m == "":
		return "a method is empty: remove it, or leave methods out to allow all"
	case m == "*":
		return "* is not a method: leave methods out to allow all"
	case m == "CONNECT":
		return "CONNECT opens tunnels, in which methods are not looked at: leave it out"
	case m != strings.ToUpper(m):
		return "methods are case-sensitive: write " + strings.ToUpper(m)
	}
	for i := 0; i < len(m); i++ {
		if c := m[i]; ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return "it is not a method: write a token such as GET"
		}
	}
	return ""
}

func (c *compiler) node(p Pattern) *node {
	if p.host.IsIP() {
		return nodeAt(c.m.addrs, p.host.Addr())
	}
	name := p.host.Name()
	if p.wildcard {
		labels := strings.Count(name, ".") + 1
		for len(c.m.lengths) <= labels {
			c.m.lengths = append(c.m.lengths, false)
		}
		c.m.lengths[labels] = true
		return nodeAt(c.m.wildcards, name)
	}
	return nodeAt(c.m.names, name)
}

func nodeAt[K comparable](m map[K]*node, key K) *node {
	n := m[key]
	if n == nil {
		n = &node{}
		m[key] = n
	}
	return n
}

func (c *compiler) allow(p Pattern, g *grant) {
	n := c.node(p)
	n.allow = append(n.allow, g)
	bare := Pattern{host: p.host, wildcard: p.wildcard}
	if slices.Contains(g.ports, 80) && slices.Contains(g.ports, 443) {
		c.flat[bare.String()] = true
	}
	for _, port := range g.ports {
		if slices.Contains(defaultPorts, port) && c.flat[bare.String()] {
			continue
		}
		bare.port = port
		c.flat[bare.String()] = true
		bare.port = 0
	}
}

// flatten drops "host:80" and "host:443" where "host" says the same.
func (c *compiler) flatten() []string {
	out := make([]string, 0, len(c.flat))
	for h := range c.flat {
		bare, port, ok := cutPort(h)
		if ok && (port == "80" || port == "443") && c.flat[bare] {
			continue
		}
		out = append(out, h)
	}
	slices.Sort(out)
	return out
}

// cutPort splits a canonical pattern; the colons of an IPv6 address are in brackets.
func cutPort(h string) (bare, port string, ok bool) {
	i := strings.LastIndexByte(h, ':')
	if i < 0 || strings.HasSuffix(h, "]") {
		return h, "", false
	}
	return h[:i], h[i+1:], true
}

func portsOf(p Pattern, ports []uint16) []uint16 {
	switch {
	case p.port != 0:
		return []uint16{p.port}
	case len(ports) > 0:
		return slices.Clone(ports)
	}
	return defaultPorts
}

func label(field string, p Pattern) string {
	return field + " " + strconv.Quote(p.String())
}
