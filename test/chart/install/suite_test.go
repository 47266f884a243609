// Package install runs helm against a real kube-apiserver: what is accepted, what survives
// an upgrade, and what an uninstall leaves.
package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

const (
	root      = "../../.."
	namespace = "sandbox-egress-system"
	release   = "sandbox-egress"
)

var (
	environment *envtest.Environment
	k8s         client.Client
	kubeconfig  string
)

func TestInstall(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Chart on an API server")
}

var _ = BeforeSuite(func() {
	environment = &envtest.Environment{}
	_, err := environment.Start()
	Expect(err).NotTo(HaveOccurred(), "KUBEBUILDER_ASSETS must hold etcd and kube-apiserver; `make test-envtest` sets it")
	scheme := runtime.NewScheme()
	Expect(clientgoscheme.AddToScheme(scheme)).To(Succeed())
	Expect(apiextensionsv1.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())
	k8s, err = client.New(environment.Config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	user, err := environment.AddUser(envtest.User{Name: "admin", Groups: []string{"system:masters"}}, nil)
	Expect(err).NotTo(HaveOccurred())
	data, err := user.KubeConfig()
	Expect(err).NotTo(HaveOccurred())
	kubeconfig = filepath.Join(GinkgoT().TempDir(), "kubeconfig")
	Expect(os.WriteFile(kubeconfig, data, 0o600)).To(Succeed())
})

var _ = AfterSuite(func() {
	if environment != nil {
		Expect(environment.Stop()).To(Succeed())
	}
})

// helm runs one command against the API server, without the user's settings.
func helm(ctx context.Context, args ...string) (string, error) {
	binary := os.Getenv("HELM")
	if binary == "" {
		binary = filepath.Join(root, "bin", "helm")
	}
	binary, err := filepath.Abs(binary)
	Expect(err).NotTo(HaveOccurred())
	Expect(binary).To(BeARegularFile(), "run `make bin/helm` in the repository's root, or set HELM to a helm v4 binary")
	// go test reuses a cached result unless a file that the test itself opened has changed.
	Expect(filepath.WalkDir(chart, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		_, err = os.ReadFile(path)
		return err
	})).To(Succeed())
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	home := GinkgoT().TempDir()
	cmd := exec.CommandContext(ctx, binary, append(args, "--kubeconfig", kubeconfig, "--namespace", namespace)...)
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
