package node

import (
	"bytes"
	"embed"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"text/template"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/host"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
)

//go:embed files
var files embed.FS

func render(name string, values any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(files, "files/"+name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, values); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out.Bytes(), nil
}

// writeConfig writes the configuration files of the components.
func (c *Cluster) writeConfig(snapshotter string) error {
	runc, err := host.LookPath("runc")
	if err != nil {
		return err
	}
	cni, err := host.CNIDir()
	if err != nil {
		return err
	}
	values := map[string]string{
		"State": c.config.StateDir, "Data": c.config.DataDir,
		"Runc": runc, "CNI": cni, "Snapshotter": snapshotter,
		"PauseImage": PauseImage, "CoreDNSImage": CoreDNSImage,
		"NodeName": NodeName, "NodeIP": NodeIP, "PodCIDR": PodCIDR, "DNSIP": DNSIP,
		"Cgroup": c.config.cgroup(), "Upstream": internet.DNS,
	}
	if err := os.MkdirAll(c.state("cni"), 0o755); err != nil {
		return err
	}
	for template, target := range map[string]string{
		"containerd.toml": c.state("containerd.toml"),
		"cni.conflist":    c.state("cni", "10-sandbox-egress.conflist"),
		"kubelet.yaml":    c.state("kubelet.yaml"),
		"kube-proxy.yaml": c.state("kube-proxy.yaml"),
		"cluster.yaml":    c.state("cluster.yaml"),
	} {
		content, err := render(template, values)
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeCredentials makes the certificates and kubeconfigs.
func (c *Cluster) writeCredentials() error {
	if err := os.MkdirAll(c.state("pki"), 0o700); err != nil {
		return err
	}
	authority, err := pki.NewAuthority("sandbox-egress-test-cluster")
	if err != nil {
		return err
	}
	if err := authority.Write(c.state("pki", "ca")); err != nil {
		return err
	}
	if err := pki.NewKeyPair(c.state("pki", "service-account")); err != nil {
		return err
	}
	node := net.ParseIP(NodeIP)
	serving := map[string]pki.Request{
		"apiserver": {
			CommonName: "kube-apiserver",
			DNSNames:   []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			IPs:        []net.IP{node, net.ParseIP(APIServerIP), net.IPv4(127, 0, 0, 1)},
		},
		"kubelet":           {CommonName: "system:node:" + NodeName, Organizations: []string{"system:nodes"}, DNSNames: []string{NodeName}, IPs: []net.IP{node}},
		"apiserver-kubelet": {CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}},
	}
	for name, request := range serving {
		pair, err := authority.Issue(request)
		if err != nil {
			return err
		}
		if err := pair.Write(c.state("pki", name)); err != nil {
			return err
		}
	}
	users := map[string]pki.Request{
		"kubeconfig":                         {CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}},
		"kube-controller-manager.kubeconfig": {CommonName: "system:kube-controller-manager"},
		"kube-scheduler.kubeconfig":          {CommonName: "system:kube-scheduler"},
		"kube-proxy.kubeconfig":              {CommonName: "system:kube-proxy"},
		"kubelet.kubeconfig":                 {CommonName: "system:node:" + NodeName, Organizations: []string{"system:nodes"}},
		"netpol-enforcer.kubeconfig":         {CommonName: "netpol-enforcer"},
	}
	for file, request := range users {
		pair, err := authority.Issue(request)
		if err != nil {
			return err
		}
		encode := base64.StdEncoding.EncodeToString
		content, err := render("kubeconfig.yaml", map[string]string{
			"Server": apiServerURL, "CA": encode(authority.PEM), "User": request.CommonName,
			"Cert": encode(pair.Cert), "Key": encode(pair.Key),
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.state(file), content, 0o600); err != nil {
			return err
		}
	}
	// The test internet has an authority of its own, as the real one does.
	public, err := pki.NewAuthority("sandbox-egress test internet")
	if err != nil {
		return err
	}
	return public.Write(c.state("internet", "ca"))
}
