package allowlist

import (
	"bufio"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"
)

var update = flag.Bool("update", false, "rewrite shared.txt from the rules of golang.org/x/net/publicsuffix")

// publicSuffixRules reads the list as the pinned module tests itself with.
func publicSuffixRules(t *testing.T) []string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/net").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "publicsuffix", "table_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var rules []string
	in := false
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case strings.HasPrefix(line, "var rules ="):
			in = true
		case in && line == "}":
			return rules
		case in:
			rules = append(rules, strings.Trim(line, `",`))
		}
	}
	t.Fatal("no list of rules in the module")
	return nil
}

func wantShared(rules []string) string {
	isRule := map[string]bool{}
	for _, r := range rules {
		isRule[r] = true
	}
	example := map[string]string{}
	for _, r := range rules {
		if strings.HasPrefix(r, "!") {
			continue
		}
		for p := r; ; {
			_, parent, ok := strings.Cut(p, ".")
			if !ok {
				break
			}
			p = parent
			if !strings.Contains(p, ".") || isRule[p] || "*."+p == r {
				continue
			}
			if old := example[p]; old == "" || len(r) < len(old) || len(r) == len(old) && r < old {
				example[p] = r
			}
		}
	}
	var lines []string
	for p, r := range example {
		lines = append(lines, p+" "+r)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestSharedParentsAreCurrent(t *testing.T) {
	want := wantShared(publicSuffixRules(t))
	if *update {
		if err := os.WriteFile("shared.txt", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if sharedText != want {
		t.Error("shared.txt is not what the pinned public suffix list gives: run go test ./internal/allowlist -run SharedParents -update")
	}
}

func TestNoWildcardCoversAPublicSuffix(t *testing.T) {
	for _, r := range publicSuffixRules(t) {
		base := strings.TrimPrefix(strings.TrimPrefix(r, "!"), "*.")
		if strings.HasPrefix(r, "!") {
			continue
		}
		for p := base; ; {
			if got, err := ParsePattern("*." + p); err == nil {
				t.Fatalf("*.%s is accepted as %s although %s is a public suffix", p, got, r)
			}
			_, parent, ok := strings.Cut(p, ".")
			if !ok {
				break
			}
			p = parent
		}
	}
}

func TestSharedParentsHoldPublicSuffixes(t *testing.T) {
	if len(sharedParents()) < 100 {
		t.Fatalf("only %d parents", len(sharedParents()))
	}
	for parent, suffix := range sharedParents() {
		name := strings.Replace(suffix, "*", "x", 1)
		if got, _ := publicsuffix.PublicSuffix(name); got != name || !strings.HasSuffix(name, "."+parent) {
			t.Errorf("%s: %s has public suffix %s", parent, name, got)
		}
	}
}
