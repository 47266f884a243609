package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

func TestTemplatesRenderToValidFiles(t *testing.T) {
	values := map[string]string{
		"State": "/run/s", "Data": "/var/d", "Runc": "/usr/sbin/runc", "CNI": "/usr/lib/cni", "Snapshotter": "native",
		"PauseImage": PauseImage, "CoreDNSImage": CoreDNSImage, "NodeName": NodeName, "NodeIP": NodeIP,
		"PodCIDR": PodCIDR, "DNSIP": DNSIP, "Cgroup": "c", "Upstream": "198.51.100.53",
	}
	for name, parse := range map[string]func([]byte) error{
		"cni.conflist":    func(b []byte) error { return json.Unmarshal(b, &map[string]any{}) },
		"kubelet.yaml":    func(b []byte) error { return yaml.UnmarshalStrict(b, &map[string]any{}) },
		"kube-proxy.yaml": func(b []byte) error { return yaml.UnmarshalStrict(b, &map[string]any{}) },
		"cluster.yaml": func(b []byte) error {
			for document := range strings.SplitSeq(string(b), "\n---\n") {
				var object struct{ Kind string }
				if err := yaml.Unmarshal([]byte(document), &object); err != nil {
					return err
				}
				if object.Kind == "" {
					t.Errorf("a document without a kind: %.60s", document)
				}
			}
			return nil
		},
		"containerd.toml": func([]byte) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			content, err := render(name, values)
			if err != nil {
				t.Fatal(err)
			}
			if err := parse(content); err != nil {
				t.Error(err)
			}
			if strings.Contains(string(content), "no value") {
				t.Error("a value is missing")
			}
		})
	}
	if _, err := render("kubelet.yaml", map[string]string{}); err == nil {
		t.Error("a missing value is not an error")
	}
}

func TestCredentialsAreComplete(t *testing.T) {
	c := &Cluster{config: Config{StateDir: t.TempDir()}.withDefaults()}
	if err := os.MkdirAll(c.state("internet"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.writeCredentials(); err != nil {
		t.Fatal(err)
	}
	kubeconfigs, err := filepath.Glob(c.state("*kubeconfig"))
	if err != nil || len(kubeconfigs) != 6 {
		t.Fatalf("%d kubeconfigs, want 6: %v", len(kubeconfigs), err)
	}
	for _, path := range kubeconfigs {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if config.Host != apiServerURL {
			t.Errorf("%s leads to %s", path, config.Host)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is readable by others: %v", path, err)
		}
	}
}

func TestClustersOfDifferentDirectoriesDoNotShareACgroup(t *testing.T) {
	names := map[string]bool{}
	for _, dir := range []string{DefaultStateDir, "/run/a", "/run/b/sandbox-egress-cluster"} {
		name := Config{StateDir: dir}.cgroup()
		if names[name] || !strings.HasPrefix(name, "sandbox-egress-cluster") {
			t.Errorf("cgroup of %s: %s", dir, name)
		}
		names[name] = true
	}
}

func TestUnknownComponentIsAnErrorThatNamesTheOthers(t *testing.T) {
	c := &Cluster{config: Config{StateDir: t.TempDir()}.withDefaults()}
	for _, err := range []error{
		c.StartComponent(t.Context(), "kube-apisrver"),
		c.StopComponent(t.Context(), "kube-apisrver", 0),
	} {
		if err == nil || !strings.Contains(err.Error(), "kube-apiserver") {
			t.Errorf("got %v", err)
		}
	}
}
