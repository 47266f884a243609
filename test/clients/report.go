package main

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/test/clients/origin"
)

var (
	schemes = [2]string{"http", "https"}
	hosts   = [2]string{allowedHost, deniedHost}
)

// The attempts of a result: allowed http, allowed https, denied http, denied https.
const (
	allowedHTTP = iota
	allowedHTTPS
	deniedHTTP
	deniedHTTPS
)

type result struct {
	client   client
	version  string
	attempts [4]attempt
}

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+)*[A-Za-z0-9.+~-]*`)

func firstVersion(output string) string {
	return cmp.Or(versionNumber.FindString(output), "?")
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

func slug(name string) string {
	return strings.Trim(notSlug.ReplaceAllString(strings.ToLower(name), "-"), "-")
}

// redacted is the output without the token, which is as long as a page.
func (a attempt) redacted() string {
	return strings.ReplaceAll(a.output, a.password, "jwt_…")
}

func (a attempt) decided(decision, reason string) bool {
	return slices.ContainsFunc(a.records, func(r record) bool { return r.Decision == decision && r.Reason == reason })
}

// allowedProblem says why a visit to the allowed host does not count; "" when it does.
func (a attempt) allowedProblem(overTLS bool) string {
	arrived := slices.ContainsFunc(a.seen, func(s origin.Seen) bool { return s.TLS == overTLS })
	switch {
	case a.timedOut:
		return "timed out"
	case a.exit != nil:
		return fmt.Sprintf("%v: %s", a.exit, a.message())
	case !a.fetched:
		return "it did not get the page: " + a.message()
	case !arrived:
		return "the origin saw no such request"
	case !a.decided("allow", ""):
		return "the audit log has no allow"
	}
	for _, s := range a.seen {
		if from, _, _ := net.SplitHostPort(s.From); from != uplinkIP {
			return "a request came past the proxy, from " + s.From
		}
	}
	return ""
}

// deniedProblem says why a visit to the denied host does not count; "" when it does.
func (a attempt) deniedProblem() string {
	switch {
	case a.timedOut:
		return "timed out"
	case a.fetched:
		return "it got the page"
	case len(a.seen) > 0:
		return fmt.Sprintf("the origin saw %+v", a.seen[0])
	case !a.decided("deny", "host_not_allowed"):
		return "the audit log has no host_not_allowed"
	case a.message() == "":
		return "it showed nothing"
	}
	return ""
}

func (r result) problems() []string {
	var out []string
	if r.client.broken != "" {
		if r.attempts[allowedHTTPS].allowedProblem(true) == "" {
			return []string{"https works now: it is no longer broken"}
		}
		if problem := r.attempts[allowedHTTP].allowedProblem(false); problem != "" {
			return []string{allowedHost + " over http: " + problem}
		}
		return nil
	}
	for i, a := range r.attempts {
		if !a.ran {
			continue
		}
		problem := a.deniedProblem()
		if i < deniedHTTP {
			problem = a.allowedProblem(i == allowedHTTPS)
		}
		if problem != "" {
			out = append(out, hosts[i/2]+" over "+schemes[i%2]+": "+problem)
		}
	}
	return out
}

// telling are the words that make a line of output the one that a person would look at,
// best first.
var telling = []string{"host_not_allowed", "403", "forbidden", "proxy", "tunnel", "denied", "error", "fail", "exception"}

// message is the line of the output that says most about the refusal.
func (a attempt) message() string {
	best, rank := "", len(telling)+1
	for line := range strings.Lines(a.redacted()) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		low := strings.ReplaceAll(strings.ToLower(line), deniedHost, "") // "denied" is no news in it
		at := slices.IndexFunc(telling, func(word string) bool { return strings.Contains(low, word) })
		if at < 0 {
			at = len(telling)
		}
		if at < rank {
			best, rank = line, at
		}
	}
	best = ansi.ReplaceAllString(best, "")
	if rank < len(telling) {
		best = around(best, telling[rank])
	}
	return clip(best, messageLimit)
}

const messageLimit = 200

// around drops the beginning of a long line when the word would be cut off.
func around(line, word string) string {
	at := strings.Index(strings.ToLower(line), word)
	if at < 0 || at+len(word) <= messageLimit || len(line) <= messageLimit {
		return line
	}
	from := max(0, len(line)-messageLimit)
	from = min(from, at)
	return "…" + strings.ToValidUTF8(line[from:], "")
}

var ansi = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

func clip(s string, limit int) string {
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}

// grade is how much of the refusal a person gets to see.
func (a attempt) grade() string {
	out := strings.ToLower(a.redacted())
	switch {
	case !a.ran:
		return "n/a"
	case strings.Contains(out, "host_not_allowed"):
		return "reason"
	case strings.Contains(out, "403"), strings.Contains(out, "forbidden"):
		return "403"
	}
	return "no reason"
}

func (r result) notes() []string {
	var notes []string
	overTLS, plain := r.attempts[allowedHTTPS], r.attempts[allowedHTTP]
	if overTLS.decided("deny", "auth_required") {
		notes = append(notes, "sends credentials only after a 407")
	}
	if slices.ContainsFunc(plain.records, func(x record) bool { return x.Method == http.MethodConnect }) {
		notes = append(notes, "CONNECT to port 80 for http")
	}
	for _, a := range r.attempts {
		if slices.ContainsFunc(a.seen, func(s origin.Seen) bool { return s.ProxyAuthorization }) {
			notes = append(notes, "sends `Proxy-Authorization` through the tunnel to the origin")
			break
		}
	}
	for _, a := range r.attempts {
		if a.ran && strings.Contains(a.output, a.password) {
			notes = append(notes, "prints the token in an error")
			break
		}
	}
	// Some programs ask for hosts of their own besides, such as a browser for its updates.
	tries := 0
	for _, x := range r.attempts[deniedHTTPS].records {
		if x.Host == deniedHost && x.Reason == "host_not_allowed" {
			tries++
		}
	}
	if took := r.attempts[deniedHTTPS].took; tries > 1 {
		notes = append(notes, fmt.Sprintf("tries a refused CONNECT %d times (%d s)", tries, int(took.Seconds())))
	}
	return notes
}

func (r result) line() string {
	state := "ok  "
	if len(r.problems()) > 0 {
		state = "FAIL"
	}
	line := fmt.Sprintf("%s %-24s %-18s", state, r.client.name, r.version)
	for i, a := range r.attempts {
		line += fmt.Sprintf(" %s/%s %.1fs", strings.TrimSuffix(hosts[i/2], ".example"), schemes[i%2], a.took.Seconds())
	}
	return line + "  " + r.attempts[deniedHTTPS].grade() + "  " + strings.Join(append(r.problems(), r.notes()...), "; ")
}

func mark(problem string, ran bool) string {
	switch {
	case !ran:
		return "n/a"
	case problem == "":
		return "yes"
	}
	return "**no**: " + cell(problem)
}

func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", "\n", " ").Replace(s)
}

// document is docs/clients.md.
func document(results []result) string {
	var b strings.Builder
	passed := 0
	grades := map[string]int{}
	working, broken := split(results)
	for _, r := range working {
		if len(r.problems()) == 0 {
			passed++
		}
		grades[r.attempts[deniedHTTPS].grade()]++
	}
	fmt.Fprintf(&b, `# Clients

