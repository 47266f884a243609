package chart

import (
	"strings"
	"testing"
)

func TestBadValuesAreRefusedByName(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want []string // the message names the value and says what is wrong with it
	}{
		"an unknown value":                {[]string{"--set", "replicaCount=3"}, []string{"replicaCount"}},
		"an unknown value below":          {[]string{"--set", "image.repo=x"}, []string{"/image", "repo"}},
		"no replicas":                     {[]string{"--set", "replicas=0"}, []string{"/replicas", "1"}},
		"replicas as text":                {[]string{"--set-string", "replicas=2"}, []string{"/replicas", "integer"}},
		"an empty repository":             {[]string{"--set", "image.repository="}, []string{"/image/repository"}},
		"a digest that is none":           {[]string{"--set", "image.digest=sha256:abc"}, []string{"/image/digest"}},
		"a tag with a slash":              {[]string{"--set", "image.tag=a/b"}, []string{"/image/tag"}},
		"a pull policy that is none":      {[]string{"--set", "image.pullPolicy=Sometimes"}, []string{"/image/pullPolicy", "IfNotPresent"}},
		"an unknown certificate source":   {[]string{"--set", "certs.source=vault"}, []string{"/certs/source", "cert-manager"}},
		"a node-local address, no prefix": {[]string{"--set", "dns.nodeLocalAddresses={169.254.20.10}"}, []string{"/dns/nodeLocalAddresses/0"}},
		"a DNS namespace in capitals":     {[]string{"--set", "dns.namespace=Kube-System"}, []string{"/dns/namespace"}},
		"a metrics namespace as text":     {[]string{"--set", "metricsNamespaces=monitoring"}, []string{"/metricsNamespaces", "array"}},
		"a rotation without a unit":       {[]string{"--set-string", "signingKeyRotation=30"}, []string{"/signingKeyRotation"}},
		"an unknown log level":            {[]string{"--set", "logLevel=loud"}, []string{"/logLevel", "debug"}},
		"an argument that is no flag":     {[]string{"--set", "extraArgs={leader-elect}"}, []string{"/extraArgs/0"}},
		"a scrape interval, no unit":      {[]string{"--set-string", "serviceMonitor.interval=30"}, []string{"/serviceMonitor/interval"}},
		"a boolean as text":               {[]string{"--set-string", "crds.install=false"}, []string{"/crds/install", "boolean"}},
		"a label that is a number":        {[]string{"--set", "dashboard.labels.x=1"}, []string{"/dashboard/labels/x", "string"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := template(t, tc.args...)
			if err == nil {
				t.Fatalf("%v was accepted and rendered %d bytes", tc.args, len(out))
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message does not contain %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestANamespaceThatCannotHoldTheOperatorIsRefused(t *testing.T) {
	for _, ns := range []string{"default", "kube-system", "kube-public"} {
		_, err := helm(t, "template", "x", chartDir, "--namespace", ns)
		if err == nil || !strings.Contains(err.Error(), ns) || !strings.Contains(err.Error(), "--namespace sandbox-egress-system") {
			t.Errorf("namespace %s: %v", ns, err)
		}
	}
}
