package e2e

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func relaySpecs() {
	Describe("under Relay", Ordered, func() {
		var ns string
		var pod *corev1.Pod

		BeforeAll(func(ctx SpecContext) {
			ns = newNamespace(ctx, "relay")
			policy := platform.Policy(ns, "agents", "allowed.example")
			policy.Spec.Delivery = v1alpha1.DeliveryRelay
			ready(ctx, policy)
			pod = platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
		}, NodeTimeout(2*long))

		It("a sandbox reaches what is allowed, through loopback and without a credential", func(ctx SpecContext) {
			Expect(curl(ctx, pod, "http://allowed.example/")).To(haveStatus(200))
			Expect(curl(ctx, pod, "https://allowed.example/")).To(haveStatus(200))
			Expect(curl(ctx, pod, "http://evil-site.example/")).To(refused(403, "host_not_allowed"))
			Expect(curl(ctx, pod, "https://evil-site.example/")).To(refused(403, "host_not_allowed"))
			out, err := p.WebSocket(ctx, pod, "connect", "allowed.example", "80", "hello")
			Expect(err).NotTo(HaveOccurred())
			Expect(out.Stdout).To(Equal("hello\n"), out.String())
			Expect(proxyURL(ctx, pod)).To(Equal("http://127.0.0.1:3128"))
			out = shell(ctx, pod, "env; cat /proc/[0-9]*/environ; ls /var/run/secrets")
			Expect(out.Stdout).NotTo(ContainSubstring("eyJ"), "a token")
		}, SpecTimeout(long))

		It("a Job completes", func(ctx SpecContext) {
			template := platform.Sandbox(ns, "unused")
			template.Spec.RestartPolicy = corev1.RestartPolicyNever
			template.Spec.Containers[0].Command = []string{"sh", "-c", "curl -sSf http://allowed.example/job && ! curl -sSf http://evil-site.example/job"}
			job := create(ctx, &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "job"},
				Spec: batchv1.JobSpec{
					BackoffLimit: ptr.To[int32](0),
					Template:     corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
				},
			})
			Eventually(func(g Gomega) {
				g.Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(job), job)).To(Succeed())
				if job.Status.Failed > 0 {
					StopTrying("the job failed").Now()
				}
				g.Expect(job.Status.Succeeded).To(BeEquivalentTo(1))
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
		}, SpecTimeout(2*long))

		It("an identity that is deleted is made again", func(ctx SpecContext) {
			Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: v1alpha1.IdentityName(pod.Annotations[v1alpha1.IDKey])}}
			Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)).To(Succeed())
			old := secret.UID
			Expect(p.Client.Delete(ctx, secret)).To(Succeed())
			Eventually(func(g Gomega) {
				g.Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)).To(Succeed())
				g.Expect(secret.UID).NotTo(Equal(old))
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			eventuallyCurl(ctx, pod, soon, haveStatus(200), "http://allowed.example/")
		}, SpecTimeout(long))
	})
}
