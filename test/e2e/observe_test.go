package e2e

import (
	"encoding/json"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func observeSpecs() {
	Describe("a policy's owner", Ordered, func() {
		var policy *v1alpha1.SandboxEgress
		var pod, other *corev1.Pod

		BeforeAll(func(ctx SpecContext) {
			ns := newNamespace(ctx, "observe")
			policy = platform.Policy(ns, "agents", "allowed.example")
			ready(ctx, policy)
			pod, other = platform.Sandbox(ns, "sandbox"), platform.Sandbox(ns, "other")
			ready(ctx, pod, other)
		}, NodeTimeout(2*long))

		It("sees what was denied, is told what would allow it, and allows it", func(ctx SpecContext) {
			Expect(curl(ctx, pod, "http://example.org/")).To(refused(403, "host_not_allowed"))
			Expect(curl(ctx, pod, "http://allowed.example/")).To(haveStatus(200))
			Expect(curl(ctx, other, "http://evil-site.example/")).To(refused(403, "host_not_allowed"))

			var records string
			Eventually(func(g Gomega) {
				var err error
				records, err = p.Egressctl(ctx, "", "observe", policy.Name, "-n", policy.Namespace,
					"--no-follow", "--decision", "deny", "--pod", pod.Name, "-o", "json")
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(strings.TrimSpace(records)).NotTo(BeEmpty())
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			for line := range strings.Lines(records) {
				var r audit.Record
				Expect(json.Unmarshal([]byte(line), &r)).To(Succeed())
				Expect([]string{string(r.Decision), r.Reason, r.Pod, r.Host}).To(Equal(
					[]string{"deny", "host_not_allowed", pod.Name, "example.org"}))
			}

			manifest, err := p.Cluster.Kubectl(ctx, "get", "sandboxegress", policy.Name, "-n", policy.Namespace, "-o", "yaml")
			Expect(err).NotTo(HaveOccurred())
			patch, err := p.Suggest(ctx, manifest, records)
			Expect(err).NotTo(HaveOccurred())
			Expect(patch).To(ContainSubstring("example.org"))
			Expect(patch).NotTo(ContainSubstring("evil-site.example"))
			_, err = p.Cluster.KubectlStdin(ctx, []byte(patch), "patch", "sandboxegress", policy.Name, "-n", policy.Namespace,
				"--type=json", "--patch-file=/dev/stdin")
			Expect(err).NotTo(HaveOccurred())
			eventuallyCurl(ctx, pod, soon, haveStatus(200), "http://example.org/")
			Expect(curl(ctx, pod, "http://evil-site.example/")).To(refused(403, "host_not_allowed"))
		}, SpecTimeout(long))
	})
}
