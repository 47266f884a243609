package build

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestRequiredVersion(t *testing.T) {
	const gomod = "module m\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v1.37.2\n\nrequire (\n\tk8s.io/api v0.37.2 // indirect\n\tk8s.io/kubernetes-extra v9.9.9\n)\n\nreplace k8s.io/api => k8s.io/api v0.1.0\n"
	tests := map[string]struct{ module, want string }{
		"single line requirement": {"k8s.io/kubernetes", "v1.37.2"},
		"requirement in a block":  {"k8s.io/api", "v0.37.2"},
		"missing":                 {"k8s.io/client-go", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := requiredVersion([]byte(gomod), test.module)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestLinkerFlagsStampTheVersionThatGoModPins(t *testing.T) {
	gomod := []byte("require k8s.io/kubernetes v1.37.2\nrequire github.com/containerd/containerd/v2 v2.4.2\n")
	tests := map[string]struct {
		component Component
		want      []string
	}{
		"kubernetes": {kubernetes(Kubelet), []string{
			"-X k8s.io/component-base/version.gitVersion=v1.37.2", "-X k8s.io/client-go/pkg/version.gitMajor=1", ".gitMinor=37",
		}},
		"containerd":       {containerd(Containerd), []string{"-X github.com/containerd/containerd/v2/version.Version=v2.4.2"}},
		"carries its own":  {Component{Name: Etcd}, []string{"-s -w"}},
		"stripped as well": {kubernetes(Kubectl), []string{"-s -w"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.component.ldflags(gomod)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
	if _, err := kubernetes(Kubelet).ldflags([]byte("module m\n")); err == nil {
		t.Error("a module that does not pin the version is accepted")
	}
}

func TestEveryComponentIsPinnedByItsModule(t *testing.T) {
	root, err := FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range Cluster() {
		if names[c.Name] {
			t.Errorf("%s is listed twice", c.Name)
		}
		names[c.Name] = true
		gomod, err := os.ReadFile(filepath.Join(root, c.Module, "go.mod"))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if _, err := c.ldflags(gomod); err != nil {
			t.Error(err)
		}
		// Without a tool directive "go mod tidy" would drop the pins.
		if !strings.HasPrefix(c.Package, ".") && !strings.Contains(string(gomod), c.Package) {
			t.Errorf("%s: %s/go.mod has no tool directive for %s", c.Name, c.Module, c.Package)
		}
		for _, dir := range c.Sources {
			if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
	}
}

func TestBuildEnvironmentIsIndependentOfTheCaller(t *testing.T) {
	got := buildEnv([]string{"HOME=/h", "GOFLAGS=-race", "GOOS=plan9", "GOWORK=/w", "CGO_ENABLED=1", "GOPROXY=p"})
	want := []string{"HOME=/h", "GOPROXY=p", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS="}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// fakeRoot is a module with one program.
func fakeRoot(t *testing.T, source string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module fake\n\ngo 1.26\n", "go.sum": "", "prog/main.go": source,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestBuildMakesOnlyWhatIsMissing(t *testing.T) {
	root, cache := fakeRoot(t, "package main\nfunc main() {}\n"), t.TempDir()
	component := Component{Name: "prog", Module: ".", Package: "./prog", Sources: []string{"prog"}}
	var mu sync.Mutex
	built := 0
	options := Options{Root: root, Cache: cache, Progress: func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(line, "] built prog") {
			built++
		}
	}}

	// Several at once, as two make targets would.
	dirs := make([]string, 4)
	var wg sync.WaitGroup
	for i := range dirs {
		wg.Go(func() {
			var err error
			if dirs[i], err = Build(t.Context(), options, "all", []Component{component}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if built != 1 {
		t.Errorf("built %d times, want once", built)
	}
	for _, dir := range dirs {
		if dir != dirs[0] {
			t.Errorf("directories differ: %q", dirs)
		}
	}
	info, err := os.Stat(filepath.Join(dirs[0], "prog"))
	if err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Fatalf("no executable: %v", err)
	}

	source := filepath.Join(root, "prog", "main.go")
	if err := os.WriteFile(source, []byte("package main\nfunc main() { println() }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := Build(t.Context(), options, "all", []Component{component})
	if err != nil {
		t.Fatal(err)
	}
	if built != 2 || again == dirs[0] {
		t.Errorf("after a change of the source: built %d times, directory %s, was %s", built, again, dirs[0])
	}
}

func TestFailedBuildSaysWhyAndLeavesNothing(t *testing.T) {
	root, cache := fakeRoot(t, "package main\nfunc main() { undefinedFunction() }\n"), t.TempDir()
	component := Component{Name: "prog", Module: ".", Package: "./prog", Sources: []string{"prog"}}
	_, err := Build(t.Context(), Options{Root: root, Cache: cache}, "all", []Component{component})
	if err == nil || !strings.Contains(err.Error(), "building prog") || !strings.Contains(err.Error(), "undefinedFunction") {
		t.Errorf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "cluster", "bin", "*prog-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	component := Component{Name: "prog", Module: ".", Package: "./prog", Sources: []string{"prog"}}
	options := Options{Root: fakeRoot(t, "package main\nfunc main() {}\n"), Cache: t.TempDir()}
	if _, err := Build(ctx, options, "all", []Component{component}); err == nil {
		t.Error("a build with a cancelled context succeeds")
	}
}
