package controllers_test

import (
	"context"
	"net"
	"net/url"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
)

// clock is what every manager of this suite tells the time by; specs step it.
var clock = managertest.Clock()

func startManager(context.Context) *managertest.Manager {
	GinkgoHelper()
	o := managertest.Options()
	o.Clock = clock
	o.Jitter = func() float64 { return 0.5 }
	m, err := env.StartManager(o)
	Expect(err).NotTo(HaveOccurred())
	return m
}

// The steps are those of "How a pod gets its egress" in the design.
var _ = Describe("How a pod gets its egress", Ordered, func() {
	managed(startManager)
	var ns string
	BeforeEach(func(ctx SpecContext) { ns = newNamespace(ctx) })
	AfterEach(func(ctx SpecContext) { clean(ctx, ns) })

	It("step 1: makes the default-deny policy first, then the proxy's objects, the JWKS and the namespace label", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		name := v1alpha1.ProxyName("agents")
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(Succeed())

		deny, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents"))
		Expect(err).NotTo(HaveOccurred())
		Expect(deny.Spec.PodSelector).To(Equal(metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}}))
		Expect(deny.Spec.PolicyTypes).To(ConsistOf(networkingv1.PolicyTypeEgress))
		Expect(deny.Spec.Egress).To(BeEmpty())
		Expect(deny.OwnerReferences).To(BeEmpty(), "the garbage collector must not be able to delete it early")

		for _, o := range []client.Object{&corev1.Service{}, &corev1.ServiceAccount{}, &rbacv1.Role{}, &rbacv1.RoleBinding{}, &policyv1.PodDisruptionBudget{}, &networkingv1.NetworkPolicy{}} {
			Eventually(func() error { return env.Client.Get(ctx, key(ns, name), o) }).Should(Succeed(), "%T", o)
			Expect(hasOwner(o, p)).To(BeTrue(), "%T is owned by the policy", o)
			Expect(o.GetCreationTimestamp().Time).NotTo(BeTemporally("<", deny.CreationTimestamp.Time))
			Expect(rv(o)).To(BeNumerically(">", createdRV(deny)), "%T came after the default-deny policy", o)
		}
		var role rbacv1.Role
		Expect(env.Client.Get(ctx, key(ns, name), &role)).To(Succeed())
		for _, rule := range role.Rules {
			if rule.Resources[0] == "events" {
				Expect(rule.Verbs).To(ConsistOf("create"))
				continue
			}
			Expect(rule.Verbs).To(ConsistOf("get", "list", "watch"))
			Expect(rule.Resources).NotTo(ContainElement("secrets"))
		}
		var cm corev1.ConfigMap
		Expect(env.Client.Get(ctx, key(ns, v1alpha1.JWKSName("agents")), &cm)).To(Succeed())
		Expect(cm.Data[v1alpha1.ConfigMapKeyJWKS]).NotTo(ContainSubstring(`"d"`), "public keys only")
		var namespace corev1.Namespace
		Expect(env.Client.Get(ctx, key("", ns), &namespace)).To(Succeed())
		Expect(namespace.Labels).To(HaveKeyWithValue(v1alpha1.EnforcedLabel, "true"))
	})

	It("step 1: {} isolates every pod but the proxy's own", func(ctx SpecContext) {
		p := managertest.Policy(ns, "all")
		p.Spec.PodSelector = &metav1.LabelSelector{}
		create(ctx, p)
		Eventually(func(g Gomega) {
			deny, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("all"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(deny.Spec.PodSelector.MatchExpressions).To(ConsistOf(metav1.LabelSelectorRequirement{
				Key: v1alpha1.ComponentLabel, Operator: metav1.LabelSelectorOpNotIn, Values: []string{v1alpha1.ComponentProxy},
			}))
		}).Should(Succeed())
	})

	DescribeTable("step 3: gives a sandbox its token and its way to the proxy",
		func(ctx SpecContext, delivery v1alpha1.Delivery, granularity v1alpha1.Granularity, dns v1alpha1.DNSMode) {
			p := managertest.Policy(ns, "agents")
			p.Spec.Delivery, p.Spec.NetworkPolicy.Granularity, p.Spec.DNS = delivery, granularity, dns
			p.Spec.Token.Organization = "user_123"
			p.Spec.Token.HIPAARegulated = true
			p.Spec.Proxy.Upstream = &v1alpha1.UpstreamSpec{URL: "http://corp-proxy:3128"}
			create(ctx, p)
			pod := injected(ctx, p, "agent")
			Eventually(hasSecret(ctx, pod)).Should(Succeed())

			secret, err := identitySecret(ctx, pod)
			Expect(err).NotTo(HaveOccurred())
			Expect(hasOwner(secret, pod)).To(BeTrue())
			raw, claims := tokenOf(ctx, Default, p, pod)
			Expect(claims.ContainerID).To(Equal(sandboxID(pod)))
			Expect(claims.OrganizationUUID).To(Equal("user_123"))
			Expect(claims.EgressPolicy).To(Equal(ns + "/agents"))
			Expect(claims.AllowedHosts).To(Equal("api.example.com"))
			Expect(bool(claims.IsHIPAARegulated)).To(BeTrue())
			Expect(bool(claims.UseEgressGateway)).To(BeFalse())
			Expect(bool(claims.EnforceContainerBinding)).To(BeTrue())
			Expect(bool(claims.EnforceCentralizedEgress)).To(BeTrue(), "an upstream is set")
			Expect(claims.ExpiresAt.Sub(claims.IssuedAt.Time)).To(Equal(4 * time.Hour))
			Expect(claims.ID).NotTo(BeEmpty())

			u, err := url.Parse(string(secret.Data[v1alpha1.SecretKeyProxyURL]))
			Expect(err).NotTo(HaveOccurred())
			password, _ := u.User.Password()
			Expect(u.User.Username()).To(Equal("container_" + claims.ContainerID))
			Expect(password).To(Equal("jwt_" + raw))
			host, port, err := net.SplitHostPort(u.Host)
			Expect(err).NotTo(HaveOccurred())
			Expect(net.ParseIP(host)).NotTo(BeNil(), "the ClusterIP, so that no DNS is needed")
			Expect(port).To(Equal("8443"))

			name := v1alpha1.IdentityName(sandboxID(pod))
			selects := metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.IDKey: sandboxID(pod)}}
			if granularity == v1alpha1.GranularityShared {
				name = v1alpha1.DefaultDenyName("agents")
				selects = metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}}
				Consistently(identityNP(ctx, pod), 300*time.Millisecond).Should(notFound())
			}
			var np *networkingv1.NetworkPolicy
			Eventually(func() (err error) { np, err = getNP(ctx, ns, name); return err }).Should(Succeed())
			Expect(np.Spec.PodSelector).To(Equal(selects))
			rules := 2
			if dns == v1alpha1.DNSNone {
				rules = 1
			}
			Expect(np.Spec.Egress).To(HaveLen(rules))
			Expect(np.Spec.Egress[0].To).To(ConsistOf(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{
				MatchLabels: map[string]string{v1alpha1.ComponentLabel: v1alpha1.ComponentProxy, v1alpha1.PolicyKey: "agents"}}}))
			Expect(np.Spec.Egress[0].Ports).To(HaveLen(1))
			Expect(np.Spec.Egress[0].Ports[0].Port.IntValue()).To(Equal(8443))
			if dns != v1alpha1.DNSNone {
				Expect(np.Spec.Egress[1].To).To(ConsistOf(networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{
					MatchLabels: map[string]string{"kubernetes.io/metadata.name": "kube-system"}}}))
			}
		},
		func(d v1alpha1.Delivery, g v1alpha1.Granularity, dns v1alpha1.DNSMode) string {
			return string(d) + ", " + string(g) + ", dns " + string(dns)
		},
		Entry(nil, v1alpha1.DeliveryEnv, v1alpha1.GranularityPerPod, v1alpha1.DNSCluster),
		Entry(nil, v1alpha1.DeliveryEnv, v1alpha1.GranularityShared, v1alpha1.DNSCluster),
		Entry(nil, v1alpha1.DeliveryRelay, v1alpha1.GranularityPerPod, v1alpha1.DNSNone),
		Entry(nil, v1alpha1.DeliveryRelay, v1alpha1.GranularityShared, v1alpha1.DNSNone),
	)

	It("step 3: uses the user's container id", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent", func(pod *corev1.Pod) { pod.Annotations[v1alpha1.ContainerIDAnnotation] = "session-42" })
		Eventually(func(g Gomega) {
			_, claims := tokenOf(ctx, g, p, pod)
			g.Expect(claims.ContainerID).To(Equal("session-42"))
		}).Should(Succeed())
	})

	It("step 4: keeps the proxy from the cluster's services and lets only its sandboxes in", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		p.Spec.PrivateNetworks = []v1alpha1.CIDR{"10.20.0.0/16"}
		create(ctx, p)
		var np *networkingv1.NetworkPolicy
		Eventually(func() (err error) { np, err = getNP(ctx, ns, v1alpha1.ProxyName("agents")); return err }).Should(Succeed())
		Expect(np.Spec.Ingress).To(HaveLen(1))
		Expect(np.Spec.Ingress[0].From).To(ConsistOf(networkingv1.NetworkPolicyPeer{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}}}))
		Expect(np.Spec.Ingress[0].Ports).To(HaveLen(2), "8443, and 9902 for the start gate's proof")
		blocks := map[string][]string{}
		var api []networkingv1.NetworkPolicyEgressRule
		for _, rule := range np.Spec.Egress {
			for _, to := range rule.To {
				if to.IPBlock != nil {
					blocks[to.IPBlock.CIDR] = to.IPBlock.Except
				}
			}
			if len(rule.Ports) == 1 && rule.Ports[0].Port != nil {
				api = append(api, rule)
			}
		}
		Expect(blocks).To(HaveKey("0.0.0.0/0"))
		Expect(blocks["0.0.0.0/0"]).To(ContainElements("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32"))
		Expect(blocks["0.0.0.0/0"]).NotTo(ContainElement("169.254.169.254/32"), "inside 169.254.0.0/16 already")
		Expect(blocks).NotTo(HaveKey("::/0"), "only what is routed on the internet")
		Expect(blocks["2000::/3"]).To(ContainElements("2001:db8::/32", "2002::/16"))
		Expect(blocks["64:ff9b::/96"]).To(ContainElements("64:ff9b::a00:0/104", "64:ff9b::7f00:0/104"))
		Expect(blocks).To(HaveKey("10.20.0.0/16"))
		Expect(api).To(HaveLen(1), "the API server's endpoint")
		Expect(net.ParseIP(hostOf(api[0].To[0].IPBlock.CIDR))).NotTo(BeNil())
	})

	It("step 6: takes token and network away from a completed sandbox", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "job")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })).To(Succeed())
		Eventually(identityNP(ctx, pod)).Should(notFound())
		Eventually(hasSecret(ctx, pod)).Should(notFound())
	})

	It("step 6: takes token and network away from a deleted sandbox, also from one whose name is used again", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "set-0")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Expect(env.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		next := injected(ctx, p, "set-0")
		Eventually(identityNP(ctx, pod)).Should(notFound())
		Eventually(hasSecret(ctx, pod)).Should(notFound())
		Eventually(identityNP(ctx, next)).Should(Succeed())
		Eventually(hasSecret(ctx, next)).Should(Succeed())
	})

	It("step 6: quarantine cuts a sandbox off, and taking it back restores it", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		annotate(ctx, pod, v1alpha1.QuarantineAnnotation, "true")
		Eventually(identityNP(ctx, pod)).Should(notFound())
		Eventually(hasSecret(ctx, pod)).Should(notFound())
		Eventually(eventsOn(ctx, pod)).Should(ContainElement(ContainSubstring("EgressQuarantined: quarantined")))
		annotate(ctx, pod, v1alpha1.QuarantineAnnotation, "")
		Eventually(hasSecret(ctx, pod)).Should(Succeed())
		Eventually(identityNP(ctx, pod)).Should(Succeed())
	})

	It("isolates, counts and names a pod that is older than the policy", func(ctx SpecContext) {
		pod := managertest.Pod(ns, "old", map[string]string{"app": "sandbox"})
		create(ctx, pod)
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		Eventually(eventsOn(ctx, pod)).Should(ContainElement(And(
			ContainSubstring("EgressUninjected"), ContainSubstring("SandboxEgress agents"), ContainSubstring("create it again"))))
		Eventually(func(g Gomega) {
			var live v1alpha1.SandboxEgress
			g.Expect(env.Client.Get(ctx, key(ns, "agents"), &live)).To(Succeed())
			g.Expect(live.Status.Sandboxes).To(Equal(v1alpha1.SandboxCounts{Matched: 1, Uninjected: 1}))
		}).Should(Succeed())
		var secrets corev1.SecretList
		Expect(env.Client.List(ctx, &secrets, client.InNamespace(ns))).To(Succeed())
		Expect(secrets.Items).To(BeEmpty())
	})

	It("says which NetworkPolicy of someone else widens the isolation, and when it is gone", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionIsolationWidened)).Should(HavePrefix("False/NoForeignNetworkPolicy"))
		foreign := &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "egress-everything",
				// The operator's labels must not hide it.
				Labels: map[string]string{v1alpha1.ComponentLabel: v1alpha1.ComponentIdentity, v1alpha1.PolicyKey: "agents"}},
			Spec: networkingv1.NetworkPolicySpec{
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
				Egress:      []networkingv1.NetworkPolicyEgressRule{{}},
			},
		}
		create(ctx, foreign)
		Eventually(condition(ctx, p, v1alpha1.ConditionIsolationWidened)).Should(And(HavePrefix("True/"), ContainSubstring("egress-everything")))
		Expect(env.Client.Delete(ctx, foreign)).To(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionIsolationWidened)).Should(HavePrefix("False/"))
	})

	It("becomes Ready when a proxy is available, with counts, address and hash", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("False/NoReplicaAvailable"))
		Expect(env.SimulateProxyAvailable(ctx, p, 2)).To(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("True/Ready"))
		pod := injected(ctx, p, "agent")
		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) {
			s.Phase = corev1.PodRunning
			s.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		})).To(Succeed())
		Eventually(func(g Gomega) {
			var live v1alpha1.SandboxEgress
			g.Expect(env.Client.Get(ctx, key(ns, "agents"), &live)).To(Succeed())
			g.Expect(live.Status.Sandboxes).To(Equal(v1alpha1.SandboxCounts{Matched: 1, Ready: 1}))
			g.Expect(live.Status.ProxyAddress).To(MatchRegexp(`^[0-9.]+:8443$`))
			g.Expect(live.Status.PolicyHash).To(MatchRegexp(`^[0-9a-f]{16}$`))
			g.Expect(live.Status.ObservedGeneration).To(Equal(live.Generation))
		}).Should(Succeed())
		Expect(env.SimulateProxyAvailable(ctx, p, 0)).To(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("False/NoReplicaAvailable"))
	})
})

func hostOf(cidr string) string {
	ip, _, err := net.ParseCIDR(cidr)
	if err != nil {
		return err.Error()
	}
	return ip.String()
}

// rv is the resource version as a number: in one API server it is the order of writes.
func rv(o client.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	Expect(err).NotTo(HaveOccurred())
	return n
}

// createdRV is that of an object that was written once.
func createdRV(o client.Object) uint64 {
	Expect(o.GetGeneration()).To(Equal(int64(1)))
	return rv(o)
}