Generated by `+"`go run ./test/clients`"+`; do not edit. %d of %d real clients work as they should: each one
reached an allowed host over http and https, and failed on a host that is not allowed, with
`+"`host_not_allowed`"+` in the audit log and nothing at the origin.

How it was tried: the egress-proxy binary as it ships, with a bound token per visit, between two
network namespaces on documentation addresses. The client's namespace has a route to the proxy
only and no DNS, as a sandbox under `+"`dns: None`"+`. The environment is the one that admission injects
under `+"`delivery: Env`"+` (it is taken from the injector). "Needs" says what a client takes beyond that, and
what is left of it under `+"`delivery: Relay`"+`, where the proxy URL has no credentials. Machine: %s.

| client | version | http | https | denied: http | denied: https | needs | notes |
| --- | --- | --- | --- | --- | --- | --- | --- |
`, passed, len(working), machine())
	for _, r := range working {
		a := r.attempts
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", r.client.name, cell(r.version),
			mark(a[allowedHTTP].allowedProblem(false), a[allowedHTTP].ran), mark(a[allowedHTTPS].allowedProblem(true), a[allowedHTTPS].ran),
			denied(a[deniedHTTP]), denied(a[deniedHTTPS]), cell(r.client.needs), cell(strings.Join(r.notes(), "; ")))
	}
	fmt.Fprintf(&b, `
"Denied" tells what the person sees: **reason**, the word `+"`host_not_allowed`"+` itself; **403**, the status alone;
**no reason**, only that the proxy or the connection failed. Over https the refusal answers a
CONNECT, whose body next to no client shows; so the proxy puts the reason into the status phrase too.
%d of %d clients show the reason, %d the status alone, and %d neither: there the audit log and the
pod's Events tell.

## What a refusal looks like

| client | http | https |
| --- | --- | --- |
`, grades["reason"], len(working), grades["403"], grades["no reason"])
	for _, r := range working {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.client.name, quoted(r.attempts[deniedHTTP]), quoted(r.attempts[deniedHTTPS]))
	}
	if len(broken) > 0 {
		b.WriteString("\n## What does not work\n\nTried in the same way, over https; over http these clients work.\n\n| client | version | why |\n| --- | --- | --- |\n")
	}
	for _, r := range broken {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.client.name, cell(r.version), cell(r.client.broken))
	}
	return b.String()
}

func split(results []result) (working, broken []result) {
	for _, r := range results {
		if r.client.broken == "" {
			working = append(working, r)
		} else {
			broken = append(broken, r)
		}
	}
	return working, broken
}

func denied(a attempt) string {
	if problem := a.deniedProblem(); a.ran && problem != "" {
		return "**no**: " + cell(problem)
	}
	return a.grade()
}

func quoted(a attempt) string {
	if !a.ran {
		return "n/a"
	}
	return "`" + strings.ReplaceAll(cell(a.message()), "`", "'") + "`"
}

func machine() string {
	kernel := "unknown kernel"
	if out, err := exec.Command("uname", "-sr").Output(); err == nil {
		kernel = strings.TrimSpace(string(out))
	}
	return fmt.Sprintf("%s, %s, %d processors", kernel, runtime.GOARCH, runtime.NumCPU())
}
