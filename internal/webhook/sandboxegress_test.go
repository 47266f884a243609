package webhook_test

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

var _ = Describe("A SandboxEgress", func() {
	DescribeTable("is refused at apply time with the field and what to write",
		func(ctx context.Context, change func(*v1alpha1.SandboxEgressSpec), field string, hint ...string) {
			ns := newNamespace(ctx, nil)
			err := k8s.Create(ctx, newPolicy(ns, "agents", change))
			Expect(apierrors.IsInvalid(err)).To(BeTrue(), "%v", err)
			Expect(message(err)).To(ContainSubstring(field + ": Invalid value"))
			for _, h := range hint {
				Expect(message(err)).To(ContainSubstring(h))
			}
			status := err.(apierrors.APIStatus).Status()
			Expect(status.Details.Causes).To(ContainElement(HaveField("Field", field)))
		},
		Entry("a URL for a host", func(s *v1alpha1.SandboxEgressSpec) {
			s.AllowedHosts = []v1alpha1.HostPattern{"api.example.com", "https://example.com/path"}
		}, "spec.allowedHosts[1]", "example.com"),
		Entry("a bare wildcard", func(s *v1alpha1.SandboxEgressSpec) { s.AllowedHosts = []v1alpha1.HostPattern{"*"} }, "spec.allowedHosts[0]"),
		Entry("a denied host", func(s *v1alpha1.SandboxEgressSpec) { s.DeniedHosts = []v1alpha1.HostPattern{"a..b"} }, "spec.deniedHosts[0]"),
		Entry("an unknown preset", func(s *v1alpha1.SandboxEgressSpec) { s.Presets = []string{"pyton"} }, "spec.presets[0]", "python"),
		Entry("a rule's host", func(s *v1alpha1.SandboxEgressSpec) {
			s.Rules = []v1alpha1.Rule{{Hosts: []v1alpha1.HostPattern{"ok.example.com"}}, {Hosts: []v1alpha1.HostPattern{"ok.example.com", "not ok"}}}
		}, "spec.rules[1].hosts[1]"),
		Entry("the metadata service as private network", func(s *v1alpha1.SandboxEgressSpec) {
			s.PrivateNetworks = []v1alpha1.CIDR{"10.0.0.0/8", "169.254.169.254/32"}
		}, "spec.privateNetworks[1]"),
		Entry("an impossible selector", func(s *v1alpha1.SandboxEgressSpec) {
			s.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpIn}}}
		}, "spec.podSelector"),
	)

	It("is refused with all that is wrong at once", func(ctx SpecContext) {
		err := k8s.Create(ctx, newPolicy(newNamespace(ctx, nil), "agents", func(s *v1alpha1.SandboxEgressSpec) {
			s.AllowedHosts = []v1alpha1.HostPattern{"http://a.example", "b.example", "c_d*.example"}
			s.PrivateNetworks = []v1alpha1.CIDR{"127.0.0.0/8"}
		}))
		Expect(message(err)).To(And(ContainSubstring("spec.allowedHosts[0]"), ContainSubstring("spec.allowedHosts[2]"), ContainSubstring("spec.privateNetworks[0]"), Not(ContainSubstring("spec.allowedHosts[1]"))))
	})

	It("is refused on update too, and unchanged otherwise", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		policy := readyPolicy(ctx, ns, "agents", nil)
		policy.Spec.AllowedHosts = append(policy.Spec.AllowedHosts, "x y")
		Expect(message(k8s.Update(ctx, policy))).To(ContainSubstring("spec.allowedHosts[1]"))
		Expect(k8s.Get(ctx, client.ObjectKeyFromObject(policy), policy)).To(Succeed())
		policy.Spec.AllowedHosts = append(policy.Spec.AllowedHosts, "*.example.org")
		Expect(k8s.Update(ctx, policy)).To(Succeed())
	})

	It("is refused in kube-system, whose pods pass no admission", func(ctx SpecContext) {
		Expect(message(k8s.Create(ctx, newPolicy("kube-system", "agents", nil)))).To(And(ContainSubstring("metadata.namespace"), ContainSubstring("another namespace")))
	})

	It("keeps a good one and its warnings to itself", func(ctx SpecContext) {
		c, got := warned()
		Expect(c.Create(ctx, newPolicy(newNamespace(ctx, nil), "agents", nil))).To(Succeed())
		Expect(*got).To(BeEmpty())
	})

	DescribeTable("warns about", func(ctx context.Context, change func(*v1alpha1.SandboxEgressSpec), want string) {
		c, got := warned()
		Expect(c.Create(ctx, newPolicy(newNamespace(ctx, nil), "agents", change))).To(Succeed())
		Expect(*got).To(ConsistOf(ContainSubstring(want)))
	},
		Entry("audit mode", func(s *v1alpha1.SandboxEgressSpec) { s.Mode = v1alpha1.ModeAudit }, "spec.mode"),
		Entry("an empty list", func(s *v1alpha1.SandboxEgressSpec) { s.AllowedHosts = nil }, "reach nothing"),
		Entry("a preset that takes uploads", func(s *v1alpha1.SandboxEgressSpec) { s.Presets = []string{"npm"} }, "spec.presets[0]"),
		Entry("methods that tunnels hide", func(s *v1alpha1.SandboxEgressSpec) {
			s.Rules = []v1alpha1.Rule{{Hosts: []v1alpha1.HostPattern{"a.example"}, Ports: []int32{80}, Methods: []v1alpha1.HTTPMethod{"GET"}}, {Hosts: []v1alpha1.HostPattern{"b.example"}, Methods: []v1alpha1.HTTPMethod{"GET"}}}
		}, "spec.rules[1]"),
		Entry("optional TLS", func(s *v1alpha1.SandboxEgressSpec) {
			s.Rules = []v1alpha1.Rule{{Hosts: []v1alpha1.HostPattern{"a.example"}, TLS: v1alpha1.TLSOptional}}
		}, "spec.rules[0].tls"),
		Entry("no start gate", func(s *v1alpha1.SandboxEgressSpec) { s.StartGate = v1alpha1.Disabled }, "spec.startGate"),
		Entry("no binding", func(s *v1alpha1.SandboxEgressSpec) { s.Token.ContainerBinding = v1alpha1.BindingDisabled }, "spec.token.containerBinding"),
	)

	It("warns when its selector overlaps another's", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		Eventually(func(g Gomega) {
			c, got := warned()
			g.Expect(c.Create(ctx, newPolicy(ns, "all", func(s *v1alpha1.SandboxEgressSpec) { s.PodSelector = &metav1.LabelSelector{} }), client.DryRunAll)).To(Succeed())
			g.Expect(*got).To(ConsistOf(ContainSubstring(`overlaps that of SandboxEgress "agents"`)))
		}).Should(Succeed())
		c, got := warned()
		Expect(c.Create(ctx, newPolicy(ns, "web", selector(map[string]string{"app": "web"})), client.DryRunAll)).To(Succeed())
		Expect(*got).To(BeEmpty())
	})
})
