package hostname

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseHostCanonicalises(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"plain name":                       {"api.example.com", "api.example.com"},
		"single label":                     {"localhost", "localhost"},
		"upper case":                       {"A.EXAMPLE.COM", "a.example.com"},
		"one trailing dot":                 {"a.example.com.", "a.example.com"},
		"upper case with trailing dot":     {"A.EXAMPLE.COM.", "a.example.com"},
		"underscore first":                 {"_dmarc.example.com", "_dmarc.example.com"},
		"underscore inside":                {"my_host.example.com", "my_host.example.com"},
		"double hyphen in third place":     {"r3---sn-ab5.example.com", "r3---sn-ab5.example.com"},
		"digits in the first label":        {"1.2.3.example", "1.2.3.example"},
		"hex digits without 0x":            {"a.beef", "a.beef"},
		"label of 63":                      {strings.Repeat("a", 63) + ".example", strings.Repeat("a", 63) + ".example"},
		"name of 253":                      {strings.Repeat("a.", 126) + "a", strings.Repeat("a.", 126) + "a"},
		"name of 253 and a dot":            {strings.Repeat("a.", 126) + "a.", strings.Repeat("a.", 126) + "a"},
		"U-label":                          {"bücher.example", "xn--bcher-kva.example"},
		"upper-case U-label":               {"BÜCHER.example", "xn--bcher-kva.example"},
		"decomposed U-label":               {"bu\u0308cher.example", "xn--bcher-kva.example"},
		"A-label":                          {"xn--bcher-kva.example", "xn--bcher-kva.example"},
		"upper-case A-label":               {"XN--BCHER-KVA.Example", "xn--bcher-kva.example"},
		"sharp s is not ss":                {"straße.example", "xn--strae-oqa.example"},
		"full-width letters":               {"ｅｘａｍｐｌｅ.com", "example.com"},
		"ideographic full stop":            {"a\u3002example\u3002com", "a.example.com"},
		"full-width full stop":             {"a\uff0eexample.com", "a.example.com"},
		"half-width ideographic full stop": {"a\uff61example.com", "a.example.com"},
		"trailing ideographic full stop":   {"example.com\u3002", "example.com"},
		"soft hyphen is dropped":           {"exa\u00admple.com", "example.com"},
		"Kelvin sign":                      {"\u212a.example", "k.example"},
		"long s":                           {"\u017felf.example", "self.example"},
		"U-label and underscore":           {"_x.bücher.example", "_x.xn--bcher-kva.example"},
		"dotted quad":                      {"192.0.2.1", "192.0.2.1"},
		"zero address":                     {"0.0.0.0", "0.0.0.0"},
		"bare IPv6":                        {"2001:DB8::1", "2001:db8::1"},
		"bracketed IPv6":                   {"[2001:db8:0:0:0:0:0:1]", "2001:db8::1"},
		"IPv6 with leading zeros":          {"[2001:0db8::0001]", "2001:db8::1"},
		"v4-mapped":                        {"[::ffff:192.0.2.1]", "192.0.2.1"},
		"v4-mapped in hex":                 {"::ffff:a9fe:a9fe", "169.254.169.254"},
		"v4-compatible stays IPv6":         {"::192.0.2.1", "::c000:201"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseHost(tc.in)
			if err != nil {
				t.Fatalf("ParseHost(%q): %v", tc.in, err)
			}
			if got.String() != tc.want {
				t.Errorf("ParseHost(%q) = %q, want %q", tc.in, got, tc.want)
			}
			if ip, err := netip.ParseAddr(tc.want); err == nil {
				if got.Addr() != ip || got.Name() != "" || !got.IsIP() {
					t.Errorf("want the address %v, got %#v", ip, got)
				}
			} else if got.Name() != tc.want || got.IsIP() || got.Addr().IsValid() {
				t.Errorf("want the name %q, got %#v", tc.want, got)
			}
		})
	}
}

