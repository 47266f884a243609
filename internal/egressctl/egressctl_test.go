package egressctl

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type result struct {
	code     int
	out, err string
}

// run executes one command line in-process, in a directory of the test's own.
func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runAt(t, epoch, stdin, args...)
}

func runAt(t *testing.T, now time.Time, stdin string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	app := &App{Version: "v1.2.3", In: strings.NewReader(stdin), Out: &out, Err: &errOut, Now: func() time.Time { return now }}
	code := app.Execute(context.Background(), args)
	return result{code, out.String(), errOut.String()}
}

// ok runs a command that must succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, "", args...)
	if r.code != ExitOK {
		t.Fatalf("%v: exit %d\n%s%s", args, r.code, r.out, r.err)
	}
	return r.out
}

func (r result) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit %d, want %d", r.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("output lacks %q", text)
		}
	}
	if code == ExitError && (r.out != "" || !strings.HasPrefix(r.err, "error: ")) {
		t.Errorf("an error belongs on stderr alone")
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s", r.out, r.err)
	}
}

func decodeJSON(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	unmarshal(t, text, &m)
	return m
}

func unmarshal(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
}

func writeTemp(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsageErrorsExit2AndNameTheFlag(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"unknown command":            {[]string{"chek"}, `"chek"`},
		"unknown subcommand":         {[]string{"token", "mnt"}, `"mnt"`},
		"unknown flag":               {[]string{"check", "--alow", "x", "y"}, "--alow"},
		"unknown format":             {[]string{"version", "-o", "xml"}, "--output"},
		"argument where none is":     {[]string{"version", "x"}, `"x"`},
		"check without target":       {[]string{"check", "--allow", "a.example"}, "TARGET is missing"},
		"check with two targets":     {[]string{"check", "--allow", "a.example", "a", "b"}, "one TARGET"},
		"check without list":         {[]string{"check", "a.example"}, "--policy FILE"},
		"check, private net only":    {[]string{"check", "--private-network", "10.0.0.0/8", "10.1.1.1"}, "--policy FILE"},
		"check, both":                {[]string{"check", "-f", "x.yaml", "--allow", "a.example", "a.example"}, "--policy cannot be combined"},
		"check, no such file":        {[]string{"check", "-f", "/nonexistent/x.yaml", "a.example"}, "--policy"},
		"check, bad --allow":         {[]string{"check", "--allow", "a.example.com,*", "a.example"}, "--allow[1]"},
		"check, bad --deny":          {[]string{"check", "--allow", "a.example.com", "--deny", "a.*.com", "a.example"}, "--deny[0]"},
		"check, unknown --preset":    {[]string{"check", "--preset", "pyhton", "a.example"}, "--preset[0]"},
		"check, bad network":         {[]string{"check", "--allow", "a.example.com", "--private-network", "10.0.0.1", "a.example"}, "--private-network"},
		"check, metadata network":    {[]string{"check", "--allow", "a.example.com", "--private-network", "169.254.0.0/16", "a.example"}, "--private-network"},
		"check, bad mode":            {[]string{"check", "--allow", "a.example.com", "--mode", "audit", "a.example"}, "--mode"},
		"check, bad path":            {[]string{"check", "--allow", "a.example.com", "--path", "v1", "a.example"}, "--path"},
		"check, bad method":          {[]string{"check", "--allow", "a.example.com", "--method", "GET /", "a.example"}, "--method"},
		"check, empty method":        {[]string{"check", "--allow", "a.example.com", "--method", "", "a.example"}, "--method"},
		"mint without key":           {[]string{"token", "mint", "--container-id", "c"}, "--key is missing"},
		"mint without container":     {[]string{"token", "mint", "--key", "k"}, "--container-id is missing"},
		"mint, bad container":        {[]string{"token", "mint", "--key", "k", "--container-id", "a:b"}, "--container-id"},
		"mint, bad allow":            {[]string{"token", "mint", "--key", "k", "--container-id", "c", "--allow", "*.com"}, "--allow[0]"},
		"mint, bad policy":           {[]string{"token", "mint", "--key", "k", "--container-id", "c", "--egress-policy", "x"}, "--egress-policy"},
		"mint, bad ttl":              {[]string{"token", "mint", "--key", "k", "--container-id", "c", "--ttl", "-1h"}, "--ttl"},
		"mint, bad proxy":            {[]string{"token", "mint", "--key", "k", "--container-id", "c", "--proxy-url", "proxy"}, "--proxy-url"},
		"mint, no key file":          {[]string{"token", "mint", "--key", "/nonexistent/k", "--container-id", "c"}, "--key"},
		"mint, both bindings":        {[]string{"token", "mint", "--key", "k", "--container-id", "c", "--binding", "--no-binding"}, "no-binding"},
		"verify without jwks":        {[]string{"token", "verify", "x"}, "--jwks is missing"},
		"verify, no jwks file":       {[]string{"token", "verify", "--jwks", "/nonexistent/j", "x"}, "--jwks"},
		"verify, all from stdin":     {[]string{"token", "verify", "--jwks", "-"}, "--jwks"},
		"verify, two tokens":         {[]string{"token", "verify", "--jwks", "j", "a", "b"}, "want one token"},
		"inspect nothing":            {[]string{"token", "inspect"}, "no token given"},
		"inspect, argument and file": {[]string{"token", "inspect", "--file", "f", "x"}, "--file"},
		"inspect what is no token":   {[]string{"token", "inspect", "x"}, "three parts"},
		"preset that is not there":   {[]string{"presets", "show", "pyhton"}, `no preset "pyhton"`},
		"preset without name":        {[]string{"presets", "show"}, "preset name is missing"},
		"keygen without file":        {[]string{"keygen", "--key", ""}, "--key"},
		"keygen onto itself":         {[]string{"keygen", "--key", "x", "--jwks", "x"}, "the same file"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "", tc.args...).want(t, ExitError, tc.want)
		})
	}
}

