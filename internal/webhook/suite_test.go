package webhook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/webhook"
)

const (
	operatorUser   = "system:serviceaccount:sandbox-egress-system:sandbox-egress-manager"
	replicaSetUser = "system:serviceaccount:kube-system:replicaset-controller"
	deploymentUser = "system:serviceaccount:kube-system:deployment-controller"
	tenant         = "tenant"

	proxyAddress = "10.96.12.7:8443"
	meshWebhook  = "zz-mesh"
)

var (
	environment *envtest.Environment
	scheme      = runtime.NewScheme()
	k8s         client.Client // the cluster's administrator
	stopManager func()
	registry    *prometheus.Registry
)

func TestWebhook(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Admission")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	ctrl.SetLogger(GinkgoLogr)
	Expect(clientgoscheme.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())

	environment = &envtest.Environment{
		Scheme:                scheme,
		CRDDirectoryPaths:     []string{filepath.Join("..", "..", "config", "crd", "bases")},
		ErrorIfCRDPathMissing: true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{
			Paths:            []string{filepath.Join("..", "..", "config", "webhook")},
			MutatingWebhooks: []*admissionregistrationv1.MutatingWebhookConfiguration{mesh()},
		},
	}
	cfg, err := environment.Start()
	Expect(err).NotTo(HaveOccurred(), "KUBEBUILDER_ASSETS must hold etcd and kube-apiserver; `make test-envtest` sets it")
	k8s, err = client.New(cfg, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	applyAdmissionPolicies(ctx)
	startManager()
	waitForAdmission(ctx)
}, NodeTimeout(2*time.Minute))

var _ = AfterSuite(func() {
	if stopManager != nil {
		stopManager()
	}
	if environment != nil {
		Expect(environment.Stop()).To(Succeed())
	}
})

// startManager runs the handlers until stopManager.
func startManager() {
	GinkgoHelper()
	o := environment.WebhookInstallOptions
	mgr, err := ctrl.NewManager(environment.Config, ctrl.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
		WebhookServer: ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: o.LocalServingHost, Port: o.LocalServingPort, CertDir: o.LocalServingCertDir,
		}),
	})
	Expect(err).NotTo(HaveOccurred())
	registry = prometheus.NewRegistry()
	Expect(webhook.Setup(mgr, webhook.Config{
		Injector:     injector.Config{Image: "example.com/sandbox-egress:v1", ImagePullPolicy: corev1.PullIfNotPresent},
		OperatorUser: operatorUser,
		Metrics:      registry,
	})).To(Succeed())
	mgr.GetWebhookServer().Register("/mesh", &admission.Webhook{Handler: admission.HandlerFunc(meshHandler)})

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stopManager = func() {
		cancel()
		Expect(<-done).To(Succeed())
		stopManager = nil
	}
	address := net.JoinHostPort(o.LocalServingHost, strconv.Itoa(o.LocalServingPort))
	Eventually(func() error {
		return mgr.GetWebhookServer().StartedChecker()(nil)
	}).WithTimeout(20*time.Second).Should(Succeed(), "the webhook server at %s", address)
}

func applyAdmissionPolicies(ctx context.Context) {
	GinkgoHelper()
	files, err := filepath.Glob(filepath.Join("..", "..", "config", "admission-policy", "*.yaml"))
	Expect(err).NotTo(HaveOccurred())
	applied := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		Expect(err).NotTo(HaveOccurred())
		docs := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
		for {
			obj := &unstructured.Unstructured{}
			err := docs.Decode(obj)
			if errors.Is(err, io.EOF) {
				break
			}
			Expect(err).NotTo(HaveOccurred(), file)
			if obj.GetKind() == "Kustomization" || len(obj.Object) == 0 {
				continue
			}
			Expect(k8s.Create(ctx, obj)).To(Succeed(), file)
			applied++
		}
	}
	Expect(applied).To(Equal(8), "four policies and their bindings")
}

