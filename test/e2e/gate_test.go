package e2e

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func gateSpecs() {
	Describe("on a node that does not enforce NetworkPolicies", func() {
		It("no sandbox starts, and its pod says why", func(ctx SpecContext) {
			ns := newNamespace(ctx, "gate")
			ready(ctx, platform.Policy(ns, "agents", "allowed.example"))
			Expect(p.Cluster.SetEnforcement(ctx, false)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) {
				Expect(p.Cluster.SetEnforcement(ctx, true)).To(Succeed())
			}, NodeTimeout(soon))
			pod := platform.Sandbox(ns, "sandbox")
			pod.Spec.RestartPolicy = corev1.RestartPolicyNever
			create(ctx, pod)
			Eventually(func(g Gomega) {
				g.Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
				g.Expect(pod.Status.Phase).To(Equal(corev1.PodFailed))
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			gate := pod.Status.InitContainerStatuses[0]
			Expect(gate.Name).To(Equal("egress-gate"))
			Expect(gate.State.Terminated).NotTo(BeNil())
			Expect(gate.State.Terminated.Message).To(ContainSubstring("NetworkPolicy is not enforced for this pod"))
			Expect(pod.Status.ContainerStatuses[0].State.Running).To(BeNil())
			Expect(pod.Status.ContainerStatuses[0].State.Terminated).To(BeNil())

			Expect(p.Cluster.SetEnforcement(ctx, true)).To(Succeed())
			ready(ctx, platform.Sandbox(ns, "enforced"))
		}, SpecTimeout(3*long))
	})
}
