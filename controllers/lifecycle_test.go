package controllers_test

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

var _ = Describe("Tokens over time", Ordered, func() {
	managed(startManager)
	var (
		ns string
		p  *v1alpha1.SandboxEgress
	)
	BeforeEach(func(ctx SpecContext) {
		ns = newNamespace(ctx)
		p = managertest.Policy(ns, "agents")
		create(ctx, p)
	})
	AfterEach(func(ctx SpecContext) { clean(ctx, ns) })

	running := func(ctx context.Context, pod *corev1.Pod) {
		GinkgoHelper()
		at := metav1.NewTime(clock.Now())
		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) {
			s.Phase, s.StartTime = corev1.PodRunning, &at
			s.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}}}
		})).To(Succeed())
	}

	It("renews a token at two thirds of its life, less the jitter, and the old one stays valid", func(ctx SpecContext) {
		pod := injected(ctx, p, "agent")
		var first string
		Eventually(func(g Gomega) { first, _ = tokenOf(ctx, g, p, pod) }).Should(Succeed())

		clock.SetTime(clock.Now().Add(147 * time.Minute)) // 4 h * 2/3 - 4 h/20 = 2 h 28 min
		poke(ctx, pod)
		Consistently(func(g Gomega) {
			raw, _ := tokenOf(ctx, g, p, pod)
			g.Expect(raw).To(Equal(first))
		}, 500*time.Millisecond).Should(Succeed())

		clock.SetTime(clock.Now().Add(2 * time.Minute))
		poke(ctx, pod)
		Eventually(func(g Gomega) {
			raw, claims := tokenOf(ctx, g, p, pod)
			g.Expect(raw).NotTo(Equal(first))
			g.Expect(claims.ExpiresAt.Time).To(BeTemporally("~", clock.Now().Add(4*time.Hour), 2*time.Second))
		}).Should(Succeed())
		_, err := verify(ctx, p, first)
		Expect(err).NotTo(HaveOccurred())
	})

	It("warns on an Env sandbox 15 minutes before the token it holds expires, and says when it has", func(ctx SpecContext) {
		pod := injected(ctx, p, "agent")
		relay := injected(ctx, p, "relay", func(pod *corev1.Pod) { pod.Annotations[v1alpha1.InjectedAnnotation] = "Relay" })
		Eventually(hasSecret(ctx, pod)).Should(Succeed())
		Eventually(hasSecret(ctx, relay)).Should(Succeed())
		clock.SetTime(clock.Now().Add(time.Second))
		running(ctx, pod)
		running(ctx, relay)

		clock.SetTime(clock.Now().Add(3 * time.Hour)) // renewed meanwhile
		poke(ctx, pod)
		poke(ctx, relay)
		Consistently(eventsOn(ctx, pod), 500*time.Millisecond).Should(BeEmpty())
		clock.SetTime(clock.Now().Add(46 * time.Minute))
		poke(ctx, pod)
		poke(ctx, relay)
		Eventually(eventsOn(ctx, pod)).Should(ContainElement(And(HavePrefix("EgressTokenExpiring"), ContainSubstring("restart the container"))))
		clock.SetTime(clock.Now().Add(15 * time.Minute))
		poke(ctx, pod)
		poke(ctx, relay)
		Eventually(eventsOn(ctx, pod)).Should(ContainElement(And(HavePrefix("EgressTokenExpired"), ContainSubstring("407 token_expired"))))
		Expect(eventsOn(ctx, relay)()).To(BeEmpty())
	})

	It("gives an Env pod with a longer deadline a token for its whole life, also when it was pending for long", func(ctx SpecContext) {
		long := func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = new(int64(48 * 3600)) }
		pod := injected(ctx, p, "job", long)
		relay := injected(ctx, p, "relay-job", long, func(pod *corev1.Pod) { pod.Annotations[v1alpha1.InjectedAnnotation] = "Relay" })
		Eventually(func(g Gomega) {
			_, claims := tokenOf(ctx, g, p, pod)
			g.Expect(claims.ExpiresAt.Sub(claims.IssuedAt.Time)).To(BeNumerically(">=", 48*time.Hour))
			_, claims = tokenOf(ctx, g, p, relay)
			g.Expect(claims.ExpiresAt.Sub(claims.IssuedAt.Time)).To(Equal(4 * time.Hour))
		}).Should(Succeed())

		clock.SetTime(clock.Now().Add(time.Hour))
		poke(ctx, pod)
		var last string
		Eventually(func(g Gomega) {
			raw, claims := tokenOf(ctx, g, p, pod)
			g.Expect(claims.ExpiresAt.Time).To(BeTemporally(">=", clock.Now().Add(48*time.Hour)))
			last = raw
		}).Should(Succeed())
		running(ctx, pod)
		clock.SetTime(clock.Now().Add(47 * time.Hour))
		poke(ctx, pod)
		Consistently(func(g Gomega) {
			raw, _ := tokenOf(ctx, g, p, pod) // still verifies
			g.Expect(raw).To(Equal(last))
		}, 500*time.Millisecond).Should(Succeed())
		Expect(eventsOn(ctx, pod)()).To(BeEmpty())
	})

	It("mints anew when what the token says changes, but not when hosts do", func(ctx SpecContext) {
		pod := injected(ctx, p, "agent")
		var first string
		Eventually(func(g Gomega) { first, _ = tokenOf(ctx, g, p, pod) }).Should(Succeed())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.AllowedHosts = append(p.Spec.AllowedHosts, "two.example.com") })
		Consistently(func(g Gomega) {
			raw, _ := tokenOf(ctx, g, p, pod)
			g.Expect(raw).To(Equal(first))
		}, 500*time.Millisecond).Should(Succeed())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) {
			p.Spec.Token.Organization, p.Spec.Token.ContainerBinding = "org-2", v1alpha1.BindingDisabled
		})
		Eventually(func(g Gomega) {
			_, claims := tokenOf(ctx, g, p, pod)
			g.Expect(claims.OrganizationUUID).To(Equal("org-2"))
			g.Expect(bool(claims.EnforceContainerBinding)).To(BeFalse())
			g.Expect(claims.AllowedHostList()).To(ConsistOf("api.example.com", "two.example.com"))
		}).Should(Succeed())
	})

	It("rotates the signing key with overlap: tokens of the old key stay valid to their end", func(ctx SpecContext) {
		rotate := func(step time.Duration) {
			GinkgoHelper()
			clock.SetTime(clock.Now().Add(step))
			s, err := signingSecret(ctx)
			Expect(err).NotTo(HaveOccurred())
			annotate(ctx, s, v1alpha1.Group+"/test-poke", clock.Now().String())
		}
		ring := func() *token.Ring {
			GinkgoHelper()
			s, err := signingSecret(ctx)
			Expect(err).NotTo(HaveOccurred())
			r, err := token.ParseRing(s.Data)
			Expect(err).NotTo(HaveOccurred())
			return r
		}
		published := func() []string {
			var cm corev1.ConfigMap
			if err := env.Client.Get(ctx, key(ns, v1alpha1.JWKSName("agents")), &cm); err != nil {
				return []string{err.Error()}
			}
			keys, err := token.ParseJWKS([]byte(cm.Data[v1alpha1.ConfigMapKeyJWKS]))
			if err != nil {
				return []string{err.Error()}
			}
			return keys.KIDs()
		}
		oldKID := ring().Active().KID

		rotate(30*24*time.Hour - 5*time.Minute)
		Eventually(func() int { return len(ring().KeySet().KIDs()) }).Should(BeNumerically(">=", 2), "the next key is published")
		Expect(ring().Active().KID).To(Equal(oldKID), "and does not sign yet")
		Eventually(published).Should(ConsistOf(ring().KeySet().KIDs()))
		pod := injected(ctx, p, "agent")
		var old string
		Eventually(func(g Gomega) { old, _ = tokenOf(ctx, g, p, pod) }).Should(Succeed())

		rotate(11 * time.Minute)
		Eventually(func() string { return ring().Active().KID }).ShouldNot(Equal(oldKID))
		Eventually(published).Should(ContainElements(oldKID, ring().Active().KID))
		_, err := verify(ctx, p, old)
		Expect(err).NotTo(HaveOccurred(), "a token of the old key")
		fresh := injected(ctx, p, "fresh")
		Eventually(func(g Gomega) {
			s, err := identitySecret(ctx, fresh)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(s.Annotations[v1alpha1.Group+"/key-id"]).To(Equal(ring().Active().KID))
		}).Should(Succeed())

		rotate(25 * time.Hour)
		Eventually(published).ShouldNot(ContainElement(oldKID), "after the last token of the old key")
	})

	It("never loses the only key: a deleted or damaged Secret is restored", func(ctx SpecContext) {
		before, err := signingSecret(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(env.Client.Delete(ctx, before)).To(Succeed())
		Eventually(func(g Gomega) {
			s, err := signingSecret(ctx)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(s.Data).To(HaveKeyWithValue(token.RingActiveKey, before.Data[token.RingActiveKey]))
		}).Should(Succeed())
		update(ctx, before, func(s *corev1.Secret) { s.Data = map[string][]byte{"junk": []byte("x")} })
		Eventually(func(g Gomega) {
			s, err := signingSecret(ctx)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(s.Data).To(HaveKeyWithValue(token.RingActiveKey, before.Data[token.RingActiveKey]))
		}).Should(Succeed())
	})

	It("takes a revoked key out at once and mints every token anew", func(ctx SpecContext) {
		pod := injected(ctx, p, "agent")
		var old string
		Eventually(func(g Gomega) { old, _ = tokenOf(ctx, g, p, pod) }).Should(Succeed())
		s, err := signingSecret(ctx)
		Expect(err).NotTo(HaveOccurred())
		ring, err := token.ParseRing(s.Data)
		Expect(err).NotTo(HaveOccurred())
		annotate(ctx, s, v1alpha1.Group+"/revoke-key", ring.Active().KID)
		Eventually(func() error { _, err := verify(ctx, p, old); return err }).Should(MatchError(token.ErrUnknownKey))
		Eventually(func(g Gomega) { _, _ = tokenOf(ctx, g, p, pod) }).Should(Succeed())
	})
})

