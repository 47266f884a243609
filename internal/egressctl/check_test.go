package egressctl

import (
	"strings"
	"testing"
)

func TestCheckAgainstAHostList(t *testing.T) {
	wild := []string{"--allow", "*.example.com"}
	for name, tc := range map[string]struct {
		flags  []string
		target string
		code   int
		reason string
		text   string
	}{
		"URL below the wildcard":         {wild, "https://a.example.com/", 0, "", `--allow[0] "*.example.com"`},
		"deep below the wildcard":        {wild, "https://a.b.c.example.com", 0, "", ""},
		"the wildcard's own name":        {wild, "example.com", 1, "host_not_allowed", "no entry allows this host"},
		"a name that ends alike":         {wild, "evil-example.com", 1, "host_not_allowed", ""},
		"the name as a prefix":           {wild, "a.example.com.evil.net", 1, "host_not_allowed", ""},
		"capitals and a final dot":       {wild, "A.EXAMPLE.COM.", 0, "", "a.example.com:443"},
		"another port":                   {wild, "a.example.com:22", 1, "port_not_allowed", "80 and 443"},
		"short IPv4":                     {wild, "127.1", 1, "bad_target", "127.1"},
		"mapped metadata address":        {wild, "[::ffff:169.254.169.254]", 1, "host_not_allowed", "169.254.169.254 not allowed"},
		"metadata address on the list":   {[]string{"--allow", "169.254.169.254"}, "[::ffff:169.254.169.254]:80", 1, "address_not_allowed", "RFC 3927"},
		"loopback on the list":           {[]string{"--allow", "127.0.0.1"}, "http://127.0.0.1/", 1, "address_not_allowed", "Loopback (RFC 1122)"},
		"private address":                {[]string{"--allow", "10.1.2.3:5432"}, "10.1.2.3:5432", 1, "address_not_allowed", "RFC 1918"},
		"private address reopened":       {[]string{"--allow", "10.1.2.3:5432", "--private-network", "10.0.0.0/8"}, "10.1.2.3:5432", 0, "", ""},
		"public address":                 {[]string{"--allow", "1.1.1.1"}, "https://1.1.1.1/", 0, "", ""},
		"audit mode and a metadata IP":   {[]string{"--allow", "a.example.com", "--mode", "Audit"}, "169.254.169.254", 1, "address_not_allowed", ""},
		"audit mode and another host":    {[]string{"--allow", "a.example.com", "--mode", "Audit"}, "b.example.com", 0, "host_not_allowed", "would_deny"},
		"deny beats allow":               {append([]string{"--deny", "b.example.com"}, wild...), "b.example.com", 1, "host_denied", `--deny[0] "b.example.com"`},
		"deny only":                      {[]string{"--deny", "b.example.com"}, "a.example.com", 1, "host_not_allowed", ""},
		"comma-separated":                {[]string{"--allow", "a.example.com,b.example.com"}, "b.example.com", 0, "", "--allow[1]"},
		"repeated":                       {[]string{"--allow", "a.example.com", "--allow", "b.example.com"}, "b.example.com", 0, "", "--allow[1]"},
		"preset":                         {[]string{"--preset", "python"}, "https://pypi.org/simple/", 0, "", "--preset[0] python"},
		"http":                           {wild, "http://a.example.com", 0, "", "a.example.com:80"},
		"scheme in capitals":             {wild, "HTTPS://a.example.com", 0, "", ""},
		"WebSocket":                      {wild, "wss://a.example.com/socket?x=1#y", 0, "", "a.example.com:443"},
		"query instead of path":          {wild, "https://a.example.com?x=/@evil.net", 0, "", ""},
		"another scheme":                 {wild, "ftp://a.example.com/", 1, "bad_target", "ftp"},
		"no scheme but a path":           {wild, "a.example.com/x", 1, "bad_target", ""},
		"userinfo":                       {wild, "https://a.example.com@evil.net/", 1, "bad_target", ""},
		"userinfo that looks allowed":    {wild, "https://evil.net@a.example.com/", 1, "bad_target", ""},
		"backslash":                      {wild, `https://evil.net\@a.example.com/`, 1, "bad_target", ""},
		"octal address":                  {wild, "http://0177.0.0.1/", 1, "bad_target", ""},
		"decimal address":                {wild, "http://2130706433/", 1, "bad_target", ""},
		"hexadecimal address":            {wild, "http://0x7f000001/", 1, "bad_target", ""},
		"zone":                           {wild, "[fe80::1%eth0]", 1, "bad_target", ""},
		"port 0":                         {wild, "a.example.com:0", 1, "bad_target", ""},
		"port with a zero":               {wild, "a.example.com:0443", 1, "bad_target", ""},
		"empty host":                     {wild, "https:///x", 1, "bad_target", ""},
		"empty target":                   {wild, "", 1, "bad_target", ""},
		"NUL":                            {wild, "a.example.com\x00.evil.net", 1, "bad_target", ""},
		"method seen by nobody":          {append([]string{"--method", "POST"}, wild...), "https://a.example.com/", 0, "", "inside the TLS tunnel"},
		"authority on port 80":           {wild, "a.example.com:80", 0, "", ""},
		"path flag over the URL's":       {append([]string{"--path", "/v2"}, wild...), "http://a.example.com/v1", 0, "", "--path replaces"},
		"international name":             {[]string{"--allow", "bücher.example.com"}, "xn--bcher-kva.example.com", 0, "", ""},
		"fullwidth dots and letters":     {wild, "ａ．example．com", 0, "", "a.example.com:443"},
		"a Kelvin sign is no k, but one": {[]string{"--allow", "k.example.com"}, "\u212a.example.com", 0, "", "k.example.com:443"},
	} {
		t.Run(name, func(t *testing.T) {
			// The target comes last and may look like anything.
			args := append(append([]string{"check"}, tc.flags...), "--", tc.target)
			text := run(t, "", args...)
			text.want(t, tc.code, tc.text)
			if first := strings.SplitN(text.out, "\n", 2)[0]; strings.ContainsAny(first, "\x00\x1b") {
				t.Errorf("control characters reach the terminal: %q", first)
			}
			r := run(t, "", append([]string{"-o", "json"}, args...)...)
			r.want(t, tc.code)
			m := decodeJSON(t, r.out)
			reason, _ := m["reason"].(string)
			if reason != tc.reason || m["allowed"] != (tc.code == 0) {
				t.Errorf("json = %s", r.out)
			}
		})
	}
}

