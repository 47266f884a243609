package build

import (
	"fmt"
	"regexp"
)

// Component is one binary of the test cluster.
type Component struct {
	Name string
	// Module is the directory of the Go module that pins the component,
	// relative to the repository root; "." is the root module.
	Module string
	// Package is the import path, or a ./ path relative to Module.
	Package string
	Tags    string
	// Version names the module in Module's go.mod whose version is stamped in
	// through Stamp; empty when the package carries its version itself.
	Version string
	Stamp   []string
	// Sources are repository-relative directories of our own code that the
	// binary is made of; their contents are part of the cache key.
	Sources []string
}

const (
	kubernetesModule = "test/cluster/components/kubernetes"
	etcdModule       = "test/cluster/components/etcd"
	containerdModule = "test/cluster/components/containerd"
	corednsModule    = "test/cluster/components/coredns"
	enforcerModule   = "test/cluster/components/enforcer"

	containerdTags = "no_btrfs no_devmapper no_zfs no_tracing"
)

// Binary names, as they appear in the directory that Build returns.
const (
	Etcd                  = "etcd"
	KubeAPIServer         = "kube-apiserver"
	Kubectl               = "kubectl"
	KubeControllerManager = "kube-controller-manager"
	KubeScheduler         = "kube-scheduler"
	KubeProxy             = "kube-proxy"
	Kubelet               = "kubelet"
	Containerd            = "containerd"
	ContainerdShim        = "containerd-shim-runc-v2"
	Ctr                   = "ctr"
	CoreDNS               = "coredns"
	Enforcer              = "netpol-enforcer"
	Internet              = "cluster-internet"
	Pause                 = "pause"
)

func kubernetes(name string) Component {
	return Component{
		Name:    name,
		Module:  kubernetesModule,
		Package: "k8s.io/kubernetes/cmd/" + name,
		Version: "k8s.io/kubernetes",
		Stamp:   []string{"k8s.io/client-go/pkg/version", "k8s.io/component-base/version"},
	}
}

func containerd(name string) Component {
	const module = "github.com/containerd/containerd/v2"
	return Component{
		Name:    name,
		Module:  containerdModule,
		Package: module + "/cmd/" + name,
		Tags:    containerdTags,
		Version: module,
		Stamp:   []string{module + "/version"},
	}
}

// EnvTest is what sigs.k8s.io/controller-runtime/pkg/envtest needs.
func EnvTest() []Component {
	return []Component{
		{Name: Etcd, Module: etcdModule, Package: "go.etcd.io/etcd/server/v3"},
		kubernetes(KubeAPIServer),
		kubernetes(Kubectl),
	}
}

// Cluster is everything that the single-node cluster runs.
func Cluster() []Component {
	return append(EnvTest(),
		kubernetes(KubeControllerManager),
		kubernetes(KubeScheduler),
		kubernetes(Kubelet),
		kubernetes(KubeProxy),
		containerd(Containerd),
		containerd(ContainerdShim),
		containerd(Ctr),
		Component{Name: CoreDNS, Module: corednsModule, Package: "github.com/coredns/coredns"},
		Component{Name: Enforcer, Module: enforcerModule, Package: ".", Sources: []string{enforcerModule}},
		Component{
			Name: Internet, Module: ".", Package: "./test/cluster/internet/cmd",
			Sources: []string{"test/cluster/internet", "test/cluster/pki"},
		},
		Component{
			Name: Pause, Module: ".", Package: "./test/cluster/pause",
			Sources: []string{"test/cluster/pause"},
		},
	)
}

// requiredVersion returns the version that a go.mod requires of module.
func requiredVersion(gomod []byte, module string) (string, error) {
	re := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(module) + `\s+(v[^\s/]+)\s*(?://.*)?$`)
	m := re.FindSubmatch(gomod)
	if m == nil {
		return "", fmt.Errorf("no requirement of %s", module)
	}
	return string(m[1]), nil
}

// ldflags returns the linker flags of c: stripped, with the version that its
// go.mod pins, since binaries built outside their own repository otherwise
// report v0.0.0-master and the kubelet and API server refuse each other's skew.
func (c Component) ldflags(gomod []byte) (string, error) {
	flags := "-s -w"
	if c.Version == "" {
		return flags, nil
	}
	version, err := requiredVersion(gomod, c.Version)
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", c.Name, err)
	}
	for _, pkg := range c.Stamp {
		if c.Module == containerdModule {
			flags += fmt.Sprintf(" -X %s.Version=%s", pkg, version)
			continue
		}
		m := regexp.MustCompile(`^v(\d+)\.(\d+)\.`).FindStringSubmatch(version)
		if m == nil {
			return "", fmt.Errorf("version of %s: %q is not vMAJOR.MINOR.PATCH", c.Name, version)
		}
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean",
			pkg, version, m[1], m[2])
	}
	return flags, nil
}
