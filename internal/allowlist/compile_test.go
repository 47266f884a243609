package allowlist

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func mustCompile(t testing.TB, s Spec) *Matcher {
	t.Helper()
	m, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCompileReportsAllProblemsWithTheirFields(t *testing.T) {
	m, err := Compile(Spec{
		Presets:      []string{"npm", "nmp"},
		AllowedHosts: []string{"a.example.com", "*", "https://b.example.com"},
		DeniedHosts:  []string{"*.com"},
		Rules: []Rule{
			{},
			{Hosts: []string{"a.example.com", "a.*.com"}, Ports: []uint16{443, 0}, Methods: []string{"GET", "get", "", "*", "CONNECT", "G T", "GÉT"}, Paths: []string{"/v1/*", "v1"}, TLS: 7},
			{Hosts: []string{"a.example.com:8443"}, Ports: []uint16{443}},
		},
	})
	var all FieldErrors
	if m != nil || !errors.As(err, &all) {
		t.Fatalf("Compile = %v, %v", m, err)
	}
	want := []struct{ field, value, reason string }{
		{"presets[1]", "nmp", "there is no such preset: the presets are alpine, conda, "},
		{"allowedHosts[1]", "*", "it would allow every host"},
		{"allowedHosts[2]", "https://b.example.com", "it has a scheme"},
		{"deniedHosts[0]", "*.com", "public suffix"},
		{"rules[0].hosts", "", "a rule needs at least one host"},
		{"rules[1].ports[1]", "0", "between 1 and 65535"},
		{"rules[1].methods[1]", "get", "write GET"},
		{"rules[1].methods[2]", "", "leave methods out to allow all"},
		{"rules[1].methods[3]", "*", "leave methods out to allow all"},
		{"rules[1].methods[4]", "CONNECT", "leave it out"},
		{"rules[1].methods[5]", "G T", "write a token such as GET"},
		{"rules[1].methods[6]", "GÉT", "write a token such as GET"},
		{"rules[1].tls", "7", "Required or Optional"},
		{"rules[1].paths[1]", "v1", "a path starts with a slash"},
		{"rules[1].hosts[1]", "a.*.com", "whole first label"},
		{"rules[2].hosts[0]", "a.example.com:8443", "write the port in one place"},
	}
	if len(all) != len(want) {
		t.Fatalf("%d problems, want %d: %v", len(all), len(want), err)
	}
	for i, w := range want {
		got := all[i]
		if got.Field != w.field || got.Value != w.value || !strings.Contains(got.Reason, w.reason) {
			t.Errorf("problem %d is %v, want %+v", i, got, w)
		}
		if !strings.Contains(err.Error(), got.Error()) || !strings.HasPrefix(got.Error(), w.field+": ") {
			t.Errorf("%q is not in the message", got)
		}
	}
	var one *FieldError
	if !errors.As(err, &one) || one != all[0] {
		t.Errorf("errors.As finds %v", one)
	}
}

func TestFieldErrorsQuoteAndCutTheValue(t *testing.T) {
	_, err := ParsePattern("a\x1b\n" + strings.Repeat("x", 500))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 300 {
		t.Errorf("unsafe or long message: %q", err)
	}
}

func TestHostsFlattensWhatIsAllowed(t *testing.T) {
	m := mustCompile(t, Spec{
		Presets:      []string{"alpine"},
		AllowedHosts: []string{"b.example.com", "B.example.com", "*.example.org", "db.example.net:5432", "[2001:db8::1]", "[2001:db8::1]:443", "203.0.113.7:8080", "b.example.com:443"},
		DeniedHosts:  []string{"telemetry.example.org"},
		Rules: []Rule{
			{Hosts: []string{"a.example.com"}, Ports: []uint16{443, 8443}, Methods: []string{"GET"}},
			{Hosts: []string{"c.example.com"}, Ports: []uint16{80, 443}},
			{Hosts: []string{"b.example.com"}, Ports: []uint16{443}},
		},
	})
	want := []string{"*.example.org", "203.0.113.7:8080", "[2001:db8::1]", "a.example.com:443", "a.example.com:8443", "b.example.com", "c.example.com", "db.example.net:5432", "dl-cdn.alpinelinux.org"}
	got := m.Hosts()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// It is what a token carries, so it must compile to the same list.
	if again := mustCompile(t, Spec{AllowedHosts: got}).Hosts(); !slices.Equal(again, want) {
		t.Errorf("compiled again it is %q", again)
	}
	got[0] = "changed"
	if m.Hosts()[0] == "changed" {
		t.Error("a caller can change the matcher")
	}
	if (*Matcher)(nil).Hosts() != nil {
		t.Error("a nil Matcher has hosts")
	}
}

func TestCompileKeepsNothingOfItsArgument(t *testing.T) {
	r := Rule{Hosts: []string{"a.example.com"}, Ports: []uint16{8080}, Methods: []string{"GET"}, Paths: []string{"/v1/*"}}
	m := mustCompile(t, Spec{Rules: []Rule{r}})
	r.Ports[0], r.Methods[0], r.Paths[0] = 22, "PUT", "/*"
	if d := m.Decide(plain(t, "a.example.com:8080", "GET", "/v1/x")); !d.Allowed {
		t.Errorf("the matcher changed with the Spec: %+v", d)
	}
}
