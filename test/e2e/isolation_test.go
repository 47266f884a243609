package e2e

import (
	"maps"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func isolationSpecs() {
	Describe("past the proxy", Ordered, func() {
		var policy *v1alpha1.SandboxEgress
		var sandbox, bystander, server *corev1.Pod
		var targets map[string]string

		BeforeAll(func(ctx SpecContext) {
			ns := newNamespace(ctx, "isolation")
			policy = platform.Policy(ns, "agents", "allowed.example")
			ready(ctx, policy)
			sandbox = platform.Sandbox(ns, "sandbox")
			bystander = platform.Pod(ns, "bystander", "other")
			server = platform.Pod(ns, "server", "other")
			server.Spec.Containers[0].Command = []string{"python3", "-m", "http.server", "8000", "--directory", "/tmp"}
			ready(ctx, sandbox, bystander, server)
			targets = platform.NodeTargets()
			targets["another pod"] = "tcp:" + server.Status.PodIP + ":8000"
		}, NodeTimeout(2*long))

		It("everything answers a pod that no policy isolates", func(ctx SpecContext) {
			Eventually(func(g Gomega) {
				results, err := p.Probe(ctx, bystander, slices.Collect(maps.Values(targets))...)
				g.Expect(err).NotTo(HaveOccurred())
				for what, target := range targets {
					g.Expect(results).To(HaveKeyWithValue(target, platform.Open), what)
				}
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
		}, SpecTimeout(long))

		It("nothing answers a sandbox", func(ctx SpecContext) {
			begin := time.Now()
			results, err := p.Probe(ctx, sandbox, slices.Collect(maps.Values(targets))...)
			Expect(err).NotTo(HaveOccurred())
			for what, target := range targets {
				Expect(results).To(HaveKeyWithValue(target, HavePrefix("blocked")), what)
			}
			noneCameFrom(sandbox, begin)
		}, SpecTimeout(long))

		It("a sandbox may ask the cluster's DNS, and its proxy on one port only", func(ctx SpecContext) {
			ip := host(proxyAddress(ctx, policy))
			results, err := p.Probe(ctx, sandbox, "dns:"+node.DNSIP+":allowed.example", "tcp:"+ip+":8443", "tcp:"+ip+":9902", "tcp:"+ip+":9901")
			Expect(err).NotTo(HaveOccurred())
			Expect(results).To(SatisfyAll(
				HaveKeyWithValue("dns:"+node.DNSIP+":allowed.example", platform.Open),
				HaveKeyWithValue("tcp:"+ip+":8443", platform.Open),
				HaveKeyWithValue("tcp:"+ip+":9902", HavePrefix("blocked")),
				HaveKeyWithValue("tcp:"+ip+":9901", HavePrefix("blocked")),
			))
		}, SpecTimeout(long))

		It("nothing answers a sandbox that was there before its policy", func(ctx SpecContext) {
			ns := newNamespace(ctx, "early")
			early := platform.Sandbox(ns, "early")
			ready(ctx, early)
			ready(ctx, platform.Policy(ns, "agents", "allowed.example"))
			Eventually(func(g Gomega) {
				results, err := p.Probe(ctx, early, slices.Collect(maps.Values(targets))...)
				g.Expect(err).NotTo(HaveOccurred())
				for what, target := range targets {
					g.Expect(results).To(HaveKeyWithValue(target, HavePrefix("blocked")), what)
				}
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
		}, SpecTimeout(2*long))
	})
}
