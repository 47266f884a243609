package e2e

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func namespaceSpecs() {
	Describe("deletion", func() {
		It("of a namespace leaves nothing behind", func(ctx SpecContext) {
			ns := newNamespace(ctx, "gone")
			relay := platform.Policy(ns, "relay", "allowed.example")
			relay.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "relay-sandbox"}}
			relay.Spec.Delivery = v1alpha1.DeliveryRelay
			ready(ctx, platform.Policy(ns, "agents", "allowed.example"), relay)
			ready(ctx, platform.Sandbox(ns, "sandbox"), platform.Pod(ns, "relay", "relay-sandbox"))
			namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
			Expect(p.Client.Delete(ctx, namespace)).To(Succeed())
			Eventually(func(g Gomega) {
				err := p.Client.Get(ctx, client.ObjectKeyFromObject(namespace), namespace)
				g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "%v, status %+v", err, namespace.Status)
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
		}, SpecTimeout(3*long))

		It("of a policy keeps its sandboxes isolated, and leaves nothing when they are gone", func(ctx SpecContext) {
			ns := newNamespace(ctx, "policy-gone")
			policy := platform.Policy(ns, "agents", "allowed.example")
			ready(ctx, policy)
			pod := platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
			Expect(p.Client.Delete(ctx, policy)).To(Succeed())
			const site = "tcp:198.51.100.10:80"
			Consistently(func(g Gomega) {
				results, err := p.Probe(ctx, pod, site)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(results).To(HaveKeyWithValue(site, HavePrefix("blocked")))
			}).WithContext(ctx).WithTimeout(soon / 3).Should(Succeed())
			Expect(p.Client.Delete(ctx, pod)).To(Succeed())
			Eventually(func(g Gomega) {
				err := p.Client.Get(ctx, client.ObjectKeyFromObject(policy), policy)
				g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "%v", err)
				out, err := p.Cluster.Kubectl(ctx, "-n", ns, "get", "deployments,services,networkpolicies,secrets,poddisruptionbudgets,roles,rolebindings,pods", "-o", "name")
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(string(out)).To(BeEmpty())
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
		}, SpecTimeout(3*long))

		It("of every other spec's namespace came to its end", func(ctx SpecContext) {
			Eventually(func(g Gomega) {
				var list corev1.NamespaceList
				g.Expect(p.Client.List(ctx, &list)).To(Succeed())
				for i := range list.Items {
					ns := &list.Items[i]
					g.Expect(ns.DeletionTimestamp).To(BeNil(), "%s: %+v", ns.Name, ns.Status.Conditions)
				}
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
		}, SpecTimeout(2*long))
	})
}