// waitForAdmission returns once the API server uses webhooks and admission policies.
func waitForAdmission(ctx context.Context) {
	GinkgoHelper()
	ns := newNamespace(ctx, nil)
	readyPolicy(ctx, ns, "probe", nil)
	Eventually(func() string {
		pod := newPod(ns, map[string]string{"app": "sandbox"})
		pod.Spec.HostNetwork = true
		return message(k8s.Create(ctx, pod, client.DryRunAll))
	}).WithTimeout(30 * time.Second).Should(ContainSubstring("ValidatingAdmissionPolicy 'sandbox-egress-isolation'"))
	Eventually(func(g Gomega) {
		pod := newPod(ns, map[string]string{"app": "sandbox"})
		g.Expect(k8s.Create(ctx, pod, client.DryRunAll)).To(Succeed())
		g.Expect(pod.Annotations).To(HaveKey(v1alpha1.IDKey))
	}).WithTimeout(30 * time.Second).Should(Succeed())
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// as is a client of another user, with all rights: what stops it is admission.
func as(user string) client.Client {
	GinkgoHelper()
	cfg := rest.CopyConfig(environment.Config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	return c
}

// warnings collects what the API server warns about.
type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

func warned() (client.Client, *warnings) {
	GinkgoHelper()
	w := &warnings{}
	cfg := rest.CopyConfig(environment.Config)
	cfg.WarningHandler = w
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	return c, w
}

func newNamespace(ctx context.Context, labels map[string]string) string {
	GinkgoHelper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "admission-", Labels: labels}}
	Expect(k8s.Create(ctx, ns)).To(Succeed())
	return ns.Name
}

func enforced(ctx context.Context) string {
	GinkgoHelper()
	return newNamespace(ctx, map[string]string{v1alpha1.EnforcedLabel: "true"})
}

func newPolicy(ns, name string, change func(*v1alpha1.SandboxEgressSpec)) *v1alpha1.SandboxEgress {
	p := &v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       v1alpha1.SandboxEgressSpec{AllowedHosts: []v1alpha1.HostPattern{"api.example.com"}},
	}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

// readyPolicy creates a policy with a proxy address, which the controller would set.
func readyPolicy(ctx context.Context, ns, name string, change func(*v1alpha1.SandboxEgressSpec)) *v1alpha1.SandboxEgress {
	GinkgoHelper()
	p := newPolicy(ns, name, change)
	Expect(k8s.Create(ctx, p)).To(Succeed())
	p.Status.ProxyAddress = proxyAddress
	Expect(k8s.Status().Update(ctx, p)).To(Succeed())
	return p
}

func selector(labels map[string]string) func(*v1alpha1.SandboxEgressSpec) {
	return func(s *v1alpha1.SandboxEgressSpec) { s.PodSelector = &metav1.LabelSelector{MatchLabels: labels} }
}

func newPod(ns string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "agent-", Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "example.com/agent:1"}}},
	}
}

func sandboxPod(ns string) *corev1.Pod { return newPod(ns, map[string]string{"app": "sandbox"}) }

// createPod retries while the policy is not in the handlers' cache with its address yet.
func createPod(ctx context.Context, c client.Client, pod *corev1.Pod) error {
	var err error
	for range 50 {
		try := pod.DeepCopy()
		if err = c.Create(ctx, try); err == nil {
			*pod = *try
			return nil
		}
		if !bytes.Contains([]byte(err.Error()), []byte("no status.proxyAddress")) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func envOf(c corev1.Container, name string) []corev1.EnvVar {
	var found []corev1.EnvVar
	for _, e := range c.Env {
		if e.Name == name {
			found = append(found, e)
		}
	}
	return found
}

// mesh is a webhook of somebody else's that runs after ours.
func mesh() *admissionregistrationv1.MutatingWebhookConfiguration {
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: meshWebhook},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:                    "mesh.example.com",
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             ptr.To(admissionregistrationv1.SideEffectClassNone),
			FailurePolicy:           ptr.To(admissionregistrationv1.Fail),
			ReinvocationPolicy:      ptr.To(admissionregistrationv1.IfNeededReinvocationPolicy),
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Name: "mesh", Namespace: "default", Path: ptr.To("/mesh")},
			},
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "mesh", Operator: metav1.LabelSelectorOpExists}}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
}

// meshHandler adds a sidecar and an init container in front. The polite mesh does so once,
// the stubborn one insists on being first.
func meshHandler(_ context.Context, req admission.Request) admission.Response {
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	inits := pod.Spec.InitContainers
	first := len(inits) > 0 && inits[0].Name == "mesh-init"
	var rest []corev1.Container
	present := false
	for _, c := range inits {
		if c.Name == "mesh-init" {
			present = true
			continue
		}
		rest = append(rest, c)
	}
	if present && (first || pod.Labels["mesh"] == "polite") {
		return admission.Allowed("")
	}
	if !present {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "mesh", Image: "example.com/mesh:1"})
	}
	pod.Spec.InitContainers = append([]corev1.Container{{Name: "mesh-init", Image: "example.com/mesh:1"}}, rest...)
	raw, err := json.Marshal(pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, raw)
}
