package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
)

// copies are the folders of config/ that the chart takes over byte for byte.
var copies = map[string]string{
	"crd/bases":        "crd",
	"rbac":             "rbac",
	"webhook":          "webhook",
	"admission-policy": "admission-policy",
}

func manifests(t *testing.T, dir string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range paths {
		if filepath.Base(p) == "kustomization.yaml" {
			continue
		}
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(p)] = string(data)
	}
	if len(out) == 0 {
		t.Fatalf("no manifests in %s", dir)
	}
	return out
}

func TestTheChartsCopiesOfSharedManifestsAreCurrent(t *testing.T) {
	for from, to := range copies {
		t.Run(to, func(t *testing.T) {
			want := manifests(t, filepath.Join(root, "config", from))
			got := manifests(t, filepath.Join(chartDir, "files", to))
			for name, text := range want {
				if got[name] != text {
					t.Errorf("charts/sandbox-egress/files/%s/%s is not config/%s/%s: run hack/chart.sh", to, name, from, name)
				}
			}
			for name := range got {
				if _, ok := want[name]; !ok {
					t.Errorf("charts/sandbox-egress/files/%s/%s has no original in config/%s: run hack/chart.sh", to, name, from)
				}
			}
		})
	}
}

// TestTheChartsDefaultsAgreeWithThePlainManifests compares every object of config/ with the
// chart's, rendered with defaults into the namespace that config/ uses.
func TestTheChartsDefaultsAgreeWithThePlainManifests(t *testing.T) {
	rendered := byKey(t, parse(t, "chart", mustTemplate(t)))
	plain := map[string]*unstructured.Unstructured{}
	// The monitors are an option of the chart and a folder of their own in config/.
	monitored := byKey(t, parse(t, "chart", mustTemplate(t, "--set", "serviceMonitor.enabled=true,podMonitor.enabled=true,metricsNamespaces={monitoring}")))
	for name, text := range manifests(t, filepath.Join(root, "config", "prometheus")) {
		for _, o := range parse(t, name, text) {
			plain[key(o)] = o
			rendered[key(o)] = monitored[key(o)]
		}
	}
	for _, dir := range []string{"crd/bases", "rbac", "webhook", "admission-policy", "manager"} {
		for name, text := range manifests(t, filepath.Join(root, "config", dir)) {
			for _, o := range parse(t, dir+"/"+name, text) {
				plain[key(o)] = o
			}
		}
	}
	for k, want := range plain {
		if want.GetKind() == "Namespace" { // helm install --create-namespace
			continue
		}
		got := rendered[k]
		if got == nil {
			t.Errorf("config/ has %s, the chart has not", k)
			continue
		}
		if diff := difference(canonical(t, want), canonical(t, got)); diff != "" {
			t.Errorf("%s differs between config/ (want) and chart (got): %s", k, diff)
		}
	}
	for k := range rendered {
		if _, ok := plain[k]; !ok {
			t.Errorf("the chart has %s by default, config/ has not", k)
		}
	}
}

// canonical is o without what only one of the two ways of installing adds.
func canonical(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	o = o.DeepCopy()
	if meta, ok := o.Object["metadata"].(map[string]any); ok {
		without(meta, "labels", "helm.sh/chart", "app.kubernetes.io/name", "app.kubernetes.io/instance",
			"app.kubernetes.io/version", "app.kubernetes.io/managed-by")
		without(meta, "annotations", "helm.sh/resource-policy")
	}
	out, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// without removes keys of a metadata field, and the field when it is empty then.
func without(meta map[string]any, field string, keys ...string) {
	m, ok := meta[field].(map[string]any)
	if !ok {
		return
	}
	for _, k := range keys {
		delete(m, k)
	}
	if len(m) == 0 {
		delete(meta, field)
	}
}

// managerArgs returns the arguments of the operator's container.
func managerArgs(t *testing.T, objects []*unstructured.Unstructured) []string {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != "Deployment" {
			continue
		}
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		if err != nil || len(containers) != 1 {
			t.Fatalf("%s: want one container: %v", key(o), err)
		}
		container, ok := containers[0].(map[string]any)
		if !ok {
			t.Fatalf("%s: the container is no object", key(o))
		}
		args, _, err := unstructured.NestedStringSlice(container, "args")
		if err != nil {
			t.Fatal(err)
		}
		return args
	}
	t.Fatal("no Deployment was rendered")
	return nil
}

func TestTheOperatorAcceptsTheArgumentsOfEveryCase(t *testing.T) {
	for _, values := range valuesFiles(t) {
		args := managerArgs(t, parse(t, values, mustTemplate(t, "--values", values)))
		options := managercmd.NewOptions()
		flags := pflag.NewFlagSet("manager", pflag.ContinueOnError)
		options.AddFlags(flags)
		if err := flags.Parse(args); err != nil {
			t.Errorf("%s: %v", values, err)
			continue
		}
		if err := options.Validate(); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
}

func TestEveryObjectMovesWithTheNamespace(t *testing.T) {
	out, err := helm(t, "template", "x", chartDir, "--namespace", "elsewhere", "--values", "testdata/everything.values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(out, namespace); i >= 0 {
		t.Errorf("%s is left over in a chart rendered for another namespace: …%s…", namespace, out[max(i-200, 0):min(i+100, len(out))])
	}
	for _, o := range parse(t, "chart", out) {
		if ns := o.GetNamespace(); ns != "" && ns != "elsewhere" && ns != "kube-system" {
			t.Errorf("%s is in namespace %s", key(o), ns)
		}
	}
}
