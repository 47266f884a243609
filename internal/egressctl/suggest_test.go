package egressctl

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// line is one record as the proxy writes it.
func line(change func(*audit.Record)) string {
	r := audit.Record{
		Time: epoch.Add(-time.Hour), Event: audit.Decision, ID: "1", Decision: audit.Deny, Reason: "host_not_allowed",
		Namespace: "team-a", Policy: "agents", ContainerID: "c1", Pod: "pod-1", Method: "CONNECT", Scheme: "tunnel", Host: "new.example.net", Port: 443,
	}
	change(&r)
	return string(r.AppendJSON(nil)) + "\n"
}

func same(*audit.Record) {}

type suggested struct {
	Policy           string
	Records, Skipped int
	AllowedHosts     []suggestion
	NotCovered       []uncovered
	Patch            []patchOp
}

func suggestJSON(t *testing.T, stdin string, args ...string) suggested {
	t.Helper()
	r := run(t, stdin, append([]string{"suggest", "-o", "json"}, args...)...)
	r.want(t, ExitOK)
	var s suggested
	unmarshal(t, r.out, &s)
	return s
}

func (s suggested) hosts() string {
	var hosts []string
	for _, h := range s.AllowedHosts {
		hosts = append(hosts, fmt.Sprintf("%s x%d", h.Host, h.Count))
	}
	return strings.Join(hosts, ", ")
}

func TestSuggestCountsRefusalsOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		records []string
		want    string
	}{
		"denied":     {[]string{line(same)}, "new.example.net x1"},
		"would deny": {[]string{line(func(r *audit.Record) { r.Decision = audit.WouldDeny })}, "new.example.net x1"},
		"allowed":    {[]string{line(func(r *audit.Record) { r.Decision, r.Reason = audit.Allow, "" })}, ""},
		"failed":     {[]string{line(func(r *audit.Record) { r.Decision, r.Reason = audit.Allow, "dns_failure" })}, ""},
		"close of a would_deny is the same request": {[]string{
			line(func(r *audit.Record) { r.Decision = audit.WouldDeny }),
			line(func(r *audit.Record) { r.Decision, r.Event = audit.WouldDeny, audit.Close }),
		}, "new.example.net x1"},
		"tunnel cut by an edit": {[]string{line(func(r *audit.Record) { r.Event = audit.Close })}, "new.example.net x1"},
		"both default ports in one entry": {[]string{
			line(same), line(func(r *audit.Record) { r.Port = 80 }),
		}, "new.example.net x2"},
		"another port of its own":    {[]string{line(func(r *audit.Record) { r.Port = 8080 })}, "new.example.net:8080 x1"},
		"port of a host that is on":  {[]string{line(func(r *audit.Record) { r.Port, r.Reason = 22, "port_not_allowed" })}, "new.example.net:22 x1"},
		"IPv4":                       {[]string{line(func(r *audit.Record) { r.Host = "1.1.1.1" })}, "1.1.1.1 x1"},
		"IPv6":                       {[]string{line(func(r *audit.Record) { r.Host, r.Port = "2606:4700::1111", 853 })}, "[2606:4700::1111]:853 x1"},
		"most wanted first":          {[]string{line(same), line(func(r *audit.Record) { r.Host = "b.example" }), line(func(r *audit.Record) { r.Host = "b.example" })}, "b.example x2, new.example.net x1"},
		"a prefix of kubectl logs":   {[]string{"[pod/p/egress-proxy] " + line(same)}, "new.example.net x1"},
		"a record without a newline": {[]string{strings.TrimSpace(line(same))}, "new.example.net x1"},
		"host that is none":          {[]string{line(func(r *audit.Record) { r.Host = "a b" })}, ""},
		"no host":                    {[]string{line(func(r *audit.Record) { r.Host = "" })}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := suggestJSON(t, strings.Join(tc.records, "")).hosts(); got != tc.want {
				t.Errorf("hosts = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSuggestSaysWhatAllowedHostsCannotCover(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*audit.Record)
		want   string
	}{
		"denied host":     {func(r *audit.Record) { r.Reason = "host_denied" }, "deniedHosts"},
		"path":            {func(r *audit.Record) { r.Reason = "path_not_allowed" }, "paths"},
		"method":          {func(r *audit.Record) { r.Reason = "method_not_allowed" }, "methods"},
		"address":         {func(r *audit.Record) { r.Reason = "address_not_allowed" }, "privateNetworks"},
		"metadata":        {func(r *audit.Record) { r.Host = "169.254.169.254" }, "may not be dialled"},
		"token":           {func(r *audit.Record) { r.Reason = "token_expired" }, "no part"},
		"narrowed pod":    {func(r *audit.Record) { r.Rule = "annotation egress.sandbox.dev/allowed-hosts" }, "annotation"},
		"the token's own": {func(r *audit.Record) { r.Rule = `allowed_hosts: allowedHosts[0] "x.example"` }, "mint another"},
		"not a host":      {func(r *audit.Record) { r.Host = "*.example.com" }, "no valid destination"},
	} {
		t.Run(name, func(t *testing.T) {
			s := suggestJSON(t, line(tc.change))
			if len(s.AllowedHosts) != 0 || len(s.Patch) != 0 || len(s.NotCovered) != 1 || !strings.Contains(s.NotCovered[0].Remedy, tc.want) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestSuggestKnowsTheManifest(t *testing.T) {
	file := writeTemp(t, "policy.yaml", manifestText)
	records := line(same) +
		line(func(r *audit.Record) { r.Host = "x.example.org" }) + // allowed since
		line(func(r *audit.Record) { r.Host = "db.example.net" }) + // allowed on 5432 only
		line(func(r *audit.Record) { r.Host = "telemetry.example.org"; r.Port = 8443 }) + // denied on all ports
		line(func(r *audit.Record) { r.Policy = "other" })
	s := suggestJSON(t, records, "-f", file)
	if s.Policy != "team-a/agents" || s.Records != 4 {
		t.Errorf("policy %q, %d records", s.Policy, s.Records)
	}
	if got, want := s.hosts(), "db.example.net x1, new.example.net x1"; got != want {
		t.Errorf("hosts = %q, want %q", got, want)
	}
	if len(s.NotCovered) != 1 || s.NotCovered[0].Reason != "host_denied" {
		t.Errorf("not covered: %+v", s.NotCovered)
	}
	if len(s.Patch) != 2 || s.Patch[0] != (patchOp{"add", "/spec/allowedHosts/-", "db.example.net"}) {
		t.Errorf("patch = %+v", s.Patch)
	}
	empty := writeTemp(t, "empty.yaml", "apiVersion: egress.sandbox.dev/v1alpha1\nkind: SandboxEgress\nmetadata: {name: agents, namespace: team-a}\nspec: {}\n")
	s = suggestJSON(t, line(same), "-f", empty)
	if len(s.Patch) != 1 || s.Patch[0].Path != "/spec/allowedHosts" || fmt.Sprint(s.Patch[0].Value) != "[new.example.net]" {
		t.Errorf("patch of a policy without allowedHosts = %+v", s.Patch)
	}
}

func TestSuggestTextIsAPatchWithComments(t *testing.T) {
	file := writeTemp(t, "policy.yaml", manifestText)
	records := "starting\n" + line(same) + line(func(r *audit.Record) { r.Time, r.Pod, r.Port = epoch, "pod-2", 80 }) +
		line(func(r *audit.Record) { r.Reason = "host_denied"; r.Host = "telemetry.example.org" })
	want := `# From 3 audit records (1 other line skipped). Review every line: a sandbox decides what it asks for.
# kubectl patch sandboxegress -n team-a agents --type=json --patch-file FILE
# new.example.net: 2 times, ports 80, 443, 2026-03-01T11:00:00Z to 2026-03-01T12:00:00Z, by pod-1, pod-2
# not covered: telemetry.example.org:443, 1 time, host_denied: spec.deniedHosts beats every allowed host; take the entry out if it is wrong
- op: add
  path: /spec/allowedHosts/-
  value: new.example.net
`
	r := run(t, records, "suggest", "-f", file)
	if r.want(t, ExitOK); r.out != want {
		t.Errorf("got\n%s\nwant\n%s", r.out, want)
	}
	r = run(t, "", "suggest")
	if r.want(t, ExitOK); r.out != "# From 0 audit records. Review every line: a sandbox decides what it asks for.\n[]\n" {
		t.Errorf("nothing in, %q out", r.out)
	}
	run(t, line(same), "suggest").want(t, ExitOK, "spec.allowedHosts, which must exist")
}

func TestSuggestFilters(t *testing.T) {
	records := line(same) +
		line(func(r *audit.Record) { r.Pod, r.ContainerID, r.Host = "pod-2", "c2", "two.example" }) +
		line(func(r *audit.Record) { r.Time, r.Host = epoch.Add(-48*time.Hour), "old.example" })
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"pod":       {[]string{"--pod", "pod-2"}, "two.example x1"},
		"container": {[]string{"--container-id", "c2,c3"}, "two.example x1"},
		"since":     {[]string{"--since", "24h"}, "new.example.net x1, two.example x1"},
		"policy":    {[]string{"--for", "team-b/agents"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := suggestJSON(t, records, tc.args...).hosts(); got != tc.want {
				t.Errorf("hosts = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSuggestReadsFiles(t *testing.T) {
	a, b := writeTemp(t, "a", line(same)), writeTemp(t, "b", line(func(r *audit.Record) { r.Host = "b.example" }))
	if got := suggestJSON(t, line(func(r *audit.Record) { r.Host = "c.example" }), a, b, "-").hosts(); got != "b.example x1, c.example x1, new.example.net x1" {
		t.Errorf("hosts = %q", got)
	}
}

func TestSuggestErrors(t *testing.T) {
	two := line(same) + line(func(r *audit.Record) { r.Policy = "other" })
	run(t, two, "suggest").want(t, ExitError, "--for", "team-a/agents, team-a/other")
	run(t, "", "suggest", "/nonexistent/log").want(t, ExitError, "/nonexistent/log")
	run(t, "", "suggest", "-f", "-").want(t, ExitError, "--policy")
	run(t, "", "suggest", "-f", "/nonexistent/p").want(t, ExitError, "--policy")
	run(t, "", "suggest", "-f", writeTemp(t, "p", "kind: x")).want(t, ExitError, "--policy")
	run(t, "", "suggest", "--since", "-1h").want(t, ExitError, "--since")
	run(t, "", "suggest", os.TempDir()).want(t, ExitError, os.TempDir())

	var many strings.Builder
	for i := range maxDestinations + 1 {
		many.WriteString(line(func(r *audit.Record) { r.Host = fmt.Sprintf("h%d.example", i) }))
	}
	run(t, many.String(), "suggest").want(t, ExitError, "more than 10000 destinations")
}

func TestSuggestNamesAFewSandboxesOnly(t *testing.T) {
	var records strings.Builder
	for i := range 9 {
		records.WriteString(line(func(r *audit.Record) { r.Pod = fmt.Sprintf("pod-%d", i) }))
	}
	records.WriteString(line(func(r *audit.Record) { r.Pod = "evil\x1b[31m" }))
	s := suggestJSON(t, records.String())
	if got := len(s.AllowedHosts[0].Sandboxes); got != maxSandboxes+1 {
		t.Errorf("%d names", got)
	}
	if out := run(t, line(func(r *audit.Record) { r.Pod = "evil\x1b[31m" }), "suggest").out; strings.Contains(out, "\x1b") {
		t.Errorf("a record drives the terminal: %q", out)
	}
}

func TestReadRecordsSkipsWhatIsNoRecord(t *testing.T) {
	long := `{"time":"2026-03-01T12:00:00Z","event":"decision","decision":"deny","host":"` + strings.Repeat("a", 2*maxLineBytes) + "\"}\n"
	for name, in := range map[string]string{
		"text": "hello\n", "JSON of another kind": `{"level":"info","time":"2026-03-01T12:00:00Z"}` + "\n",
		"unknown decision": `{"time":"2026-03-01T12:00:00Z","event":"decision","decision":"maybe"}` + "\n",
		"bad address":      `{"time":"2026-03-01T12:00:00Z","event":"decision","decision":"deny","client_ip":"x"}` + "\n",
		"half a record":    line(same)[:40] + "\n", "too long": long,
	} {
		t.Run(name, func(t *testing.T) {
			got := 0
			skipped, err := readRecords(strings.NewReader(in+line(same)+"\n\n"), func(_ []byte, r audit.Record) {
				if r.Host != "new.example.net" {
					t.Errorf("record = %+v", r)
				}
				got++
			})
			if err != nil || skipped != 1 || got != 1 {
				t.Errorf("%d records, %d skipped, %v", got, skipped, err)
			}
		})
	}
}

func FuzzReadRecords(f *testing.F) {
	for _, seed := range []string{line(same), "{}", "x{", "[pod/a] " + line(same), `{"time":"2026-03-01T12:00:00Z","event":"close","decision":"deny","host":"::1","port":65536}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := newDestinations(suggestOptions{}, epoch)
		if _, err := readRecords(strings.NewReader(text), func(_ []byte, r audit.Record) { d.add(r) }); err != nil {
			t.Fatal(err)
		}
		res, err := d.suggest(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range res.AllowedHosts {
			if strings.ContainsAny(s.Host, "* ,\n") {
				t.Fatalf("suggested %q", s.Host)
			}
		}
	})
}
