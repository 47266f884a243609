// Package chart tests charts/sandbox-egress: what it renders, what it refuses, and that it
// says the same as config/.
package chart

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const (
	root      = "../.."
	chartDir  = root + "/charts/sandbox-egress"
	namespace = "sandbox-egress-system"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// helmBinary is $HELM or the one that the Makefile builds. Without it nothing here can be
// checked, so its absence is a failure.
func helmBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("HELM")
	if path == "" {
		path = filepath.Join(root, "bin", "helm")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(abs); err != nil {
		t.Fatalf("helm is not there (%v): run `make bin/helm` in the repository's root, or set HELM to a helm v4 binary", err)
	}
	return abs
}

// helm runs one command without the user's settings and returns stdout. The error holds
// what helm said.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	readChart(t)
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), helmBinary(t), args...)
	cmd.Env = append(os.Environ(),
		"HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG="+filepath.Join(home, "none"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), errors.New(err.Error() + ": " + stderr.String() + stdout.String())
	}
	return stdout.String(), nil
}

// readChart opens what helm will read. go test reuses a cached result unless a file that the
// test itself opened has changed; it does not see the files of other processes.
func readChart(t *testing.T) {
	t.Helper()
	for _, dir := range []string{chartDir, "testdata"} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			_, err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func template(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return helm(t, append([]string{"template", "sandbox-egress", chartDir, "--namespace", namespace}, args...)...)
}

func mustTemplate(t *testing.T, args ...string) string {
	t.Helper()
	out, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// parse reads a stream of YAML documents; source names it in failures.
func parse(t *testing.T, source, text string) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		o := new(unstructured.Unstructured)
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: document %d: %v", source, len(objects)+1, err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// key names an object in messages and joins the two sides of a comparison.
func key(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/")
}

func byKey(t *testing.T, objects []*unstructured.Unstructured) map[string]*unstructured.Unstructured {
	t.Helper()
	out := make(map[string]*unstructured.Unstructured, len(objects))
	for _, o := range objects {
		if _, twice := out[key(o)]; twice {
			t.Errorf("%s is there twice", key(o))
		}
		out[key(o)] = o
	}
	return out
}