// What is wrong with a host, and the words that say so.
var refusedHosts = map[string]struct{ in, want string }{
	"empty":                          {"", "the host is empty"},
	"dot":                            {".", "empty label"},
	"two dots":                       {"..", "empty label"},
	"leading dot":                    {".example.com", "empty label"},
	"empty label":                    {"a..example.com", "empty label"},
	"two trailing dots":              {"example.com..", "empty label"},
	"two trailing dots, one mapped":  {"example.com.\u3002", "empty label"},
	"empty label after mapping":      {"a.\u00ad.example.com", "empty label"},
	"name of 254":                    {strings.Repeat("a.", 126) + "aa", "longer than 253"},
	"name of 254 in capitals":        {strings.Repeat("A.", 126) + "AA", "longer than 253"},
	"enormous":                       {strings.Repeat("a", 100_000), "longer than 253"},
	"label of 64":                    {strings.Repeat("a", 64) + ".example", "longer than 63"},
	"A-label of 64 from a U-label":   {strings.Repeat("ü", 60) + strings.Repeat("a", 40) + ".example", "longer than 63"},
	"U-label that costs most":        {strings.Repeat("\u4e00\u9fa5", 160), "longer than 63"},
	"leading hyphen":                 {"-a.example", "starts or ends with a hyphen"},
	"trailing hyphen":                {"a-.example", "starts or ends with a hyphen"},
	"NUL":                            {"example.com\x00.evil.net", "NUL"},
	"space":                          {"example .com", "white space"},
	"trailing newline":               {"example.com\n", "white space"},
	"carriage return":                {"a.example\r\nHost: b", "white space"},
	"no-break space":                 {"a\u00a0b.example", "a character that host names do not have"},
	"escape character":               {"a\x1b.example", "control character"},
	"DEL":                            {"a\x7f.example", "control character"},
	"percent escape":                 {"ex%61mple.com", "%"},
	"full-width percent":             {"ex％61mple.com", "a character that host names do not have"},
	"zone":                           {"fe80::1%eth0", "zones"},
	"bracketed zone":                 {"[fe80::1%25eth0]", "zones"},
	"userinfo":                       {"user@example.com", "userinfo"},
	"userinfo with password":         {"user:pw@example.com", "userinfo"},
	"full-width @":                   {"user＠example.com", "a character that host names do not have"},
	"path":                           {"example.com/x", "slash"},
	"scheme":                         {"http://example.com", "slash"},
	"backslash":                      {`example.com\x`, "backslash"},
	"full-width slash":               {"example.com／x", "a character that host names do not have"},
	"account of":                     {"ex\u2100mple.com", "a character that host names do not have"},
	"query":                          {"example.com?x", "?"},
	"fragment":                       {"example.com#x", "#"},
	"wildcard":                       {"*.example.com", "wildcards are only accepted in host patterns"},
	"comma":                          {"a.example,b.example", "a character that host names do not have"},
	"quote":                          {`"a.example"`, "a character that host names do not have"},
	"invalid UTF-8":                  {"a\xff.example", "not valid UTF-8"},
	"overlong dot":                   {"a\xc0\xaeexample", "not valid UTF-8"},
	"A-label that is no punycode":    {"xn--a-ecp.ru--.xn--", "internationalised"},
	"A-label of ASCII":               {"xn--example-.com", "internationalised"},
	"A-label with a U-letter":        {"xn--Bücher-kva.example", "xn-- label with characters outside ASCII"},
	"empty A-label at the end":       {"xn--tda.xn--", "empty label"},
	"empty A-label":                  {"xn--.example", "empty label"},
	"joiner out of context":          {"a\u200db.example", "internationalised"},
	"bidi rule":                      {"\u05d0a.example", "internationalised"},
	"leading combining mark":         {"\u0301a.example", "internationalised"},
	"port":                           {"example.com:443", "not a valid IPv6"},
	"dotted quad in brackets":        {"[192.0.2.1]", "brackets may only enclose an IPv6"},
	"name in brackets":               {"[example.com]", "brackets may only enclose an IPv6"},
	"IPvFuture":                      {"[v1.x]", "brackets may only enclose an IPv6"},
	"empty brackets":                 {"[]", "brackets may only enclose an IPv6"},
	"no closing bracket":             {"[2001:db8::1", "closing bracket"},
	"no opening bracket":             {"2001:db8::1]", "brackets may only enclose an IPv6"},
	"nested brackets":                {"[[::1]]", "not a valid IPv6"},
	"IPv6 with two gaps":             {"2001::db8::1", "not a valid IPv6"},
	"IPv6 with five digits":          {"2001:0db8a::1", "not a valid IPv6"},
	"IPv6 with octal IPv4":           {"::ffff:0177.0.0.1", "not a valid IPv6"},
	"full-width brackets":            {"［::1］", "not a valid IPv6"},
	"shorthand loopback":             {"127.1", "ambiguous numeric host"},
	"three parts":                    {"127.0.1", "ambiguous numeric host"},
	"one number":                     {"2130706433", "ambiguous numeric host"},
	"zero":                           {"0", "ambiguous numeric host"},
	"octal":                          {"0177.0.0.1", "ambiguous numeric host"},
	"octal last":                     {"127.0.0.01", "ambiguous numeric host"},
	"hexadecimal first":              {"0x7f.1", "ambiguous numeric host"},
	"hexadecimal last":               {"127.0.0.0x1", "ambiguous numeric host"},
	"hexadecimal":                    {"0x7f000001", "ambiguous numeric host"},
	"hexadecimal in capitals":        {"0X7F000001", "ambiguous numeric host"},
	"bare hexadecimal prefix":        {"foo.0x", "ambiguous numeric host"},
	"five parts":                     {"1.2.3.4.5", "ambiguous numeric host"},
	"octet of 256":                   {"256.0.0.1", "ambiguous numeric host"},
	"numeric top-level label":        {"example.123", "ambiguous numeric host"},
	"dotted quad with trailing dot":  {"127.0.0.1.", "ambiguous numeric host"},
	"number with trailing dot":       {"2130706433.", "ambiguous numeric host"},
	"circled digits":                 {"①②⑦.⓪.⓪.①", "write the address in ASCII digits"},
	"full-width digits":              {"１２７.０.０.１", "write the address in ASCII digits"},
	"full-width dots":                {"127．0．0．1", "write the address in ASCII digits"},
	"shorthand in full-width digits": {"１２７.１", "ambiguous numeric host"},
}

