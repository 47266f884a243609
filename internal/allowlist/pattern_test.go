package allowlist

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePatternAccepts(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com":        "api.example.com",
		"API.Example.COM.":       "api.example.com",
		"localhost":              "localhost",
		"db.example.net:5432":    "db.example.net:5432",
		"*.example.org":          "*.example.org",
		"*.Example.ORG.":         "*.example.org",
		"*.example.org:8443":     "*.example.org:8443",
		"*.a.b.example.co.uk":    "*.a.b.example.co.uk",
		"*.example.co.uk":        "*.example.co.uk",
		"*.bücher.example":       "*.xn--bcher-kva.example",
		"*.user.github.io":       "*.user.github.io",
		"*.b.s3.amazonaws.com":   "*.b.s3.amazonaws.com",
		"*.svc.cluster.local":    "*.svc.cluster.local",
		"github.io":              "github.io", // exact: no one else's name is below it
		"203.0.113.7":            "203.0.113.7",
		"203.0.113.7:8080":       "203.0.113.7:8080",
		"[2001:DB8::1]":          "[2001:db8::1]",
		"[2001:db8::1]:443":      "[2001:db8::1]:443",
		"[::ffff:203.0.113.7]:1": "203.0.113.7:1",
		"_x.example.com":         "_x.example.com",
	} {
		got, err := ParsePattern(in)
		if err != nil || got.String() != want {
			t.Errorf("ParsePattern(%q) = %q, %v, want %q", in, got, err, want)
			continue
		}
		if again, err := ParsePattern(got.String()); err != nil || again != got {
			t.Errorf("%q does not survive its own String: %v, %v", in, again, err)
		}
	}
}

// What is wrong with a pattern, and the words that say what to write instead.
var refusedPatterns = map[string]struct{ in, want string }{
	"empty":                               {"", "it is empty: write a host"},
	"everything":                          {"*", "it would allow every host: list the hosts"},
	"everything on a port":                {"*:443", "it would allow every host"},
	"wildcard of nothing":                 {"*.", "the host is empty"},
	"top-level domain":                    {"*.com", "com is a public suffix, below which anyone can get a name; list the hosts, or write *.yourname.com"},
	"top-level domain in capitals":        {"*.COM.", "com is a public suffix"},
	"top-level domain with port":          {"*.com:443", "com is a public suffix"},
	"internal top-level label":            {"*.local", "local is a public suffix"},
	"unknown top-level label":             {"*.cromulent", "cromulent is a public suffix"},
	"second-level suffix":                 {"*.co.uk", "co.uk is a public suffix"},
	"internationalised suffix":            {"*.рф", "xn--p1ai is a public suffix"},
	"suffix in full-width letters":        {"*.ｃｏｍ", "com is a public suffix"},
	"private suffix":                      {"*.github.io", "github.io is a public suffix"},
	"private suffix of githubusercontent": {"*.githubusercontent.com", "githubusercontent.com is a public suffix"},
	"storage suffix":                      {"*.s3.amazonaws.com", "s3.amazonaws.com is a public suffix"},
	"regional storage suffix":             {"*.s3.eu-west-1.amazonaws.com", "is a public suffix"},
	"blob storage":                        {"*.blob.core.windows.net", "is a public suffix"},
	"domain with suffixes below":          {"*.amazonaws.com", "it holds "},
	"domain with suffixes far below":      {"*.core.windows.net", "it holds "},
	"domain whose children are suffixes":  {"*.compute.amazonaws.com", "public suffix"},
	"list rule with a star":               {"*.ck", "is a public suffix"},
	"inner wildcard":                      {"a.*.com", "* is only accepted as the whole first label: write *.example.com"},
	"partial label":                       {"*a.com", "* is only accepted as the whole first label"},
	"partial label at the end":            {"a*.example.com", "* is only accepted as the whole first label"},
	"two wildcards":                       {"*.*.example.com", "* is only accepted as the whole first label"},
	"double star":                         {"**.example.com", "** is not a wildcard: *.example.com already stands for"},
	"trailing wildcard":                   {"example.*", "* is only accepted as the whole first label"},
	"wildcard port":                       {"example.com:*", "* is only accepted as the whole first label"},
	"wildcard of IPv4":                    {"*.0.2.1", "ambiguous numeric host"},
	"wildcard of an address":              {"*.192.0.2.1", "a wildcard needs a name, not an IP address: write each address"},
	"wildcard of IPv6":                    {"*.[2001:db8::1]", "a wildcard needs a name, not an IP address"},
	"leading dot":                         {".example.com", "write *.example.com for the hosts below"},
	"scheme":                              {"https://api.example.com", "it has a scheme: write only the host"},
	"path":                                {"api.example.com/v1", "paths go into rules[].paths"},
	"CIDR":                                {"10.0.0.0/8", "networks into privateNetworks"},
	"two hosts":                           {"a.example.com,b.example.com", "write one host per entry"},
	"white space":                         {" a.example.com", "white space"},
	"port 0":                              {"a.example.com:0", "not between 1 and 65535"},
	"zero-padded port":                    {"a.example.com:0443", "leading zero"},
	"empty port":                          {"a.example.com:", "the port after the colon is empty"},
	"bare IPv6":                           {"2001:db8::1", "write an IPv6 address in brackets"},
	"shorthand address":                   {"127.1", "ambiguous numeric host"},
	"userinfo":                            {"user@a.example.com", "userinfo"},
	"empty label":                         {"a..example.com", "empty label"},
}

func TestParsePatternRefuses(t *testing.T) {
	for name, tc := range refusedPatterns {
		t.Run(name, func(t *testing.T) {
			got, err := ParsePattern(tc.in)
			var fe *FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("ParsePattern(%q) = %v, %v, want a *FieldError with %q", tc.in, got, err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.want) || fe.Value != tc.in || got != (Pattern{}) {
				t.Errorf("ParsePattern(%q): %v, want %q in it", tc.in, err, tc.want)
			}
		})
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, tc := range refusedPatterns {
		f.Add(tc.in)
	}
	for _, s := range []string{"api.example.com", "*.example.org:8443", "[2001:db8::1]:443", "203.0.113.7", "*.bücher.example."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := ParsePattern(in)
		if err != nil {
			var fe *FieldError
			if !errors.As(err, &fe) || fe.Reason == "" || p != (Pattern{}) {
				t.Fatalf("%q: %v, %v", in, p, err)
			}
			return
		}
		if again, err := ParsePattern(p.String()); err != nil || again != p {
			t.Fatalf("%q -> %q -> %v, %v", in, p, again, err)
		}
		if p.Wildcard() && (p.Host().IsIP() || !strings.Contains(p.Host().Name(), ".")) {
			t.Fatalf("%q: wildcard over %q", in, p.Host())
		}
		if p.Wildcard() != strings.HasPrefix(in, "*.") {
			t.Fatalf("%q: wildcard %v", in, p.Wildcard())
		}
	})
}