var _ = Describe("Drift", Ordered, func() {
	managed(startManager)
	var (
		ns  string
		p   *v1alpha1.SandboxEgress
		pod *corev1.Pod
	)
	BeforeAll(func(ctx SpecContext) {
		ns = newNamespace(ctx)
		p = managertest.Policy(ns, "agents")
		create(ctx, p)
		pod = injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("False/NoReplicaAvailable"))
	})
	AfterAll(func(ctx SpecContext) { clean(ctx, ns) })

	proxy := func(o client.Object) func() client.Object {
		return func() client.Object { o.SetName(v1alpha1.ProxyName("agents")); return o }
	}
	named := func(o client.Object, name string) func() client.Object {
		return func() client.Object { o.SetName(name); return o }
	}
	identity := func(o client.Object) func() client.Object {
		return func() client.Object { o.SetName(v1alpha1.IdentityName(sandboxID(pod))); return o }
	}
	open := []networkingv1.NetworkPolicyEgressRule{{}}
	const within = 3 * time.Second

	DescribeTable("is repaired within seconds",
		func(ctx SpecContext, which func() client.Object, change func(client.Object)) {
			o := which()
			o.SetNamespace(ns)
			Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(o), o)).To(Succeed())
			good := o.DeepCopyObject().(client.Object)
			same := func(g Gomega) {
				live := good.DeepCopyObject().(client.Object)
				g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(good), live)).To(Succeed())
				g.Expect(equality.Semantic.DeepEqual(content(live), content(good))).To(BeTrue(), "%T is as before", live)
			}
			start := time.Now()
			change(o)
			Expect(env.Client.Update(ctx, o)).To(Succeed())
			Eventually(same, within).Should(Succeed())
			AddReportEntry("change repaired after", time.Since(start).String())

			start = time.Now()
			Expect(env.Client.Delete(ctx, good)).To(Succeed())
			Eventually(func() error {
				live := good.DeepCopyObject().(client.Object)
				return env.Client.Get(ctx, client.ObjectKeyFromObject(good), live)
			}, within).Should(Succeed())
			AddReportEntry("deletion repaired after", time.Since(start).String())
		},
		Entry("default-deny NetworkPolicy opened", named(&networkingv1.NetworkPolicy{}, v1alpha1.DefaultDenyName("agents")), func(o client.Object) {
			o.(*networkingv1.NetworkPolicy).Spec.Egress = open
		}),
		Entry("default-deny NetworkPolicy moved off the sandboxes", named(&networkingv1.NetworkPolicy{}, v1alpha1.DefaultDenyName("agents")), func(o client.Object) {
			o.(*networkingv1.NetworkPolicy).Spec.PodSelector.MatchLabels["also"] = "this"
		}),
		Entry("default-deny NetworkPolicy without its labels", named(&networkingv1.NetworkPolicy{}, v1alpha1.DefaultDenyName("agents")), func(o client.Object) {
			o.SetLabels(nil)
		}),
		Entry("sandbox NetworkPolicy opened", identity(&networkingv1.NetworkPolicy{}), func(o client.Object) {
			o.(*networkingv1.NetworkPolicy).Spec.Egress = open
		}),
		Entry("proxy NetworkPolicy opened", proxy(&networkingv1.NetworkPolicy{}), func(o client.Object) {
			o.(*networkingv1.NetworkPolicy).Spec.Egress = open
		}),
		Entry("Deployment with another image", proxy(&appsv1.Deployment{}), func(o client.Object) {
			o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image = "example.test/other"
		}),
		Entry("Deployment with a container beside the proxy", proxy(&appsv1.Deployment{}), func(o client.Object) {
			spec := &o.(*appsv1.Deployment).Spec.Template.Spec
			spec.Containers = append(spec.Containers, corev1.Container{Name: "spy", Image: "example.test/spy"})
		}),
		Entry("Deployment on the host network", proxy(&appsv1.Deployment{}), func(o client.Object) {
			o.(*appsv1.Deployment).Spec.Template.Spec.HostNetwork = true
		}),
		Entry("Service with an external address", proxy(&corev1.Service{}), func(o client.Object) {
			o.(*corev1.Service).Spec.ExternalIPs = []string{"192.0.2.1"}
		}),
		Entry("Service with another selector", proxy(&corev1.Service{}), func(o client.Object) {
			o.(*corev1.Service).Spec.Selector[v1alpha1.PolicyKey] = "other"
		}),
		Entry("Role that may do more", proxy(&rbacv1.Role{}), func(o client.Object) {
			o.(*rbacv1.Role).Rules = append(o.(*rbacv1.Role).Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}})
		}),
		Entry("RoleBinding for someone else", proxy(&rbacv1.RoleBinding{}), func(o client.Object) {
			o.(*rbacv1.RoleBinding).Subjects[0].Name = "other"
		}),
		Entry("PodDisruptionBudget", proxy(&policyv1.PodDisruptionBudget{}), func(o client.Object) {
			o.(*policyv1.PodDisruptionBudget).Spec.MaxUnavailable.IntVal = 7
		}),
		Entry("ServiceAccount that mounts its token", proxy(&corev1.ServiceAccount{}), func(o client.Object) {
			o.(*corev1.ServiceAccount).AutomountServiceAccountToken = new(true)
		}),
		Entry("ConfigMap with one entry more", named(&corev1.ConfigMap{}, v1alpha1.JWKSName("agents")), func(o client.Object) {
			o.(*corev1.ConfigMap).Data["more"] = "x"
		}),
		Entry("ConfigMap with other keys", named(&corev1.ConfigMap{}, v1alpha1.JWKSName("agents")), func(o client.Object) {
			o.(*corev1.ConfigMap).Data[v1alpha1.ConfigMapKeyJWKS] = `{"keys":[]}`
		}),
	)

	It("repairs a RoleBinding that was made anew with another role, which cannot be updated", func(ctx SpecContext) {
		o := &rbacv1.RoleBinding{}
		Expect(env.Client.Get(ctx, key(ns, v1alpha1.ProxyName("agents")), o)).To(Succeed())
		Expect(env.Client.Delete(ctx, o)).To(Succeed())
		other := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: o.Name, Labels: o.Labels}, RoleRef: o.RoleRef, Subjects: o.Subjects}
		other.RoleRef.Name = "admin"
		if err := env.Client.Create(ctx, other); err == nil {
			Eventually(func(g Gomega) {
				live := new(rbacv1.RoleBinding)
				g.Expect(env.Client.Get(ctx, key(ns, o.Name), live)).To(Succeed())
				g.Expect(live.RoleRef.Name).To(Equal(o.Name))
			}, within).Should(Succeed())
		}
	})

	It("replaces a token that someone wrote over, without ever reading it", func(ctx SpecContext) {
		s, err := identitySecret(ctx, pod)
		Expect(err).NotTo(HaveOccurred())
		update(ctx, s, func(s *corev1.Secret) { s.Data[v1alpha1.SecretKeyToken] = []byte("stolen") })
		Eventually(func(g Gomega) { _, _ = tokenOf(ctx, g, p, pod) }, within).Should(Succeed())
		update(ctx, s, func(s *corev1.Secret) { delete(s.Data, v1alpha1.SecretKeyProxyURL) })
		Eventually(func(g Gomega) {
			s, err := identitySecret(ctx, pod)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(s.Data).To(HaveKey(v1alpha1.SecretKeyProxyURL))
		}, within).Should(Succeed())
		Expect(env.Client.Delete(ctx, s)).To(Succeed())
		Eventually(hasSecret(ctx, pod), within).Should(Succeed())
	})

	It("does not let the default-deny policy go while a sandbox runs, whoever deletes it, and renews it after", func(ctx SpecContext) {
		other := managertest.Policy(ns, "other")
		other.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}
		create(ctx, other)
		last := injected(ctx, other, "last")
		Eventually(identityNP(ctx, last)).Should(Succeed())
		deny, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("other"))
		Expect(err).NotTo(HaveOccurred())
		Expect(env.Client.Delete(ctx, deny)).To(Succeed())
		Consistently(func() error { _, err := getNP(ctx, ns, deny.Name); return err }, time.Second).Should(Succeed())
		late := injected(ctx, other, "late")
		Eventually(identityNP(ctx, late)).Should(Succeed(), "it is enforced all the same")
		for _, pod := range []*corev1.Pod{last, late} {
			Expect(env.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		}
		Eventually(func(g Gomega) {
			fresh, err := getNP(ctx, ns, deny.Name)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(fresh.UID).NotTo(Equal(deny.UID))
			g.Expect(fresh.DeletionTimestamp).To(BeNil())
		}).Should(Succeed())
	})

	It("puts the namespace label back", func(ctx SpecContext) {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		update(ctx, n, func(n *corev1.Namespace) { delete(n.Labels, v1alpha1.EnforcedLabel) })
		Eventually(func(g Gomega) {
			live := new(corev1.Namespace)
			g.Expect(env.Client.Get(ctx, key("", ns), live)).To(Succeed())
			g.Expect(live.Labels).To(HaveKeyWithValue(v1alpha1.EnforcedLabel, "true"))
		}, within).Should(Succeed())
	})

	It("moves running sandboxes between granularities without a moment of more than DNS and proxy", func(ctx SpecContext) {
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.NetworkPolicy.Granularity = v1alpha1.GranularityShared })
		Eventually(identityNP(ctx, pod)).Should(notFound())
		unlabelled := injected(ctx, p, "shared", func(pod *corev1.Pod) { delete(pod.Labels, v1alpha1.IDKey) })
		Eventually(hasSecret(ctx, unlabelled)).Should(Succeed())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.NetworkPolicy.Granularity = v1alpha1.GranularityPerPod })
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Eventually(identityNP(ctx, unlabelled)).Should(Succeed())
		Eventually(func(g Gomega) {
			live := new(corev1.Pod)
			g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(unlabelled), live)).To(Succeed())
			g.Expect(live.Labels).To(HaveKeyWithValue(v1alpha1.IDKey, sandboxID(unlabelled)))
		}).Should(Succeed())
	})
})

