package allowlist

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestPresetsAreThoseThatAreDocumented(t *testing.T) {
	want := []string{"alpine", "conda", "debian", "dockerhub", "ghcr", "github", "go", "huggingface", "jvm", "npm", "os-updates", "package-managers", "playwright", "python", "ruby", "rust", "ubuntu"}
	var got []string
	for _, p := range Presets() {
		got = append(got, p.Name)
		if again, ok := LookupPreset(p.Name); !ok || again.Name != p.Name {
			t.Errorf("LookupPreset(%q) = %v, %v", p.Name, again, ok)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, name := range []string{"", "NPM", "nmp", "../npm"} {
		if p, ok := LookupPreset(name); ok {
			t.Errorf("LookupPreset(%q) = %v", name, p)
		}
	}
}

func TestEveryPresetCompiles(t *testing.T) {
	for _, p := range Presets() {
		m, err := Compile(Spec{Presets: []string{p.Name}})
		if err != nil {
			t.Errorf("%s: %v", p.Name, err)
			continue
		}
		if len(m.Hosts()) == 0 {
			t.Errorf("%s allows nothing", p.Name)
		}
		if len(p.Hosts) > 0 && !slices.Equal(m.Hosts(), p.Hosts) {
			t.Errorf("%s: hosts are not sorted, unique and canonical: %q", p.Name, p.Hosts)
		}
		if !slices.IsSorted(p.Includes) || len(slices.Compact(slices.Clone(p.Includes))) != len(p.Includes) {
			t.Errorf("%s: includes are not sorted and unique: %q", p.Name, p.Includes)
		}
	}
}

// Stores that anyone can rent a name or a bucket in; what the public suffix list
// holds of them, patterns refuse by themselves.
var multiTenant = []string{
	"amazonaws.com", "googleapis.com", "windows.net", "azureedge.net", "azurefd.net", "cloudfront.net", "cloudflarestorage.com",
	"r2.dev", "workers.dev", "pages.dev", "digitaloceanspaces.com", "backblazeb2.com", "wasabisys.com", "fastly.net",
	"akamaized.net", "githubusercontent.com", "github.io", "gitlab.io", "vercel.app", "netlify.app", "herokuapp.com",
}

func TestNoPresetHasAWildcardOverMultiTenantStorage(t *testing.T) {
	for _, p := range Presets() {
		for _, h := range p.Hosts {
			pattern, err := ParsePattern(h)
			if err != nil {
				t.Errorf("%s: %v", p.Name, err)
				continue
			}
			name := pattern.Host().Name()
			for _, m := range multiTenant {
				if pattern.Wildcard() && (name == m || strings.HasSuffix(name, "."+m) || strings.HasSuffix(m, "."+name)) {
					t.Errorf("%s: %s covers names in %s", p.Name, h, m)
				}
			}
			// Buckets named in the path: the host alone says nothing about the owner.
			if slices.Contains([]string{"storage.googleapis.com", "s3.amazonaws.com", "storage.cloud.google.com"}, name) {
				t.Errorf("%s: %s is a store that everyone shares", p.Name, h)
			}
			if pattern.Host().IsIP() || pattern.Port() != 0 {
				t.Errorf("%s: %s is an address or has a port", p.Name, h)
			}
		}
	}
}

func TestPresetsCoverWhatTheirToolsContact(t *testing.T) {
	for preset, hosts := range map[string][]string{
		"npm":              {"any.npmjs.org", "any.yarnpkg.com", "nodejs.org"},
		"python":           {"pypi.org", "files.pythonhosted.org", "astral.sh"},
		"rust":             {"crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org"},
		"go":               {"any.golang.org", "vuln.go.dev", "dl.google.com"},
		"debian":           {"any.debian.org"},
		"ubuntu":           {"archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com", "de.archive.ubuntu.com", "us-east-1.ec2.archive.ubuntu.com"},
		"alpine":           {"dl-cdn.alpinelinux.org"},
		"github":           {"github.com", "api.github.com", "codeload.github.com", "raw.githubusercontent.com", "objects.githubusercontent.com", "release-assets.githubusercontent.com"},
		"dockerhub":        {"registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com"},
		"ghcr":             {"ghcr.io", "pkg-containers.githubusercontent.com"},
		"jvm":              {"repo.maven.apache.org", "repo1.maven.org", "plugins.gradle.org", "services.gradle.org"},
		"ruby":             {"rubygems.org", "index.rubygems.org"},
		"conda":            {"conda.anaconda.org", "repo.anaconda.com"},
		"huggingface":      {"huggingface.co", "cas-server.xethub.hf.co", "transfer.xethub.hf.co", "us.aws.cdn.hf.co", "cdn-lfs-us-1.hf.co"},
		"playwright":       {"cdn.playwright.dev"},
		"package-managers": {"any.npmjs.org", "pypi.org", "index.crates.io", "github.com"},
		"os-updates":       {"any.debian.org", "archive.ubuntu.com"},
	} {
		m := mustCompile(t, Spec{Presets: []string{preset}})
		for _, h := range hosts {
			for _, port := range []string{":443", ":80"} {
				if d := m.Decide(tunnel(t, h+port)); !d.Allowed || !strings.HasPrefix(d.Rule, "presets[0] "+preset) {
					t.Errorf("%s: %s%s: %+v", preset, h, port, d)
				}
			}
		}
		if d := m.Decide(tunnel(t, "evil.example.com:443")); d.Allowed {
			t.Errorf("%s: %+v", preset, d)
		}
	}
}

func TestAGroupIsUploadCapableWhenAMemberIs(t *testing.T) {
	for _, p := range Presets() {
		if len(p.Includes) == 0 {
			continue
		}
		members, reason := resolvePreset(p.Name)
		if reason != "" {
			t.Fatal(reason)
		}
		want := RiskReadOnly
		for _, m := range members {
			if m.Risk == RiskUploadCapable {
				want = RiskUploadCapable
			}
		}
		if p.Risk != want {
			t.Errorf("%s is %s, its members are %s", p.Name, p.Risk, want)
		}
	}
}

func TestPresetsCannotBeChangedByACaller(t *testing.T) {
	p, _ := LookupPreset("npm")
	p.Hosts[0] = "evil.example.com"
	Presets()[0].Hosts[0] = "evil.example.com"
	for _, p := range Presets() {
		if slices.Contains(p.Hosts, "evil.example.com") {
			t.Errorf("%s was changed", p.Name)
		}
	}
}

const goodPreset = "name: x\nversion: \"1\"\ndescription: d\nrisk: read-only\nriskReason: r\n"

func TestLoadPresetsRefusesBadFiles(t *testing.T) {
	for name, tc := range map[string]struct{ data, want string }{
		"unknown field":      {goodPreset + "hosts: [a.example.com]\nhots: []\n", `unknown field "hots"`},
		"duplicate field":    {goodPreset + "hosts: [a.example.com]\nname: x\n", "already set"},
		"other name":         {strings.Replace(goodPreset, "name: x", "name: z", 1) + "hosts: [a.example.com]\n", `name "z" is not the file's name`},
		"no version":         {strings.Replace(goodPreset, `"1"`, `""`, 1) + "hosts: [a.example.com]\n", "version, description and riskReason are required"},
		"no reason":          {strings.Replace(goodPreset, "riskReason: r", "riskReason: ''", 1) + "hosts: [a.example.com]\n", "are required"},
		"unknown risk":       {strings.Replace(goodPreset, "read-only", "low", 1) + "hosts: [a.example.com]\n", `risk "low" is neither`},
		"nothing":            {goodPreset, "either hosts or includes"},
		"hosts and includes": {goodPreset + "hosts: [a.example.com]\nincludes: [y]\n", "either hosts or includes"},
		"no YAML":            {"\t", "presets/x.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := loadPresets(fstest.MapFS{"presets/x.yaml": {Data: []byte(tc.data)}})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "presets/x.yaml") {
				t.Errorf("%v, %v, want %q in the error", got, err, tc.want)
			}
		})
	}
}

func TestGroupsThatIncludeThemselvesAreRefused(t *testing.T) {
	all := []Preset{{Name: "a", Includes: []string{"b"}}, {Name: "b", Includes: []string{"a"}}, {Name: "c", Includes: []string{"d"}}}
	if got, reason := resolve(all, "a", nil); got != nil || !strings.Contains(reason, "a -> b -> a") {
		t.Errorf("%v, %q", got, reason)
	}
	if got, reason := resolve(all, "c", nil); got != nil || !strings.Contains(reason, "no such preset") {
		t.Errorf("%v, %q", got, reason)
	}
}

func FuzzLoadPreset(f *testing.F) {
	f.Add([]byte(goodPreset + "hosts: [a.example.com]\n"))
	f.Add([]byte(goodPreset + "includes: [y]\nhots: 1\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := loadPresets(fstest.MapFS{"presets/x.yaml": {Data: data}})
		if err != nil {
			return
		}
		if len(got) != 1 || got[0].Name != "x" || got[0].Version == "" || (len(got[0].Hosts) == 0) == (len(got[0].Includes) == 0) {
			t.Fatalf("%q is accepted as %+v", data, got)
		}
	})
}
