package allowlist

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

func authority(t testing.TB, s string) hostname.Authority {
	t.Helper()
	a, err := hostname.ParseAuthority(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// tunnel is what CONNECT asks; plain what a request that the proxy reads asks.
func tunnel(t testing.TB, to string) Request {
	return Request{Authority: authority(t, to)}
}

func plain(t testing.TB, to, method, path string) Request {
	return Request{Authority: authority(t, to), Method: method, Path: path, Visible: true}
}

func TestDecide(t *testing.T) {
	spec := Spec{
		Presets:      []string{"alpine", "os-updates"},
		AllowedHosts: []string{"api.example.com", "db.example.net:5432", "*.example.org", "203.0.113.7", "[2001:db8::1]:443", "*.deep.example.org:8443"},
		DeniedHosts:  []string{"telemetry.example.org", "*.ads.example.org", "half.example.org:80", "203.0.113.9"},
		Rules: []Rule{
			{Hosts: []string{"rest.example.com"}, Methods: []string{"GET", "HEAD"}, Paths: []string{"/v1/*", "/health"}},
			{Hosts: []string{"rest.example.com"}, Methods: []string{"POST"}, Paths: []string{"/upload"}},
			{Hosts: []string{"opaque.example.com"}, Ports: []uint16{443}, TLS: TLSOptional},
			{Hosts: []string{"api.example.com"}, Ports: []uint16{443}, TLS: TLSOptional},
			{Hosts: []string{"*.rules.example.net", "203.0.113.9"}, Ports: []uint16{8080}},
			{Hosts: []string{"ports.example.com:9000"}},
		},
	}
	m := mustCompile(t, spec)
	allow := func(rule string) Decision { return Decision{Allowed: true, Rule: rule} }
	deny := func(reason Reason, rule string) Decision { return Decision{Reason: reason, Rule: rule} }
	const (
		rest0 = `rules[0].hosts[0] "rest.example.com"`
		rest1 = `rules[1].hosts[0] "rest.example.com"`
	)
	for name, tc := range map[string]struct {
		req  Request
		want Decision
	}{
		"exact host on 443, loosened by a rule": {tunnel(t, "api.example.com:443"), Decision{Allowed: true, Rule: `rules[3].hosts[0] "api.example.com"`, TLS: TLSOptional}},
		"exact host on 80":                      {tunnel(t, "api.example.com:80"), allow(`allowedHosts[0] "api.example.com"`)},
		"exact host on another port":            {tunnel(t, "api.example.com:22"), deny(ReasonPortNotAllowed, `allowedHosts[0] "api.example.com"`)},
		"host with a port":                      {tunnel(t, "db.example.net:5432"), allow(`allowedHosts[1] "db.example.net:5432"`)},
		"host with a port on 443":               {tunnel(t, "db.example.net:443"), deny(ReasonPortNotAllowed, `allowedHosts[1] "db.example.net:5432"`)},
		"same name in capitals":                 {tunnel(t, "API.EXAMPLE.COM.:80"), allow(`allowedHosts[0] "api.example.com"`)},
		"below an exact host":                   {tunnel(t, "a.api.example.com:443"), deny(ReasonHostNotAllowed, "")},
		"above an exact host":                   {tunnel(t, "example.com:443"), deny(ReasonHostNotAllowed, "")},
		"suffix without a dot":                  {tunnel(t, "evil-api.example.com:443"), deny(ReasonHostNotAllowed, "")},
		"prefix of another domain":              {tunnel(t, "api.example.com.evil.net:443"), deny(ReasonHostNotAllowed, "")},
		"wildcard, one label":                   {tunnel(t, "a.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"wildcard, four labels":                 {tunnel(t, "a.b.c.d.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"wildcard is not its own host":          {tunnel(t, "example.org:443"), deny(ReasonHostNotAllowed, "")},
		"wildcard needs a dot":                  {tunnel(t, "evilexample.org:443"), deny(ReasonHostNotAllowed, "")},
		"wildcard on another port":              {tunnel(t, "a.example.org:22"), deny(ReasonPortNotAllowed, `allowedHosts[2] "*.example.org"`)},
		"narrower wildcard with a port":         {tunnel(t, "a.deep.example.org:8443"), allow(`allowedHosts[5] "*.deep.example.org:8443"`)},
		"wider wildcard behind a narrower one":  {tunnel(t, "a.deep.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"IPv4":                                  {tunnel(t, "203.0.113.7:443"), allow(`allowedHosts[3] "203.0.113.7"`)},
		"v4-mapped":                             {tunnel(t, "[::ffff:203.0.113.7]:443"), allow(`allowedHosts[3] "203.0.113.7"`)},
		"other IPv4":                            {tunnel(t, "203.0.113.8:443"), deny(ReasonHostNotAllowed, "")},
		"metadata address":                      {tunnel(t, "[::ffff:169.254.169.254]:80"), deny(ReasonHostNotAllowed, "")},
		"IPv6":                                  {tunnel(t, "[2001:db8::1]:443"), allow(`allowedHosts[4] "[2001:db8::1]:443"`)},
		"IPv6 on another port":                  {tunnel(t, "[2001:db8::1]:80"), deny(ReasonPortNotAllowed, `allowedHosts[4] "[2001:db8::1]:443"`)},
		"denied beats the wildcard":             {tunnel(t, "telemetry.example.org:443"), deny(ReasonHostDenied, `deniedHosts[0] "telemetry.example.org"`)},
		"denied on all ports":                   {tunnel(t, "telemetry.example.org:8443"), deny(ReasonHostDenied, `deniedHosts[0] "telemetry.example.org"`)},
		"below a denied host":                   {tunnel(t, "a.telemetry.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"denied wildcard":                       {tunnel(t, "x.y.ads.example.org:443"), deny(ReasonHostDenied, `deniedHosts[1] "*.ads.example.org"`)},
		"denied wildcard is not its own host":   {tunnel(t, "ads.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"denied port":                           {tunnel(t, "half.example.org:80"), deny(ReasonHostDenied, `deniedHosts[2] "half.example.org:80"`)},
		"port that is not denied":               {tunnel(t, "half.example.org:443"), allow(`allowedHosts[2] "*.example.org"`)},
		"denied address beats a rule":           {tunnel(t, "203.0.113.9:8080"), deny(ReasonHostDenied, `deniedHosts[3] "203.0.113.9"`)},
		"preset":                                {tunnel(t, "dl-cdn.alpinelinux.org:443"), allow(`presets[0] alpine "dl-cdn.alpinelinux.org"`)},
		"preset in a group":                     {plain(t, "any.debian.org:80", "GET", "/debian/dists/"), allow(`presets[1] os-updates/debian "*.debian.org"`)},
		"rule of the first set of methods":      {plain(t, "rest.example.com:80", "GET", "/v1/x"), allow(rest0)},
		"rule with an exact path":               {plain(t, "rest.example.com:80", "HEAD", "/health"), allow(rest0)},
		"rule of the second set of methods":     {plain(t, "rest.example.com:80", "POST", "/upload"), allow(rest1)},
		"no rule has the method":                {plain(t, "rest.example.com:80", "DELETE", "/v1/x"), deny(ReasonMethodNotAllowed, rest0)},
		"methods are case-sensitive":            {plain(t, "rest.example.com:80", "get", "/v1/x"), deny(ReasonMethodNotAllowed, rest0)},
		"no method":                             {plain(t, "rest.example.com:80", "", "/v1/x"), deny(ReasonMethodNotAllowed, rest0)},
		"path of the other rule":                {plain(t, "rest.example.com:80", "POST", "/v1/x"), deny(ReasonPathNotAllowed, rest1)},
		"path outside":                          {plain(t, "rest.example.com:80", "GET", "/v2/x"), deny(ReasonPathNotAllowed, rest0)},
		"path that climbs out":                  {plain(t, "rest.example.com:80", "GET", "/v1/../v2/x"), deny(ReasonPathNotAllowed, rest0)},
		"path that climbs out encoded":          {plain(t, "rest.example.com:80", "GET", "/v1/%2e%2e/v2/x"), deny(ReasonPathNotAllowed, rest0)},
		"path with an encoded slash":            {plain(t, "rest.example.com:80", "GET", "/v1%2fx"), deny(ReasonPathNotAllowed, rest0)},
		"rule on another port":                  {plain(t, "rest.example.com:8080", "GET", "/v1/x"), deny(ReasonPortNotAllowed, rest0)},
		"opaque tunnel of a rule with methods":  {tunnel(t, "rest.example.com:443"), allow(rest0)},
		"tunnel that need not be TLS":           {tunnel(t, "opaque.example.com:443"), Decision{Allowed: true, Rule: `rules[2].hosts[0] "opaque.example.com"`, TLS: TLSOptional}},
		"rule with a wildcard":                  {tunnel(t, "a.rules.example.net:8080"), allow(`rules[4].hosts[0] "*.rules.example.net"`)},
		"rule with a port in the host":          {tunnel(t, "ports.example.com:9000"), allow(`rules[5].hosts[0] "ports.example.com:9000"`)},
		"no default ports besides it":           {tunnel(t, "ports.example.com:443"), deny(ReasonPortNotAllowed, `rules[5].hosts[0] "ports.example.com:9000"`)},
		"the zero request":                      {Request{}, deny(ReasonHostNotAllowed, "")},
		"no port":                               {Request{Authority: hostname.Authority{Host: authority(t, "api.example.com:80").Host}}, deny(ReasonHostNotAllowed, "")},
		"no host":                               {Request{Authority: hostname.Authority{Port: 443}}, deny(ReasonHostNotAllowed, "")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := m.Decide(tc.req); got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestNothingAllowedIsNothingAllowed(t *testing.T) {
	for name, m := range map[string]*Matcher{"nil": nil, "zero": {}, "empty": mustCompile(t, Spec{}), "only denies": mustCompile(t, Spec{DeniedHosts: []string{"a.example.com"}})} {
		for _, to := range []string{"b.example.com:443", "203.0.113.7:443", "[2001:db8::1]:443"} {
			if d := m.Decide(tunnel(t, to)); d != (Decision{Reason: ReasonHostNotAllowed}) {
				t.Errorf("%s matcher, %s: %+v", name, to, d)
			}
		}
	}
}

func TestDenyBeatsAllowWhereverItStands(t *testing.T) {
	for _, denied := range []string{"a.b.example.org", "*.b.example.org", "*.example.org"} {
		for _, allowed := range []string{"a.b.example.org", "*.b.example.org", "*.example.org"} {
			m := mustCompile(t, Spec{AllowedHosts: []string{allowed}, DeniedHosts: []string{denied}, Rules: []Rule{{Hosts: []string{allowed}, TLS: TLSOptional}}})
			want := Decision{Reason: ReasonHostDenied, Rule: fmt.Sprintf("deniedHosts[0] %q", denied)}
			if d := m.Decide(tunnel(t, "a.b.example.org:443")); d != want {
				t.Errorf("allow %s, deny %s: %+v", allowed, denied, d)
			}
		}
	}
}

// A second, slow reading of the rules: labels compared one by one.
func naive(allow, deny []string, host string, port uint16) bool {
	hit := func(list []string, defaults bool) bool {
		for _, e := range list {
			name, p, hasPort := strings.Cut(e, ":")
			portOK := hasPort && p == fmt.Sprint(port) || !hasPort && (!defaults || port == 80 || port == 443)
			want, labels := strings.Split(name, "."), strings.Split(host, ".")
			if want[0] == "*" && len(labels) > len(want)-1 {
				want, labels = want[1:], labels[len(labels)-len(want)+1:]
			}
			if portOK && slices.Equal(want, labels) {
				return true
			}
		}
		return false
	}
	return hit(allow, true) && !hit(deny, false)
}

func TestDecideAgreesWithANaiveReading(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "c"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(append(rapid.SliceOfN(label, 0, 4).Draw(t, "labels"), "example", "com"), ".")
	})
	pattern := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"", "*."}).Draw(t, "star") + name.Draw(t, "name") + rapid.SampledFrom([]string{"", ":80", ":443", ":8080"}).Draw(t, "port")
	})
	rapid.Check(t, func(t *rapid.T) {
		allow := rapid.SliceOfN(pattern, 0, 6).Draw(t, "allow")
		deny := rapid.SliceOfN(pattern, 0, 3).Draw(t, "deny")
		m, err := Compile(Spec{AllowedHosts: allow, DeniedHosts: deny})
		if err != nil {
			t.Fatal(err)
		}
		host := name.Draw(t, "host")
		port := rapid.SampledFrom([]uint16{80, 443, 8080, 22}).Draw(t, "port")
		a, err := hostname.ParseAuthority(fmt.Sprintf("%s:%d", host, port))
		if err != nil {
			t.Fatal(err)
		}
		d := m.Decide(Request{Authority: a})
		if want := naive(allow, deny, host, port); d.Allowed != want {
			t.Fatalf("%s: %+v, want %v", a, d, want)
		}
		if d.Allowed != (d.Reason == "") || d.Allowed && d.Rule == "" {
			t.Fatalf("%s: %+v", a, d)
		}
		// What the token claims from Hosts reaches, apart from deniedHosts, the same.
		flat, err := Compile(Spec{AllowedHosts: m.Hosts(), DeniedHosts: deny})
		if err != nil || flat.Decide(Request{Authority: a}).Allowed != d.Allowed {
			t.Fatalf("%s: Hosts() = %q decides otherwise (%v)", a, m.Hosts(), err)
		}
	})
}

func big(b testing.TB, n int) *Matcher {
	var hosts []string
	for i := range n {
		switch i % 5 {
		case 0:
			hosts = append(hosts, fmt.Sprintf("*.w%d.example.org", i))
		case 1:
			hosts = append(hosts, fmt.Sprintf("h%d.example.net:8443", i))
		default:
			hosts = append(hosts, fmt.Sprintf("h%d.svc.example.com", i))
		}
	}
	return mustCompile(b, Spec{AllowedHosts: hosts, DeniedHosts: []string{"*.telemetry.example.org"}})
}

func bigRequests(t testing.TB) map[string]struct {
	req     Request
	allowed bool
} {
	return map[string]struct {
		req     Request
		allowed bool
	}{
		"exact":          {tunnel(t, "h2502.svc.example.com:443"), true},
		"wildcard depth": {tunnel(t, "a.b.c.d.w2500.example.org:443"), true},
		"miss":           {tunnel(t, "api.eu.unknown.example.com:443"), false},
		"miss deep":      {tunnel(t, strings.Repeat("a.", 118)+"example.com:443"), false},
		"address":        {tunnel(t, "203.0.113.7:443"), false},
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	m := big(t, 5000)
	for name, tc := range bigRequests(t) {
		if d := m.Decide(tc.req); d.Allowed != tc.allowed {
			t.Errorf("%s: %+v", name, d)
		}
		if n := testing.AllocsPerRun(100, func() { m.Decide(tc.req) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDecide5000(b *testing.B) { benchmarkDecide(b, 5000) }

// The figures of 50 and 50,000 hosts show that the cost does not grow.
func BenchmarkDecide50(b *testing.B)    { benchmarkDecide(b, 50) }
func BenchmarkDecide50000(b *testing.B) { benchmarkDecide(b, 50000) }

func benchmarkDecide(b *testing.B, n int) {
	m := big(b, n)
	for name, tc := range bigRequests(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m.Decide(tc.req).Allowed != tc.allowed && n == 5000 {
					b.Fatal("wrong decision")
				}
			}
		})
	}
}

func BenchmarkDecideRule(b *testing.B) {
	m := mustCompile(b, Spec{Rules: []Rule{{Hosts: []string{"rest.example.com"}, Methods: []string{"GET", "HEAD"}, Paths: []string{"/v1/*"}}}})
	r := plain(b, "rest.example.com:80", "GET", "/v1/items/7")
	b.ReportAllocs()
	for b.Loop() {
		if !m.Decide(r).Allowed {
			b.Fatal("denied")
		}
	}
}