// content is what drift is about: everything but what the API server counts.
func content(o client.Object) client.Object {
	c := o.DeepCopyObject().(client.Object)
	c.SetResourceVersion("")
	c.SetGeneration(0)
	c.SetManagedFields(nil)
	c.SetUID("")
	c.SetCreationTimestamp(metav1.Time{})
	if d, ok := c.(*appsv1.Deployment); ok {
		d.Status = appsv1.DeploymentStatus{}
	}
	return c
}

var _ = Describe("Policies that change or go", Ordered, func() {
	managed(startManager)
	var ns string
	BeforeEach(func(ctx SpecContext) { ns = newNamespace(ctx) })
	AfterEach(func(ctx SpecContext) { clean(ctx, ns) })

	It("keeps the last valid spec in force while the current one is invalid, and says why", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionPolicyEnforced)).Should(HavePrefix("True/InForce"))
		var before v1alpha1.SandboxEgress
		Expect(env.Client.Get(ctx, key(ns, "agents"), &before)).To(Succeed())

		update(ctx, p, func(p *v1alpha1.SandboxEgress) {
			p.Spec.AllowedHosts = []v1alpha1.HostPattern{"*.*.bad"}
			p.Spec.Proxy.Replicas = new(int32(7))
			p.Spec.NetworkPolicy.Granularity = v1alpha1.GranularityShared
		})
		Eventually(condition(ctx, p, v1alpha1.ConditionPolicyEnforced)).Should(And(
			HavePrefix("False/InvalidSpec"), ContainSubstring("last valid spec stays in force"), ContainSubstring("spec.allowedHosts[0]"), ContainSubstring("generation 2")))
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("False/InvalidSpec"))
		var after v1alpha1.SandboxEgress
		Expect(env.Client.Get(ctx, key(ns, "agents"), &after)).To(Succeed())
		Expect(after.Status.PolicyHash).To(Equal(before.Status.PolicyHash))
		d, err := deployment(ctx, p)
		Expect(err).NotTo(HaveOccurred())
		Expect(*d.Spec.Replicas).To(Equal(int32(2)))
		deny, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents"))
		Expect(err).NotTo(HaveOccurred())
		Expect(deny.Spec.Egress).To(BeEmpty())

		pod := injected(ctx, p, "agent")
		Eventually(func(g Gomega) {
			_, claims := tokenOf(ctx, g, p, pod)
			g.Expect(claims.AllowedHosts).To(Equal("api.example.com"))
		}).Should(Succeed())
		Eventually(identityNP(ctx, pod)).Should(Succeed(), "granularity is of the last valid spec too")

		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.AllowedHosts = []v1alpha1.HostPattern{"api.example.com"} })
		Eventually(condition(ctx, p, v1alpha1.ConditionPolicyEnforced)).Should(HavePrefix("True/InForce"))
	})

	It("isolates under a policy that was never valid, and starts no proxy", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		p.Spec.Presets = []string{"no-such-preset"}
		p.Spec.NetworkPolicy.Granularity = v1alpha1.GranularityShared
		create(ctx, p)
		Eventually(condition(ctx, p, v1alpha1.ConditionPolicyEnforced)).Should(And(HavePrefix("False/InvalidSpec"), ContainSubstring("no-such-preset"), ContainSubstring("no egress")))
		deny, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents"))
		Expect(err).NotTo(HaveOccurred())
		Expect(deny.Spec.Egress).To(BeEmpty())
		_, err = deployment(ctx, p)
		Expect(err).To(notFound())
	})

	It("takes the default-deny policy away last, when no sandbox runs, with the reason on status meanwhile", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		// The worst way to delete it: the garbage collector would take the dependents first.
		Expect(env.Client.Delete(ctx, p, client.PropagationPolicy(metav1.DeletePropagationForeground))).To(Succeed())
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(notFound())
		Eventually(identityNP(ctx, pod)).Should(notFound())
		Eventually(hasSecret(ctx, pod)).Should(notFound())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(And(HavePrefix("False/SandboxesStillRun"), ContainSubstring("agent")))
		Eventually(eventsOn(ctx, pod)).Should(ContainElement(HavePrefix("EgressPolicyGone")))
		Consistently(func() error { _, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents")); return err }, time.Second).Should(Succeed())

		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) { s.Phase = corev1.PodFailed })).To(Succeed())
		Eventually(func() error { _, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents")); return err }).Should(notFound())
		// The garbage collector is what ends a foreground deletion.
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Finalizers = nil })
		Eventually(func(g Gomega) {
			live := new(corev1.Namespace)
			g.Expect(env.Client.Get(ctx, key("", ns), live)).To(Succeed())
			g.Expect(live.Labels).NotTo(HaveKey(v1alpha1.EnforcedLabel))
		}).Should(Succeed())
		for _, o := range []client.Object{&corev1.Service{}, &corev1.ServiceAccount{}, &rbacv1.Role{}, &rbacv1.RoleBinding{}, &policyv1.PodDisruptionBudget{}, &networkingv1.NetworkPolicy{}} {
			Expect(env.Client.Get(ctx, key(ns, v1alpha1.ProxyName("agents")), o)).To(notFound(), "%T", o)
		}
	})

	It("goes with its namespace, which takes nothing new while it ends", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		// What the namespace controller does, in the order that leaves the most to be desired.
		Expect(env.Client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})).To(Succeed())
		Expect(env.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		Expect(env.Client.DeleteAllOf(ctx, &networkingv1.NetworkPolicy{}, client.InNamespace(ns))).To(Succeed())
		Eventually(func() error { _, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents")); return err }).Should(notFound())
		Expect(env.Client.Delete(ctx, p)).To(Succeed())
		Eventually(func() error { return env.Client.Get(ctx, client.ObjectKeyFromObject(p), p) }).Should(notFound())
	})

	It("keeps isolating when someone takes the finalizer off, and cleans up once nothing runs", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Finalizers = nil })
		Eventually(func() error {
			live := p.DeepCopy()
			if err := env.Client.Get(ctx, client.ObjectKeyFromObject(p), live); err != nil {
				return client.IgnoreNotFound(err)
			}
			live.Finalizers = nil
			if err := env.Client.Update(ctx, live); err != nil {
				return client.IgnoreNotFound(err)
			}
			return client.IgnoreNotFound(env.Client.Delete(ctx, live))
		}).Should(Succeed())
		Eventually(identityNP(ctx, pod)).Should(notFound())
		Consistently(func() error { _, err := getNP(ctx, ns, v1alpha1.DefaultDenyName("agents")); return err }, time.Second).Should(Succeed())
	})

	It("says that a selector cannot be read, and lets such a policy go", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		p.Spec.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
		create(ctx, p)
		Eventually(condition(ctx, p, v1alpha1.ConditionPolicyEnforced)).Should(And(HavePrefix("False/InvalidSelector"), ContainSubstring("nothing is isolated")))
		Expect(env.Client.Delete(ctx, p)).To(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(ContainSubstring("not found"))
	})

	It("warns both pods that use one container id", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		same := func(pod *corev1.Pod) { pod.Annotations[v1alpha1.ContainerIDAnnotation] = "session-1" }
		one, two := injected(ctx, p, "one", same), injected(ctx, p, "two", same)
		for pod, other := range map[*corev1.Pod]string{one: "two", two: "one"} {
			Eventually(eventsOn(ctx, pod)).Should(ContainElement(And(HavePrefix("EgressDuplicateContainerID"), ContainSubstring("pod "+other+" "))))
		}
	})

	It("gives nothing to a pod that carries the id of another", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		one := injected(ctx, p, "one")
		Eventually(identityNP(ctx, one)).Should(Succeed())
		two := injected(ctx, p, "two", func(pod *corev1.Pod) { pod.Annotations[v1alpha1.IDKey] = sandboxID(one) })
		Eventually(eventsOn(ctx, two)).Should(ContainElement(HavePrefix("EgressDuplicateID")))
		s, err := identitySecret(ctx, one)
		Expect(err).NotTo(HaveOccurred())
		Expect(hasOwner(s, one)).To(BeTrue())
	})

	It("says on the pod what is wrong with its annotation, and copies only what the policy allows into the token", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		narrowed := injected(ctx, p, "narrowed", func(pod *corev1.Pod) {
			pod.Annotations[v1alpha1.AllowedHostsAnnotation] = "api.example.com, evil.example.com"
		})
		Eventually(func(g Gomega) {
			_, claims := tokenOf(ctx, g, p, narrowed)
			g.Expect(claims.AllowedHosts).To(Equal("api.example.com"))
		}).Should(Succeed())
		broken := injected(ctx, p, "broken", func(pod *corev1.Pod) { pod.Annotations[v1alpha1.AllowedHostsAnnotation] = "*.*.bad" })
		Eventually(eventsOn(ctx, broken)).Should(ContainElement(And(HavePrefix("EgressInvalidAllowedHosts"), ContainSubstring("*.*.bad"))))
	})

	It("follows the API server's addresses in the proxy's NetworkPolicy", func(ctx SpecContext) {
		p := managertest.Policy(ns, "agents")
		p.Spec.Proxy.NetworkPolicy = v1alpha1.Disabled
		create(ctx, p)
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(Succeed())
		_, err := getNP(ctx, ns, v1alpha1.ProxyName("agents"))
		Expect(err).To(notFound())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.Proxy.NetworkPolicy = v1alpha1.Enabled })
		Eventually(func() error { _, err := getNP(ctx, ns, v1alpha1.ProxyName("agents")); return err }).Should(Succeed())
		update(ctx, p, func(p *v1alpha1.SandboxEgress) { p.Spec.Proxy.NetworkPolicy = v1alpha1.Disabled })
		Eventually(func() error { _, err := getNP(ctx, ns, v1alpha1.ProxyName("agents")); return err }).Should(notFound())
	})
})