func TestHelpExits0(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"token"}, {"presets"}, {"check", "--help"}} {
		run(t, "", args...).want(t, ExitOK, "Usage:")
	}
	app := &App{Name: "kubectl egress", In: strings.NewReader(""), Out: new(bytes.Buffer), Err: new(bytes.Buffer)}
	app.Execute(context.Background(), []string{"check", "--help"})
	if out := app.Out.(*bytes.Buffer).String(); !strings.Contains(out, "kubectl egress check TARGET") {
		t.Errorf("a plugin calls itself something else:\n%s", out)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	if m := decodeJSON(t, ok(t, "version", "-o", "json")); m["version"] != "v1.2.3" {
		t.Errorf("version = %v", m)
	}
	if out := ok(t, "version"); !strings.HasPrefix(out, "egressctl v1.2.3 (go") {
		t.Errorf("version = %s", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := ok(t, "completion", shell); !strings.Contains(out, "egressctl") {
			t.Errorf("completion %s:\n%s", shell, out)
		}
	}
	if out := ok(t, "__complete", "check", "--preset", "pyth"); !strings.Contains(out, "python\n") {
		t.Errorf("presets are not completed: %s", out)
	}
}

func TestYAMLOutputIsTheSameAsJSON(t *testing.T) {
	args := []string{"check", "--allow", "a.example.com", "a.example.com", "-o"}
	fromYAML, err := yaml.YAMLToJSON([]byte(ok(t, append(args, "yaml")...)))
	if err != nil {
		t.Fatal(err)
	}
	a, b := decodeJSON(t, string(fromYAML)), decodeJSON(t, ok(t, append(args, "json")...))
	if len(a) == 0 || !jsonEqual(t, a, b) {
		t.Errorf("yaml %v\njson %v", a, b)
	}
}

func jsonEqual(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

func TestPresets(t *testing.T) {
	var list []struct {
		Name, Risk, RiskReason, Description string
		AllHosts                            []string
	}
	if err := json.Unmarshal([]byte(ok(t, "presets", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) < 17 {
		t.Errorf("%d presets", len(list))
	}
	text := ok(t, "presets", "list")
	for _, p := range list {
		if p.Risk == "" || p.RiskReason == "" || p.Description == "" || len(p.AllHosts) == 0 {
			t.Errorf("%+v is incomplete", p)
		}
		if !strings.Contains(text, "\n"+p.Name+" ") {
			t.Errorf("%s is not in the table", p.Name)
		}
	}
	group := decodeJSON(t, ok(t, "presets", "show", "os-updates", "-o", "json"))
	if len(group["includes"].([]any)) != 2 || len(group["allHosts"].([]any)) < 3 {
		t.Errorf("a group without its members' hosts: %v", group)
	}
	run(t, "", "presets", "show", "rust").want(t, ExitOK, "risk: ", "  static.crates.io\n", "  index.crates.io\n")
}
