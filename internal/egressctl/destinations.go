package egressctl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
)

const maxSandboxes = 5

// destinations gathers what was refused.
type destinations struct {
	o        suggestOptions
	from     time.Time
	records  int
	skipped  int
	overflow bool
	refs     map[string]struct{}
	refused  map[refusedKey]*refusedStat
}

type refusedKey struct {
	host   string
	port   uint16
	reason string
	// list is what refused it when that is not the policy: the token's claim or the pod's annotation.
	list string
}

type refusedStat struct {
	count       int
	first, last time.Time
	sandboxes   map[string]struct{}
	more        bool
}

func newDestinations(o suggestOptions, now time.Time) *destinations {
	d := &destinations{o: o, refs: map[string]struct{}{}, refused: map[refusedKey]*refusedStat{}}
	if o.since > 0 {
		d.from = now.Add(-o.since)
	}
	return d
}

func (d *destinations) add(r audit.Record) {
	ref := policyRef(&r)
	if !d.o.filter.keeps(&r) || r.Time.Before(d.from) || d.o.ref != "" && ref != "" && ref != d.o.ref {
		return
	}
	d.records++
	if ref != "" {
		d.refs[ref] = struct{}{}
	}
	// A close repeats its decision, unless the tunnel was cut after it had been allowed.
	refused := r.Event == audit.Decision && (r.Decision == audit.Deny || r.Decision == audit.WouldDeny) ||
		r.Event == audit.Close && r.Decision == audit.Deny
	if !refused || r.Host == "" {
		return
	}
	key := refusedKey{host: r.Host, port: r.Port, reason: r.Reason, list: otherList(r.Rule)}
	stat := d.refused[key]
	if stat == nil {
		if len(d.refused) >= maxDestinations {
			d.overflow = true
			return
		}
		stat = &refusedStat{first: r.Time, last: r.Time, sandboxes: map[string]struct{}{}}
		d.refused[key] = stat
	}
	stat.add(&r)
}

func (s *refusedStat) add(r *audit.Record) {
	s.count++
	if r.Time.Before(s.first) {
		s.first = r.Time
	}
	if r.Time.After(s.last) {
		s.last = r.Time
	}
	name := r.Pod
	if name == "" {
		name = r.ContainerID
	}
	s.name(name)
}

func (s *refusedStat) name(sandbox string) {
	if _, known := s.sandboxes[sandbox]; known || sandbox == "" {
		return
	}
	if len(s.sandboxes) >= maxSandboxes {
		s.more = true
		return
	}
	s.sandboxes[sandbox] = struct{}{}
}

func (s *refusedStat) merge(other *refusedStat) {
	s.count += other.count
	if other.first.Before(s.first) {
		s.first = other.first
	}
	if other.last.After(s.last) {
		s.last = other.last
	}
	for name := range other.sandboxes {
		s.name(name)
	}
	s.more = s.more || other.more
}

func (s *refusedStat) names() []string {
	names := slices.Sorted(maps.Keys(s.sandboxes))
	if s.more {
		names = append(names, "and more")
	}
	return names
}

// otherList recognises the proxy's rule texts for lists that no policy edit can widen.
func otherList(rule string) string {
	for _, list := range []string{"allowed_hosts", "annotation "} {
		if strings.HasPrefix(rule, list) {
			return strings.TrimSpace(list)
		}
	}
	return ""
}

// onePolicy refuses to mix policies in one patch.
func (d *destinations) onePolicy() error {
	if len(d.refs) > 1 {
		return fmt.Errorf("--for: the records are of several policies, choose one: %s",
			printable(strings.Join(slices.Sorted(maps.Keys(d.refs)), ", ")))
	}
	return nil
}

// suggest turns the refusals into entries. object is nil when the policy is not known.
func (d *destinations) suggest(object *v1alpha1.SandboxEgress) (suggestResult, error) {
	res := suggestResult{
		Policy: d.o.ref, Records: d.records, Skipped: d.skipped,
		AllowedHosts: []suggestion{}, NotCovered: []uncovered{}, Patch: []patchOp{},
	}
	for ref := range d.refs {
		res.Policy = ref
	}
	current, err := compileWith(object, nil)
	if err != nil {
		return res, err
	}
	entries := map[string]*suggestion{}
	stats := map[string]*refusedStat{}
	targets := map[string][]hostname.Authority{}
	for key, stat := range d.refused {
		remedy, pattern, authority := judge(key, current, object != nil)
		switch {
		case remedy == alreadyAllowed:
		case remedy != "":
			res.NotCovered = append(res.NotCovered, uncovered{
				Destination: destination(key), Reason: key.reason, Count: stat.count, Remedy: remedy,
			})
		default:
			if entries[pattern] == nil {
				entries[pattern], stats[pattern] = &suggestion{Host: pattern}, &refusedStat{first: stat.first, last: stat.last, sandboxes: map[string]struct{}{}}
			}
			stats[pattern].merge(stat)
			if !slices.Contains(entries[pattern].Ports, key.port) {
				entries[pattern].Ports = append(entries[pattern].Ports, key.port)
			}
			targets[pattern] = append(targets[pattern], authority)
		}
	}
	// What the patched policy would still refuse is no suggestion.
	patched, err := compileWith(object, slices.Sorted(maps.Keys(entries)))
	if err != nil {
		return res, err
	}
	for pattern, s := range entries {
		stat := stats[pattern]
		if still := refusedStill(patched, targets[pattern]); still != "" {
			res.NotCovered = append(res.NotCovered, uncovered{Destination: pattern, Reason: string(still), Count: stat.count, Remedy: remedies[still]})
			continue
		}
		slices.Sort(s.Ports)
		s.Count, s.First, s.Last, s.Sandboxes = stat.count, stat.first, stat.last, stat.names()
		res.AllowedHosts = append(res.AllowedHosts, *s)
	}
	slices.SortFunc(res.AllowedHosts, byCount(func(s suggestion) int { return s.Count }, func(s suggestion) string { return s.Host }))
	slices.SortFunc(res.NotCovered, byCount(func(u uncovered) int { return u.Count }, func(u uncovered) string { return u.Destination + " " + u.Reason + u.Remedy }))
	res.Patch = patchFor(object, res.AllowedHosts)
	return res, nil
}

