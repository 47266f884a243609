package proxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
)

func TestEveryReasonIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	reasons := []string{
		string(allowlist.ReasonHostDenied), string(allowlist.ReasonHostNotAllowed), string(allowlist.ReasonPortNotAllowed),
		string(allowlist.ReasonMethodNotAllowed), string(allowlist.ReasonPathNotAllowed),
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			for _, x := range v.Values {
				if lit, ok := x.(*ast.BasicLit); ok {
					if s, err := strconv.Unquote(lit.Value); err == nil {
						reasons = append(reasons, s)
					}
				}
			}
		}
		return true
	})
	if len(reasons) < 50 {
		t.Fatalf("only %d reasons found in reason.go", len(reasons))
	}
	for _, r := range reasons {
		if !strings.Contains(string(doc), "`"+r+"`") {
			t.Errorf("docs/proxy.md does not explain %s", r)
		}
	}
}