const manifestText = `
apiVersion: egress.sandbox.dev/v1alpha1
kind: SandboxEgress
metadata: {name: agents, namespace: team-a}
spec:
  presets: [npm]
  allowedHosts: [db.example.net:5432, "*.example.org"]
  deniedHosts: [telemetry.example.org]
  privateNetworks: [10.20.0.0/16]
  rules:
  - hosts: [api.example.com, 10.20.0.5]
    methods: [GET, HEAD]
    paths: ["/v1/*"]
    tls: Optional
`

func TestCheckAgainstAManifest(t *testing.T) {
	file := writeTemp(t, "policy.yaml", manifestText)
	for name, tc := range map[string]struct {
		args   []string
		code   int
		reason string
		rule   string
	}{
		"allowed host":            {[]string{"https://x.example.org/"}, 0, "", `allowedHosts[1] "*.example.org"`},
		"port of the entry":       {[]string{"db.example.net:5432"}, 0, "", "allowedHosts[0]"},
		"another port":            {[]string{"db.example.net"}, 1, "port_not_allowed", "allowedHosts[0]"},
		"denied host":             {[]string{"telemetry.example.org"}, 1, "host_denied", "deniedHosts[0]"},
		"preset":                  {[]string{"any.npmjs.org"}, 0, "", "presets[0] npm"},
		"rule":                    {[]string{"http://api.example.com/v1/items?q=../x"}, 0, "", "rules[0]"},
		"another path":            {[]string{"http://api.example.com/v2"}, 1, "path_not_allowed", "rules[0]"},
		"path that climbs out":    {[]string{"http://api.example.com/v1/%2e%2e/v2"}, 1, "path_not_allowed", "rules[0]"},
		"path flag":               {[]string{"api.example.com:80", "--path", "/v2"}, 1, "path_not_allowed", "rules[0]"},
		"another method":          {[]string{"http://api.example.com/v1/", "--method", "POST"}, 1, "method_not_allowed", "rules[0]"},
		"path in a tunnel":        {[]string{"https://api.example.com/v2"}, 0, "", "rules[0]"},
		"private network":         {[]string{"http://10.20.0.5/v1/x"}, 0, "", "rules[0]"},
		"unlisted host":           {[]string{"example.net"}, 1, "host_not_allowed", ""},
		"unlisted host, in Audit": {[]string{"example.net", "--mode", "Audit"}, 0, "host_not_allowed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, "", append([]string{"check", "-f", file, "-o", "json"}, tc.args...)...)
			r.want(t, tc.code)
			m := decodeJSON(t, r.out)
			reason, _ := m["reason"].(string)
			rule, _ := m["rule"].(string)
			if reason != tc.reason || !strings.Contains(rule, tc.rule) || m["policy"] != "team-a/agents" {
				t.Errorf("json = %s", r.out)
			}
		})
	}
	t.Run("from stdin", func(t *testing.T) {
		run(t, manifestText, "check", "-f", "-", "x.example.org").want(t, 0, "policy: team-a/agents")
	})
}

