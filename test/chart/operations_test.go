package chart

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// stringConstants returns the values of string constants in file whose name starts with
// prefix.
func stringConstants(t *testing.T, file, prefix string) []string {
	t.Helper()
	var values []string
	ast.Inspect(parseGo(t, file), func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if !strings.HasPrefix(name.Name, prefix) || i >= len(spec.Values) {
				continue
			}
			if lit, ok := spec.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				values = append(values, unquote(t, lit))
			}
		}
		return true
	})
	return nonEmpty(t, file, values)
}

// returnedStrings returns the string literals that function fn returns.
func returnedStrings(t *testing.T, file, fn string) []string {
	t.Helper()
	var values []string
	for _, d := range parseGo(t, file).Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != fn {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if r, ok := n.(*ast.ReturnStmt); ok && len(r.Results) == 1 {
				if lit, ok := r.Results[0].(*ast.BasicLit); ok {
					values = append(values, unquote(t, lit))
				}
			}
			return true
		})
	}
	return nonEmpty(t, file, values)
}

func parseGo(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func unquote(t *testing.T, lit *ast.BasicLit) string {
	t.Helper()
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nonEmpty(t *testing.T, file string, values []string) []string {
	t.Helper()
	out := values[:0]
	for _, v := range values {
		if v != "" {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s: nothing was found; has it moved?", file)
	}
	return out
}

func operations(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestOperationsExplainsEveryReasonOnTheWire(t *testing.T) {
	text := operations(t)
	var reasons []string
	reasons = append(reasons, stringConstants(t, "internal/proxy/reason.go", "Reason")...)
	reasons = append(reasons, stringConstants(t, "internal/allowlist/decide.go", "Reason")...)
	reasons = append(reasons, returnedStrings(t, "internal/token/errors.go", "Reason")...)
	for _, r := range reasons {
		if !strings.Contains(text, "`"+r+"`") {
			t.Errorf("docs/operations.md does not explain the reason %q", r)
		}
	}
}

func TestOperationsExplainsEveryReasonOfACondition(t *testing.T) {
	text := operations(t)
	for _, r := range stringConstants(t, "controllers/sandboxegress/status.go", "Reason") {
		if !strings.Contains(text, "`"+r+"`") {
			t.Errorf("docs/operations.md does not explain the condition's reason %q", r)
		}
	}
}

func TestOperationsExplainsEveryEventOnAPod(t *testing.T) {
	text := operations(t)
	events := stringConstants(t, "controllers/pod/notify.go", "Event")
	events = append(events, stringConstants(t, "internal/policy/kube/denials.go", "EventReason")...)
	for _, e := range events {
		if !strings.Contains(text, "`"+e+"`") {
			t.Errorf("docs/operations.md does not explain the Event %q", e)
		}
	}
}

// metricsOfTheCode are the names of all metrics that the binaries register.
func metricsOfTheCode(t *testing.T) map[string]bool {
	t.Helper()
	name := regexp.MustCompile(`"(sandbox_egress_[a-z0-9_]+)"`)
	found := map[string]bool{}
	for _, dir := range []string{"internal", "controllers", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range name.FindAllSubmatch(data, -1) {
				found[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) == 0 {
		t.Fatal("no metric was found in the code")
	}
	return found
}

func TestAlertsAndDashboardUseMetricsThatExist(t *testing.T) {
	exist := metricsOfTheCode(t)
	out := mustTemplate(t, "--values", "testdata/everything.values.yaml")
	used := regexp.MustCompile(`sandbox_egress_[a-z0-9_]+`).FindAllString(out, -1)
	if len(used) == 0 {
		t.Fatal("neither alerts nor dashboard use any metric")
	}
	slices.Sort(used)
	for _, m := range slices.Compact(used) {
		base := m
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if !exist[m] && !exist[base] {
			t.Errorf("the chart uses metric %s, which no binary exports", m)
		}
	}
}

func TestOperationsListsExactlyTheMetricsThatExist(t *testing.T) {
	exist := metricsOfTheCode(t)
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("`(sandbox_egress_[a-z0-9_]+)`").FindAllStringSubmatch(operations(t), -1) {
		listed[m[1]] = true
		if !exist[m[1]] {
			t.Errorf("docs/operations.md lists %s, which no binary exports", m[1])
		}
	}
	for m := range exist {
		if !listed[m] {
			t.Errorf("docs/operations.md does not list the metric %s", m)
		}
	}
}

func TestOperationsExplainsEveryAlert(t *testing.T) {
	text := operations(t)
	out := mustTemplate(t, "--values", "testdata/everything.values.yaml")
	alerts := regexp.MustCompile(`alert: (\S+)`).FindAllStringSubmatch(out, -1)
	if len(alerts) == 0 {
		t.Fatal("no alert was rendered")
	}
	for _, a := range alerts {
		if !strings.Contains(text, "`"+a[1]+"`") {
			t.Errorf("docs/operations.md does not say what to do about the alert %s", a[1])
		}
	}
}
