package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	fenced  = regexp.MustCompile("(?s)```.*?```")
	dropped = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchors are what a Markdown renderer makes of the headings.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		out[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return out
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	for _, name := range []string{"getting-started.md", "concepts.md", "security-model.md", "operations.md", "cni.md"} {
		text, err := os.ReadFile(filepath.Join(root, "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := string(text)
			if file != "" {
				data, err := os.ReadFile(filepath.Join(root, "docs", file))
				if err != nil {
					t.Errorf("%s links to %s: %v", name, m[1], err)
					continue
				}
				target = string(data)
			}
			if anchor != "" && !anchors(target)[anchor] {
				t.Errorf("%s links to %s, which has no such heading", name, m[1])
			}
		}
	}
}
