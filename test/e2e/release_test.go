package e2e

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func releaseSpecs() {
	// In this order: what is uninstalled is installed again in an earlier version, which is
	// upgraded.
	Describe("a running sandbox keeps what is allowed, and nothing else, when the chart", Ordered, func() {
		var ns string
		var policy *v1alpha1.SandboxEgress
		var monitor *platform.Monitor

		BeforeAll(func(ctx SpecContext) {
			ns = newNamespaceForSuite(ctx, "release")
			policy = platform.Policy(ns, "agents", "allowed.example")
			ready(ctx, policy)
			pod := platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
			monitor = startMonitor(ctx, pod)
		}, NodeTimeout(2*long))

		It("is uninstalled, after which a new one has nothing at all", func(ctx SpecContext) {
			begin := time.Now()
			Expect(p.Uninstall(ctx)).To(Succeed())
			Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(policy), policy)).To(Succeed(), "the policies are kept")
			orphan := platform.Sandbox(ns, "orphan")
			// The API server forgets the admission policies a moment later.
			Eventually(func() error {
				return p.Client.Create(ctx, orphan)
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			ready(ctx, orphan)
			Eventually(func(g Gomega) {
				targets := []string{"tcp:198.51.100.10:80", "tcp:" + policy.Status.ProxyAddress, "dns:203.0.113.53:evil-site.example"}
				results, err := p.Probe(ctx, orphan, targets...)
				g.Expect(err).NotTo(HaveOccurred())
				for _, target := range targets {
					g.Expect(results).To(HaveKeyWithValue(target, HavePrefix("blocked")))
				}
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			Expect(p.Client.Delete(ctx, orphan)).To(Succeed())
			undisturbed(ctx, monitor, begin, unnoticed)
		}, SpecTimeout(3*long))

		It("is upgraded from an earlier version", func(ctx SpecContext) {
			begin := time.Now()
			Expect(p.Install(ctx, "testdata/previous-chart")).To(Succeed())
			ready(ctx, platform.Sandbox(ns, "before"))
			Expect(p.Install(ctx, p.Chart())).To(Succeed())
			after := platform.Sandbox(ns, "after")
			ready(ctx, after)
			Expect(curl(ctx, after, "http://allowed.example/")).To(haveStatus(200))
			undisturbed(ctx, monitor, begin, unnoticed)
		}, SpecTimeout(5*long))
	})
}
