package internet

import (
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Addresses of the test internet (RFC 5737), and the cloud metadata address,
// which answers too: that a sandbox cannot reach it is worth nothing when
// nothing listens there.
const (
	SiteA    = "198.51.100.10"
	SiteB    = "198.51.100.20"
	SiteEvil = "203.0.113.10"
	SiteC    = "203.0.113.20"
	Metadata = "169.254.169.254"
	// DNS is the server that the cluster's CoreDNS forwards to; RogueDNS is
	// another one, which no sandbox may reach.
	DNS      = "198.51.100.53"
	RogueDNS = "203.0.113.53"
)

// Hosts are the addresses that run origin servers.
func Hosts() []string { return []string{SiteA, SiteB, SiteEvil, SiteC, Metadata} }

// Resolvers are the addresses that run DNS servers.
func Resolvers() []string { return []string{DNS, RogueDNS} }

// Record is what a name resolves to.
type Record struct {
	// Addresses are the A and AAAA records.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Rotate, if set, replaces Addresses by one of these in turn, per query of
	// type A: DNS rebinding.
	Rotate [][]netip.Addr `json:"rotate,omitempty"`
	// Delay is how long the answer takes.
	Delay time.Duration `json:"delay,omitempty"`
	// Fail answers SERVFAIL.
	Fail bool `json:"fail,omitempty"`
}

func to(addresses ...string) Record {
	var r Record
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

// DefaultRecords are the names that exist from the start. "*.zone" answers for
// every name below zone that has no record of its own. Names that are not here
// do not exist (NXDOMAIN).
func DefaultRecords() map[string]Record {
	return map[string]Record{
		"allowed.example":     to(SiteA),
		"*.allowed.example":   to(SiteA),
		"api.example.com":     to(SiteA),
		"example.com":         to(SiteA),
		"*.example.com":       to(SiteA),
		"db.example.net":      to(SiteB),
		"*.example.net":       to(SiteB),
		"example.org":         to(SiteC),
		"*.example.org":       to(SiteC),
		"evil-site.example":   to(SiteEvil),
		"*.evil-site.example": to(SiteEvil),

		// Names whose addresses a proxy must not dial.
		"loopback.example":  to("127.0.0.1"),
		"private.example":   to("10.88.0.1"),
		"apiserver.example": to("10.96.0.1"),
		"metadata.example":  to(Metadata),
		"mapped.example":    to("::ffff:169.254.169.254"),
		"mixed.example":     to(SiteA, "10.88.0.1"),
		"rebind.example":    {Rotate: [][]netip.Addr{to(SiteA).Addresses, to("10.96.0.1").Addresses}},

		// Names that go wrong.
		"servfail.example": {Fail: true},
		"slow.example":     {Addresses: to(SiteA).Addresses, Delay: 3 * time.Second},
		// Nobody has this address, and no route leads to it.
		"unreachable.example": to("198.51.100.250"),
	}
}

// Zone is the set of records; safe for concurrent use.
type Zone struct {
	mu      sync.Mutex
	records map[string]Record
	asked   map[string]int
}

// NewZone returns a zone with the given records.
func NewZone(records map[string]Record) *Zone {
	z := &Zone{records: map[string]Record{}, asked: map[string]int{}}
	for name, r := range records {
		z.Set(name, r)
	}
	return z
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Set adds or replaces a record.
func (z *Zone) Set(name string, r Record) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[key(name)] = r
	delete(z.asked, key(name))
}

// Remove takes a record out.
func (z *Zone) Remove(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.records, key(name))
}

// Lookup returns the record of name with one family of addresses, and whether
// the name exists.
func (z *Zone) Lookup(name string, v6 bool) (Record, bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = key(name)
	owner, r, ok := z.find(name)
	if !ok {
		return Record{}, false
	}
	if len(r.Rotate) > 0 && !v6 {
		r.Addresses = r.Rotate[z.asked[owner]%len(r.Rotate)]
		z.asked[owner]++
	}
	var family []netip.Addr
	for _, a := range r.Addresses {
		// A v4-mapped address can only be carried by an AAAA record.
		if a.Is4() != v6 {
			family = append(family, a)
		}
	}
	r.Addresses = family
	return r, true
}

func (z *Zone) find(name string) (owner string, r Record, ok bool) {
	if r, ok := z.records[name]; ok {
		return name, r, true
	}
	for rest := name; ; {
		_, parent, found := strings.Cut(rest, ".")
		if !found {
			return "", Record{}, false
		}
		if r, ok := z.records["*."+parent]; ok {
			return "*." + parent, r, true
		}
		rest = parent
	}
}