func TestCheckTakesTheModeOfTheManifest(t *testing.T) {
	file := writeTemp(t, "audit.yaml", strings.Replace(manifestText, "spec:", "spec:\n  mode: Audit", 1))
	run(t, "", "check", "-f", file, "example.net").want(t, 0, "would_deny example.net:443", "reason: host_not_allowed")
	run(t, "", "check", "-f", file, "--mode", "Enforce", "example.net").want(t, 1, "deny example.net:443")
}

func TestCheckRefusesAManifestItCannotTrust(t *testing.T) {
	for name, tc := range map[string]struct{ old, replacement, want string }{
		"unknown field":     {"allowedHosts:", "allowedHost:", "allowedHost"},
		"field twice":       {"  deniedHosts:", "  presets: []\n  deniedHosts:", "presets"},
		"another kind":      {"kind: SandboxEgress", "kind: NetworkPolicy", "NetworkPolicy"},
		"bad pattern":       {`"*.example.org"`, `"*.org"`, "spec.allowedHosts[1]"},
		"unknown preset":    {"[npm]", "[nmp]", "spec.presets[0]"},
		"metadata reopened": {"10.20.0.0/16", "169.254.0.0/16", "spec.privateNetworks[0]"},
		"no YAML":           {manifestText, "\t:", "--policy"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(manifestText, tc.old, tc.replacement, 1)
			if text == manifestText {
				t.Fatal("the test changes nothing")
			}
			run(t, text, "check", "-f", "-", "x.example.org").want(t, ExitError, "--policy", tc.want)
		})
	}
	run(t, strings.Repeat("#", maxInputBytes+1), "check", "-f", "-", "x.example.org").want(t, ExitError, "larger than")
}

// What check says must not depend on how a target is written, only on what it means.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{
		"https://a.example.com/", "example.com", "a.example.com:22", "127.1", "[::ffff:169.254.169.254]", "http://u@h/",
		"://", "http://", "http://a/../b?c#d", "HTTP://A.b:80", "a://b", `http:\\a`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTarget(s)
		if err != nil {
			return
		}
		if got.authority.Port == 0 || got.authority.Host.String() == "" || !strings.HasPrefix(got.path, "/") || strings.ContainsAny(got.path, "?#") {
			t.Fatalf("parseTarget(%q) = %+v", s, got)
		}
		again, err := parseTarget(got.authority.String())
		if err != nil || again.authority != got.authority {
			t.Fatalf("%q became %v, which became %v (%v)", s, got.authority, again.authority, err)
		}
	})
}