func TestParseHostRefuses(t *testing.T) {
	for name, tc := range refusedHosts {
		t.Run(name, func(t *testing.T) {
			got, err := ParseHost(tc.in)
			assertRefused(t, tc.in, err, tc.want)
			if got != (Host{}) {
				t.Errorf("ParseHost(%q) returned %#v with an error", tc.in, got)
			}
		})
	}
}

func assertRefused(t *testing.T, in string, err error, want string) {
	t.Helper()
	var pe *ParseError
	if !errors.As(err, &pe) {
		t.Fatalf("%q: error %v, want a *ParseError with %q", in, err, want)
	}
	if !strings.Contains(pe.Reason, want) || !strings.Contains(pe.Error(), pe.Reason) || pe.Input != in {
		t.Errorf("%q: %v, want %q in it", in, pe, want)
	}
}

func TestParseErrorQuotesAndCutsTheInput(t *testing.T) {
	_, err := ParseHost("a\x1b\n" + strings.Repeat("x", 500))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 250 {
		t.Errorf("unsafe or long message: %q", err)
	}
}

func TestCanonicalHostsAreParsedWithoutAllocation(t *testing.T) {
	for _, in := range []string{"api.example.com", "192.0.2.1", "[2001:db8::1]"} {
		n := testing.AllocsPerRun(100, func() {
			if _, err := ParseHost(in); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("ParseHost(%q) allocates %v times", in, n)
		}
	}
}

func TestHostsCompareByWhatTheyName(t *testing.T) {
	a, err := ParseHost("BÜCHER.example.")
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseHost("xn--bcher-kva.example")
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("%#v != %#v", a, b)
	}
	if (Host{}).String() != "" || (Host{}).IsIP() {
		t.Error("the zero Host names something")
	}
}

func FuzzParseHost(f *testing.F) {
	for _, tc := range refusedHosts {
		if len(tc.in) < 1000 {
			f.Add(tc.in)
		}
	}
	for _, s := range []string{"a.example.com", "A.Example.", "bücher.example", "xn--bcher-kva.example", "[::ffff:1.2.3.4]", "2001:db8::1", "a\u3002b", "\u1e9e.example", "faß.ﬀ.example", "\u2488.example", "ⅷ.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		h, err := ParseHost(in)
		if err != nil {
			assertRefused(t, in, err, "")
			if h != (Host{}) {
				t.Fatalf("%q: a host with an error", in)
			}
			return
		}
		checkCanonical(t, in, h)
	})
}

// checkCanonical states what everything downstream relies on.
func checkCanonical(t *testing.T, in string, h Host) {
	t.Helper()
	s := h.String()
	again, err := ParseHost(s)
	if err != nil || again != h {
		t.Fatalf("%q -> %q is not idempotent: %#v, %v", in, s, again, err)
	}
	if h.IsIP() {
		if h.Name() != "" || h.Addr().Zone() != "" || h.Addr().Is4In6() {
			t.Fatalf("%q -> %#v", in, h)
		}
		return
	}
	if s == "" || len(s) > 253 || s[len(s)-1] == '.' {
		t.Fatalf("%q -> %q", in, s)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Fatalf("%q -> %q has label %q", in, s, label)
		}
	}
	if _, err := netip.ParseAddr(s); err == nil {
		t.Fatalf("%q -> name %q is an IP address", in, s)
	}
}

func BenchmarkParseHost(b *testing.B) {
	for name, in := range map[string]string{"canonical": "api.eu-west-1.example.com", "upper": "API.example.com", "idna": "bücher.example", "ipv6": "[2001:db8::1]"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseHost(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