func destination(key refusedKey) string {
	if strings.Contains(key.host, ":") {
		return fmt.Sprintf("[%s]:%d", key.host, key.port)
	}
	return fmt.Sprintf("%s:%d", key.host, key.port)
}

// compileWith compiles the object with more allowed hosts, or just these without one.
func compileWith(object *v1alpha1.SandboxEgress, hosts []string) (*policy.Policy, error) {
	if object == nil {
		m, err := allowlist.Compile(allowlist.Spec{AllowedHosts: hosts})
		return &policy.Policy{Matcher: m}, err
	}
	copied := object.DeepCopy()
	for _, h := range hosts {
		copied.Spec.AllowedHosts = append(copied.Spec.AllowedHosts, v1alpha1.HostPattern(h))
	}
	return manifest.Compile(copied)
}

const alreadyAllowed = "already allowed"

// remedies say what to do where allowedHosts cannot help.
var remedies = map[allowlist.Reason]string{
	allowlist.ReasonHostDenied:       "spec.deniedHosts beats every allowed host; take the entry out if it is wrong",
	allowlist.ReasonMethodNotAllowed: "extend the methods of the rule",
	allowlist.ReasonPathNotAllowed:   "extend the paths of the rule",
	reasonAddress:                    "the address may not be dialled; a private range can be opened with spec.privateNetworks",
}

// judge returns the pattern that would allow the destination, or why there is none.
func judge(key refusedKey, current *policy.Policy, known bool) (remedy, pattern string, authority hostname.Authority) {
	switch key.list {
	case "annotation":
		return "the pod's annotation egress.sandbox.dev/allowed-hosts narrows the policy; edit the annotation", "", authority
	case "allowed_hosts":
		return "the token's allowed_hosts claim decides; mint another token", "", authority
	}
	authority, err := hostname.ParseAuthority(destination(key))
	if err != nil {
		return "this is no valid destination", "", authority
	}
	reason := allowlist.Reason(key.reason)
	if reason != allowlist.ReasonHostNotAllowed && reason != allowlist.ReasonPortNotAllowed {
		if text, ok := remedies[reason]; ok {
			return text, "", authority
		}
		return "allowedHosts has no part in this", "", authority
	}
	if host := authority.Host; host.IsIP() && !dialable(current.Guard, host.Addr()) {
		return remedies[reasonAddress], "", authority
	}
	if known && current.Matcher.Decide(allowlist.Request{Authority: authority}).Allowed {
		return alreadyAllowed, "", authority
	}
	pattern = authority.Host.String()
	if authority.Port != 80 && authority.Port != 443 {
		pattern = authority.String()
	}
	if _, err := allowlist.ParsePattern(pattern); err != nil {
		return "this is no host that a policy can name", "", authority
	}
	return "", pattern, authority
}

func dialable(guard *ipguard.Guard, addr netip.Addr) bool { return guard.Check(addr) == nil }

// refusedStill is the reason for which p refuses one of the targets, "" when it allows all.
func refusedStill(p *policy.Policy, targets []hostname.Authority) allowlist.Reason {
	for _, t := range targets {
		if d := p.Matcher.Decide(allowlist.Request{Authority: t}); !d.Allowed {
			return d.Reason
		}
	}
	return ""
}

func patchFor(object *v1alpha1.SandboxEgress, add []suggestion) []patchOp {
	ops := []patchOp{}
	if len(add) == 0 {
		return ops
	}
	// "/-" appends to a list that exists (RFC 6902 section 4.1).
	if object != nil && len(object.Spec.AllowedHosts) == 0 {
		hosts := make([]string, len(add))
		for i, s := range add {
			hosts[i] = s.Host
		}
		return append(ops, patchOp{Op: "add", Path: "/spec/allowedHosts", Value: hosts})
	}
	for _, s := range add {
		ops = append(ops, patchOp{Op: "add", Path: "/spec/allowedHosts/-", Value: s.Host})
	}
	return ops
}
