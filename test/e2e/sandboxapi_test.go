package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

const apiToken = "0123456789abcdef0123456789abcdef"

func sandboxAPISpecs() {
	Describe("the sandbox API", Ordered, func() {
		var sandbox, caller, stranger *corev1.Pod

		BeforeAll(func(ctx SpecContext) {
			ns := newNamespace(ctx, "api")
			policy := platform.Policy(ns, "agents", "allowed.example")
			create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sandbox-api-token"},
				StringData: map[string]string{"token": apiToken},
			})
			// Who may call is an ingress policy's affair.
			create(ctx, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sandbox-api"},
				Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}},
					PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{
						From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "caller"}}}},
						Ports: []networkingv1.NetworkPolicyPort{{Port: ptr.To(intstr.FromInt32(8080))}},
					}},
				},
			})
			ready(ctx, policy)
			sandbox = samplePod(ns)
			caller, stranger = platform.Pod(ns, "caller", "caller"), platform.Pod(ns, "stranger", "stranger")
			ready(ctx, sandbox, caller, stranger)
		}, NodeTimeout(2*long))

		It("executes commands that are under the sandbox's policy", func(ctx SpecContext) {
			var allowed, denied, direct execution
			Eventually(func(g Gomega) {
				allowed = execute(ctx, g, caller, sandbox, "curl -sS -i http://allowed.example/through-the-api")
				g.Expect(allowed.ExitCode).To(BeZero())
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			Expect(allowed.Stdout).To(HavePrefix("HTTP/1.1 200"))
			Expect(allowed.Stdout).To(ContainSubstring("sandbox-egress test origin: GET allowed.example /through-the-api"))
			denied = execute(ctx, NewWithT(GinkgoT()), caller, sandbox, "curl -sS -i http://evil-site.example/")
			Expect(denied.Stdout).To(HavePrefix("HTTP/1.1 403 Egress-Blocked host_not_allowed"))
			direct = execute(ctx, NewWithT(GinkgoT()), caller, sandbox, "curl -sS --noproxy '*' --max-time 3 http://198.51.100.10/")
			Expect(direct.ExitCode).To(BeElementOf(7, 28), "%+v", direct)
		}, SpecTimeout(long))

		It("answers neither the sandbox itself, nor without the token, nor to other pods", func(ctx SpecContext) {
			url := fmt.Sprintf("http://%s:8080/execute", sandbox.Status.PodIP)
			authorization := "Authorization: Bearer " + apiToken
			Expect(curl(ctx, caller, "-d", `{"command":"true"}`, url)).To(haveStatus(401))
			Expect(curl(ctx, stranger, "--connect-timeout", "3", "-H", authorization, "-d", `{"command":"true"}`, url)).To(blocked())
			for _, address := range []string{"127.0.0.1", sandbox.Status.PodIP} {
				Expect(curl(ctx, sandbox, "--noproxy", "*", "-H", authorization, "-d", `{"command":"true"}`, "http://"+address+":8080/execute")).To(haveStatus(403))
			}
		}, SpecTimeout(long))
	})
}

// samplePod is the pod of config/samples/sandbox-api with the images of the test cluster.
func samplePod(namespace string) *corev1.Pod {
	GinkgoHelper()
	manifest, err := os.ReadFile("../../config/samples/sandbox-api/pod.yaml")
	Expect(err).NotTo(HaveOccurred())
	pod := &corev1.Pod{}
	Expect(yaml.UnmarshalStrict(manifest, pod)).To(Succeed())
	pod.Namespace = namespace
	install, main := &pod.Spec.InitContainers[0], &pod.Spec.Containers[0]
	install.Image, install.ImagePullPolicy = p.Image(), corev1.PullNever
	main.Image, main.ImagePullPolicy = image.SandboxRef, corev1.PullNever
	// Without SYS_RESOURCE, which test machines may lack, only the watchdog holds the limits.
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil || has == 0 {
		add := &main.SecurityContext.Capabilities.Add
		*add = slices.DeleteFunc(*add, func(c corev1.Capability) bool { return c == "SYS_RESOURCE" })
	}
	return pod
}

// execution is the answer of POST /execute.
type execution struct {
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	ExitCode int    `json:"exit_code"`
}

func execute(ctx context.Context, g Gomega, caller, sandbox *corev1.Pod, command string) execution {
	GinkgoHelper()
	body, err := json.Marshal(map[string]string{"command": command})
	g.Expect(err).NotTo(HaveOccurred())
	out, err := p.Exec(ctx, caller, "curl", "-sS", "--fail-with-body", "--max-time", "20", "-H", "Authorization: Bearer "+apiToken,
		"-d", string(body), fmt.Sprintf("http://%s:8080/execute", sandbox.Status.PodIP))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out.Exit).To(BeZero(), out.String())
	var e execution
	g.Expect(json.Unmarshal([]byte(out.Stdout), &e)).To(Succeed(), out.String())
	return e
}
