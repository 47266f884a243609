package hostname

import (
	"strings"
	"testing"
)

func TestParseAuthorityAccepts(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"name":              {"api.example.com:443", "api.example.com:443"},
		"same name":         {"API.Example.COM.:443", "api.example.com:443"},
		"lowest port":       {"a.example:1", "a.example:1"},
		"highest port":      {"a.example:65535", "a.example:65535"},
		"dotted quad":       {"192.0.2.1:80", "192.0.2.1:80"},
		"IPv6":              {"[2001:DB8::1]:8443", "[2001:db8::1]:8443"},
		"v4-mapped":         {"[::ffff:192.0.2.1]:80", "192.0.2.1:80"},
		"internationalised": {"bücher.example:443", "xn--bcher-kva.example:443"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseAuthority(tc.in)
			if err != nil || got.String() != tc.want {
				t.Fatalf("ParseAuthority(%q) = %v, %v, want %s", tc.in, got, err, tc.want)
			}
			// A given port beats the default.
			if d, err := ParseAuthorityDefault(tc.in, 7); err != nil || d != got {
				t.Errorf("ParseAuthorityDefault(%q) = %v, %v, want %v", tc.in, d, err, got)
			}
		})
	}
}

func TestParseAuthorityDefaultFillsInThePort(t *testing.T) {
	for in, want := range map[string]string{
		"a.example":     "a.example:80",
		"192.0.2.1":     "192.0.2.1:80",
		"[2001:db8::1]": "[2001:db8::1]:80",
	} {
		if got, err := ParseAuthorityDefault(in, 80); err != nil || got.String() != want {
			t.Errorf("ParseAuthorityDefault(%q, 80) = %v, %v, want %s", in, got, err, want)
		}
	}
}

var refusedAuthorities = map[string]struct{ in, want string }{
	"empty":                  {"", "the host is empty"},
	"only a port":            {":443", "the host is empty"},
	"empty port":             {"a.example:", "the port after the colon is empty"},
	"empty port after IPv6":  {"[2001:db8::1]:", "the port after the colon is empty"},
	"port 0":                 {"a.example:0", "not between 1 and 65535"},
	"zero-padded port":       {"a.example:0443", "leading zero"},
	"zeros":                  {"a.example:00", "leading zero"},
	"port 65536":             {"a.example:65536", "not between 1 and 65535"},
	"port past int":          {"a.example:" + strings.Repeat("9", 40), "not between 1 and 65535"},
	"plus sign":              {"a.example:+443", "not a decimal number"},
	"minus sign":             {"a.example:-1", "not a decimal number"},
	"hexadecimal port":       {"a.example:0x1bb", "not a decimal number"},
	"service name":           {"a.example:https", "not a decimal number"},
	"full-width digits":      {"a.example:４４３", "not a decimal number"},
	"space before the port":  {"a.example: 443", "white space"},
	"two ports":              {"a.example:443:80", "more than one colon"},
	"bare IPv6 with port":    {"2001:db8::1:443", "write an IPv6 address in brackets"},
	"name in brackets":       {"[a.example]:443", "brackets may only enclose an IPv6"},
	"quad in brackets":       {"[192.0.2.1]:443", "brackets may only enclose an IPv6"},
	"no closing bracket":     {"[2001:db8::1:443", "closing bracket"},
	"text after the bracket": {"[2001:db8::1]x:443", "only :port may follow"},
	"userinfo":               {"user:pw@a.example:443", "userinfo"},
	"userinfo like a host":   {"a.example:443@evil.example:443", "userinfo"},
	"scheme":                 {"https://a.example:443", "slash"},
	"path":                   {"a.example:443/x", "slash"},
	"origin-form":            {"/foo", "slash"},
	"zone":                   {"[fe80::1%25eth0]:443", "zones"},
	"shorthand":              {"127.1:80", "ambiguous numeric host"},
	"wildcard":               {"*:443", "wildcards are only accepted in host patterns"},
	"asterisk-form":          {"*", ""},
}

func TestParseAuthorityRefuses(t *testing.T) {
	for name, tc := range refusedAuthorities {
		t.Run(name, func(t *testing.T) {
			if tc.in != "" {
				got, err := ParseAuthority(tc.in)
				assertRefused(t, tc.in, err, tc.want)
				if got != (Authority{}) {
					t.Errorf("%q: %v with an error", tc.in, got)
				}
			}
			_, err := ParseAuthorityDefault(tc.in, 443)
			assertRefused(t, tc.in, err, tc.want)
		})
	}
}

func TestParseAuthorityRequiresThePort(t *testing.T) {
	for _, in := range []string{"a.example", "192.0.2.1", "[2001:db8::1]", "*", ""} {
		_, err := ParseAuthority(in)
		assertRefused(t, in, err, "the port is missing: write host:port")
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, tc := range refusedAuthorities {
		f.Add(tc.in)
	}
	for _, s := range []string{"a.example:443", "[2001:db8::1]:443", "192.0.2.1:1", "BÜCHER.example.:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := ParseAuthority(in)
		d, derr := ParseAuthorityDefault(in, 443)
		if err != nil {
			assertRefused(t, in, err, "")
			if derr == nil && (d.Port != 443 || strings.HasSuffix(in, ":443")) {
				t.Fatalf("%q: refused with, accepted without a default port: %v", in, d)
			}
			return
		}
		if derr != nil || a != d {
			t.Fatalf("%q: %v and %v, %v", in, a, d, derr)
		}
		if a.Port == 0 {
			t.Fatalf("%q: port 0", in)
		}
		checkCanonical(t, in, a.Host)
		if again, err := ParseAuthority(a.String()); err != nil || again != a {
			t.Fatalf("%q -> %q -> %v, %v", in, a, again, err)
		}
	})
}

func BenchmarkParseAuthority(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAuthority("api.eu-west-1.example.com:443"); err != nil {
			b.Fatal(err)
		}
	}
}
