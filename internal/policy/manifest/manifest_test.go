package manifest_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

const head = "apiVersion: egress.sandbox.dev/v1alpha1\nkind: SandboxEgress\nmetadata: {name: agents, namespace: team-a, generation: 4}\n"

const full = head + `spec:
  mode: Audit
  allowedHosts: [example.com, "*.example.org", "db.example.net:5432"]
  deniedHosts: [bad.example.org]
  rules:
  - {hosts: [api.example.com], ports: [8443], methods: [GET], paths: ["/v1/*"], tls: Optional}
  privateNetworks: ["10.20.0.0/16"]
  limits: {connections: 5, requestsPerSecond: 6, bytesPerSecond: 7}
  proxy: {upstream: {url: "http://corp-proxy:3128/"}}
`

func request(t *testing.T, authority string) allowlist.Request {
	t.Helper()
	a, err := hostname.ParseAuthority(authority)
	if err != nil {
		t.Fatal(err)
	}
	return allowlist.Request{Authority: a}
}

func TestManifestBecomesThePolicy(t *testing.T) {
	obj, err := manifest.Decode([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	p, err := manifest.Compile(obj)
	if err != nil {
		t.Fatal(err)
	}
	if p.Ref != "team-a/agents" || p.Generation != 4 || p.Mode != policy.Audit || p.TokenHosts {
		t.Errorf("%+v", p)
	}
	if want := (policy.Limits{Connections: 5, RequestsPerSecond: 6, BytesPerSecond: 7}); p.Limits != want {
		t.Errorf("limits %+v", p.Limits)
	}
	if p.Upstream == nil || p.Upstream.Authority.String() != "corp-proxy:3128" {
		t.Errorf("upstream %+v", p.Upstream)
	}
	if p.Guard.Check(netip.MustParseAddr("10.20.1.1")) != nil || p.Guard.Check(netip.MustParseAddr("10.21.1.1")) == nil {
		t.Error("privateNetworks did not become the guard")
	}
	for authority, want := range map[string]bool{
		"example.com:443": true, "a.example.org:80": true, "db.example.net:5432": true, "api.example.com:8443": true,
		"bad.example.org:443": false, "db.example.net:443": false, "evil.example:443": false,
	} {
		if got := p.Matcher.Decide(request(t, authority)).Allowed; got != want {
			t.Errorf("%s: %v", authority, got)
		}
	}
	if p.Matcher.Decide(request(t, "api.example.com:8443")).TLS != allowlist.TLSOptional {
		t.Error("tls: Optional was lost")
	}
}

func TestDocumentMarkersAroundOneManifestAreFine(t *testing.T) {
	if _, err := manifest.Decode([]byte("---\n# a policy\n---\n" + head + "spec: {}\n---\n")); err != nil {
		t.Error(err)
	}
}

func TestEmptySpecAllowsNothingAndHasTheDefaultLimits(t *testing.T) {
	obj, err := manifest.Decode([]byte(head + "spec: {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := manifest.Compile(obj)
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode != policy.Enforce || p.Limits.Connections != 256 || p.Limits.RequestsPerSecond != 200 || p.Limits.BytesPerSecond != 0 {
		t.Errorf("%+v", p)
	}
	if p.Matcher.Decide(request(t, "example.com:443")).Allowed {
		t.Error("an empty spec allows example.com")
	}
}

func TestZeroMeansNoLimit(t *testing.T) {
	obj, err := manifest.Decode([]byte(head + "spec: {limits: {connections: 0, requestsPerSecond: 0}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := manifest.Compile(obj)
	if err != nil || p.Limits != (policy.Limits{}) {
		t.Errorf("%+v %v", p, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"an unknown field":  {head + "spec: {allowHosts: [example.com]}\n", "allowHosts"},
		"a duplicate field": {head + "spec: {mode: Enforce, mode: Audit}\n", "mode"},
		"another kind":      {strings.Replace(head, "SandboxEgress", "Pod", 1), `"Pod"`},
		"another version":   {strings.Replace(head, "v1alpha1", "v9", 1), "v9"},
		"no name":           {strings.Replace(head, "name: agents, ", "", 1), "metadata.name"},
		"two documents":     {head + "spec: {}\n---\n" + head, "more than one"},
		"something else":    {"just text", ""},
		"only a comment":    {"# nothing\n", "empty"},
		"nothing":           {"", "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			if obj, err := manifest.Decode([]byte(tc.in)); err == nil {
				t.Errorf("accepted as %+v", obj)
			} else if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v does not name %s", err, tc.want)
			}
		})
	}
}

func TestCompileNamesEveryWrongField(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string
		want []string
	}{
		"host pattern":    {"{allowedHosts: [ok.example, 'http://x/']}", []string{"spec.allowedHosts[1]"}},
		"denied pattern":  {"{deniedHosts: ['*']}", []string{"spec.deniedHosts[0]"}},
		"preset":          {"{presets: [nosuch]}", []string{"spec.presets[0]"}},
		"rule's host":     {"{rules: [{hosts: ['a b']}]}", []string{"spec.rules[0].hosts[0]"}},
		"rule's port":     {"{rules: [{hosts: [a.example], ports: [70000]}]}", []string{"spec.rules[0].ports[0]"}},
		"rule's tls":      {"{rules: [{hosts: [a.example], tls: Maybe}]}", []string{"spec.rules[0].tls"}},
		"mode":            {"{mode: Off}", []string{"spec.mode"}},
		"private network": {"{privateNetworks: ['10.0.0.0/8', x]}", []string{"spec.privateNetworks[1]"}},
		"loopback":        {"{privateNetworks: ['127.0.0.0/8']}", []string{"spec.privateNetworks[0]"}},
		"upstream":        {"{proxy: {upstream: {url: 'http://u:p@x:1'}}}", []string{"spec.proxy.upstream.url"}},
		"negative limit":  {"{limits: {bytesPerSecond: -1}}", []string{"spec.limits.bytesPerSecond"}},
		"several at once": {"{mode: Off, privateNetworks: [x], limits: {connections: -1}}", []string{"spec.mode", "spec.privateNetworks[0]", "spec.limits.connections"}},
	} {
		t.Run(name, func(t *testing.T) {
			obj, err := manifest.Decode([]byte(head + "spec: " + tc.spec + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			p, err := manifest.Compile(obj)
			if err == nil {
				t.Fatalf("accepted as %+v", p)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not name %s", err, want)
				}
			}
		})
	}
}

func TestCompileErrorsCanBeTakenApart(t *testing.T) {
	obj, err := manifest.Decode([]byte(head + "spec: {allowedHosts: ['a b'], privateNetworks: [x]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = manifest.Compile(obj)
	var hosts allowlist.FieldErrors
	if !errors.As(err, &hosts) || len(hosts) != 1 || hosts[0].Field != "spec.allowedHosts[0]" {
		t.Errorf("host errors: %v", hosts)
	}
	var other *manifest.FieldError
	if !errors.As(err, &other) || other.Field != "spec.privateNetworks[0]" {
		t.Errorf("field error: %v", other)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(head + "spec: {}\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		obj, err := manifest.Decode(in)
		if err != nil {
			return
		}
		p, err := manifest.Compile(obj)
		if (p == nil) == (err == nil) {
			t.Fatalf("policy %v with error %v", p, err)
		}
	})
}
