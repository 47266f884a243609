package chart

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const everything = "testdata/everything.values.yaml"

func TestOnlyTheCRDSurvivesAnUninstall(t *testing.T) {
	for k, o := range byKey(t, parse(t, "chart", mustTemplate(t))) {
		kept := o.GetAnnotations()["helm.sh/resource-policy"] == "keep"
		if isCRD := o.GetKind() == "CustomResourceDefinition"; kept != isCRD {
			t.Errorf("%s: kept on uninstall = %v", k, kept)
		}
	}
}

func TestTheCRDCanBeLeftOut(t *testing.T) {
	for k, o := range byKey(t, parse(t, "chart", mustTemplate(t, "--set", "crds.install=false"))) {
		if o.GetKind() == "CustomResourceDefinition" {
			t.Errorf("%s is rendered", k)
		}
	}
}

// With cert-manager the operator's own certificate must not be there: two writers of one
// Secret would undo each other.
func TestCertManagerProvidesTheWebhookCertificate(t *testing.T) {
	for name, tc := range map[string]struct {
		args       []string
		inject     string
		ownSecret  bool
		ownIssuer  bool
		certSource string
	}{
		"self":         {nil, "", true, false, "--cert-source=self"},
		"cert-manager": {[]string{"--set", "certs.source=cert-manager"}, namespace + "/sandbox-egress-webhook", false, true, "--cert-source=files"},
		"own issuer":   {[]string{"--values", "testdata/own-issuer.values.yaml"}, namespace + "/sandbox-egress-webhook", false, false, "--cert-source=files"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := byKey(t, parse(t, "chart", mustTemplate(t, tc.args...)))
			for _, kind := range []string{"MutatingWebhookConfiguration sandbox-egress-mutating", "ValidatingWebhookConfiguration sandbox-egress-validating"} {
				o := objects[kind]
				if o == nil {
					t.Fatalf("%s is not rendered", kind)
				}
				if got := o.GetAnnotations()["cert-manager.io/inject-ca-from"]; got != tc.inject {
					t.Errorf("%s: inject-ca-from is %q, want %q", kind, got, tc.inject)
				}
			}
			for k, want := range map[string]bool{
				"Secret " + namespace + "/sandbox-egress-webhook-cert": tc.ownSecret,
				"Issuer " + namespace + "/sandbox-egress-webhook":      tc.ownIssuer,
				"Certificate " + namespace + "/sandbox-egress-webhook": !tc.ownSecret,
			} {
				if (objects[k] != nil) != want {
					t.Errorf("%s is rendered: %v, want %v", k, objects[k] != nil, want)
				}
			}
			args := managerArgs(t, []*unstructured.Unstructured{objects["Deployment "+namespace+"/sandbox-egress-manager"]})
			if all := strings.Join(args, " "); !strings.Contains(all, tc.certSource) {
				t.Errorf("args are %s, want %s", all, tc.certSource)
			}
		})
	}
}

func TestProxiesAreScrapedOnlyWhereTheirNetworkPolicyAdmitsIt(t *testing.T) {
	_, err := template(t, "--set", "podMonitor.enabled=true")
	if err == nil || !strings.Contains(err.Error(), "metricsNamespaces") {
		t.Errorf("a PodMonitor without metricsNamespaces: %v", err)
	}
}

func TestOneImageEverywhere(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	out := mustTemplate(t, "--values", everything)
	want := "registry.example.com/security/sandbox-egress@" + digest
	for _, line := range []string{"image: " + want, "- --image=" + want} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("%q is not rendered", line)
		}
	}
}

func TestTheDashboardIsValidJSONWithPanels(t *testing.T) {
	o := byKey(t, parse(t, "chart", mustTemplate(t, "--values", everything)))["ConfigMap "+namespace+"/sandbox-egress-dashboard"]
	if o == nil {
		t.Fatal("the dashboard is not rendered")
	}
	text, _, err := unstructured.NestedString(o.Object, "data", "sandbox-egress.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Title  string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.Title == "" || len(dashboard.Panels) == 0 {
		t.Fatal("the dashboard has no title or no panels")
	}
	seen := map[int]bool{}
	for _, p := range dashboard.Panels {
		if seen[p.ID] {
			t.Errorf("panel id %d is there twice", p.ID)
		}
		seen[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q is wider than the dashboard", p.Title)
		}
	}
}
