package webhook_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

var _ = Describe("While the webhook is down", Ordered, Serial, func() {
	const refused = "failed calling webhook"
	var (
		ns, plain string
		running   *corev1.Pod
		policy    *v1alpha1.SandboxEgress
	)
	BeforeAll(func(ctx SpecContext) {
		ns, plain = enforced(ctx), newNamespace(ctx, nil)
		policy = readyPolicy(ctx, ns, "agents", nil)
		running = sandboxPod(ns)
		Expect(createPod(ctx, k8s, running)).To(Succeed())
		stopManager()
	})
	AfterAll(func() { startManager() })

	It("sandboxes do not start", func(ctx SpecContext) {
		Expect(message(k8s.Create(ctx, sandboxPod(ns)))).To(ContainSubstring(refused))
		Expect(message(k8s.Create(ctx, newPod(ns, map[string]string{"role": "agent"})))).To(ContainSubstring(refused), "any pod of an enforced namespace")
		Expect(message(k8s.Create(ctx, sandboxPod(plain)))).To(ContainSubstring(refused), "app=sandbox anywhere")
	})
	It("other pods start", func(ctx SpecContext) {
		Expect(k8s.Create(ctx, newPod(plain, map[string]string{"app": "web"}))).To(Succeed())
		Expect(k8s.Create(ctx, sandboxPod("kube-system"), client.DryRunAll)).To(Succeed())
	})
	It("the proxy's own pods restart", func(ctx SpecContext) {
		pod := newPod(ns, match.ProxyPodLabels("agents"))
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "agents-egress-proxy-1", UID: "1", Controller: ptr.To(true)}}
		Expect(as(replicaSetUser).Create(ctx, pod)).To(Succeed())
	})
	It("running sandboxes can be quarantined, narrowed, finished and deleted", func(ctx SpecContext) {
		changed := running.DeepCopy()
		changed.Annotations[v1alpha1.QuarantineAnnotation] = "true"
		changed.Annotations[v1alpha1.AllowedHostsAnnotation] = "api.example.com"
		Expect(k8s.Patch(ctx, changed, client.MergeFrom(running))).To(Succeed())
		done := changed.DeepCopy()
		done.Status.Phase = corev1.PodSucceeded
		Expect(k8s.Status().Patch(ctx, done, client.MergeFrom(changed))).To(Succeed())
		Expect(k8s.Delete(ctx, running, client.GracePeriodSeconds(0))).To(Succeed())
	})
	It("their identity still cannot change", func(ctx SpecContext) {
		pod := newPod(ns, map[string]string{"app": "sandbox"})
		pod.Annotations = map[string]string{v1alpha1.IDKey: "abcdefghij234567abcd", v1alpha1.PolicyKey: "agents", v1alpha1.InjectedAnnotation: "Env"}
		Expect(message(k8s.Create(ctx, pod))).To(ContainSubstring(refused), "a forged one is not admitted either")
	})
	It("policies keep their spec, and lose their finalizer", func(ctx SpecContext) {
		changed := policy.DeepCopy()
		changed.Spec.AllowedHosts = append(changed.Spec.AllowedHosts, "b.example.com")
		Expect(message(k8s.Patch(ctx, changed, client.MergeFrom(policy)))).To(ContainSubstring(refused))
		held := policy.DeepCopy()
		held.Finalizers = []string{v1alpha1.IsolationFinalizer}
		Expect(k8s.Patch(ctx, held, client.MergeFrom(policy))).To(Succeed())
		Expect(k8s.Delete(ctx, held)).To(Succeed())
		Expect(k8s.Get(ctx, client.ObjectKeyFromObject(policy), held)).To(Succeed())
		held.Finalizers = nil
		Expect(k8s.Update(ctx, held)).To(Succeed())
	})
})
