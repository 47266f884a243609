package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheChartPassesStrictLint(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", chartDir, "--namespace", namespace); err != nil {
		t.Fatal(err, out)
	}
}

// TestRenderedManifestsMatchTheGoldenFiles renders every testdata/<case>.values.yaml.
func TestRenderedManifestsMatchTheGoldenFiles(t *testing.T) {
	for _, values := range valuesFiles(t) {
		name := strings.TrimSuffix(filepath.Base(values), ".values.yaml")
		t.Run(name, func(t *testing.T) {
			got := mustTemplate(t, "--values", values)
			objects := parse(t, name, got)
			if len(objects) == 0 {
				t.Fatal("nothing was rendered")
			}
			byKey(t, objects)
			got = withoutCopies(got)
			golden := "testdata/" + name + ".golden.yaml"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v: run go test ./test/chart -update and review the difference", err)
			}
			if diff := difference(string(want), got); diff != "" {
				t.Errorf("rendering of %s is not %s; if that is meant, run go test ./test/chart -update\n%s", values, golden, diff)
			}
		})
	}
}

func valuesFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*.values.yaml: %v", err)
	}
	return files
}

// withoutCopies leaves out what is rendered from files/: other tests look at it, and a copy
// in each golden file would hide what differs between the cases.
func withoutCopies(rendered string) string {
	var kept []string
	for _, doc := range strings.Split(rendered, "\n---\n") {
		copied := false
		for _, template := range []string{"crds", "rbac", "webhooks", "admission-policies", "dashboard"} {
			copied = copied || strings.Contains(doc, "# Source: sandbox-egress/templates/"+template+".yaml\n")
		}
		if !copied {
			kept = append(kept, doc)
		}
	}
	return strings.Join(kept, "\n---\n")
}

// difference shows where two texts part: "" when they are equal.
func difference(want, got string) string {
	if want == got {
		return ""
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	excerpt := func(lines []string) string {
		from, to := max(i-4, 0), min(i+4, len(lines))
		return strings.Join(lines[min(from, to):to], "\n")
	}
	return fmt.Sprintf("first difference in line %d\nwant:\n%s\ngot:\n%s", i+1, excerpt(w), excerpt(g))
}
