package webhook_test

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// The pods of these specs carry role=agent in namespaces that are not enforced, so no
// webhook is asked: what refuses is the admission policy alone.
var _ = Describe("Without any webhook the admission policies", func() {
	const id = "abcdefghij234567abcd"
	agent := map[string]string{"role": "agent"}

	// injected looks like what the webhook makes, as far as CEL can tell.
	injected := func(ns string) *corev1.Pod {
		pod := newPod(ns, map[string]string{"role": "agent", v1alpha1.IDKey: id})
		pod.Annotations = map[string]string{
			v1alpha1.IDKey: id, v1alpha1.PolicyKey: "agents", v1alpha1.InjectedAnnotation: "Env", v1alpha1.ContainerIDAnnotation: "session-1",
		}
		return pod
	}
	// policyInForce waits until the API server evaluates the policy.
	policyInForce := func(ctx context.Context, change func(*v1alpha1.SandboxEgressSpec), example map[string]string) string {
		GinkgoHelper()
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", change)
		Eventually(func() string {
			return message(k8s.Create(ctx, newPod(ns, example), client.DryRunAll))
		}).WithTimeout(10 * time.Second).Should(ContainSubstring("but was not injected for it"))
		return ns
	}

	It("admit an injected sandbox and refuse one that was not", func(ctx SpecContext) {
		ns := policyInForce(ctx, selector(agent), agent)
		Expect(k8s.Create(ctx, injected(ns))).To(Succeed())
		Expect(message(k8s.Create(ctx, newPod(ns, agent)))).To(ContainSubstring("but was not injected for it"))
		other := injected(ns)
		other.Annotations[v1alpha1.PolicyKey] = "tools"
		Expect(message(k8s.Create(ctx, other))).To(ContainSubstring("but was not injected for it"))
	})

	It("never concern kube-system and the operator's namespace", func(ctx SpecContext) {
		for _, name := range []string{"sandbox-egress-isolation", "sandbox-egress-binding"} {
			var policy admissionregistrationv1.ValidatingAdmissionPolicy
			Expect(k8s.Get(ctx, client.ObjectKey{Name: name}, &policy)).To(Succeed())
			selector, err := metav1.LabelSelectorAsSelector(policy.Spec.MatchConstraints.NamespaceSelector)
			Expect(err).NotTo(HaveOccurred())
			for namespace, want := range map[string]bool{"kube-system": false, "sandbox-egress-system": false, "team-a": true} {
				Expect(selector.Matches(labels.Set{corev1.LabelMetadataName: namespace})).To(Equal(want), namespace)
			}
		}
	})

	It("leave pods alone that no policy selects", func(ctx SpecContext) {
		ns := policyInForce(ctx, selector(agent), agent)
		for _, labels := range []map[string]string{nil, {"role": "web"}, {"app": "sandbox2"}} {
			pod := newPod(ns, labels)
			pod.Spec.HostNetwork = true
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true), Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
			Expect(k8s.Create(ctx, pod)).To(Succeed())
			pod.Labels = map[string]string{"role": "still-web"}
			Expect(k8s.Update(ctx, pod)).To(Succeed())
		}
	})

	DescribeTable("read selectors as Kubernetes does", func(ctx context.Context, s *metav1.LabelSelector, matching, others []map[string]string) {
		ns := policyInForce(ctx, func(spec *v1alpha1.SandboxEgressSpec) { spec.PodSelector = s }, matching[0])
		for _, labels := range matching {
			ok, err := match.Selects(&v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: "agents"}, Spec: v1alpha1.SandboxEgressSpec{PodSelector: s}}, labels)
			Expect(ok, err).To(BeTrue(), "%v", labels)
			Expect(message(k8s.Create(ctx, newPod(ns, labels), client.DryRunAll))).To(ContainSubstring("but was not injected for it"), "%v", labels)
		}
		for _, labels := range others {
			ok, err := match.Selects(&v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: "agents"}, Spec: v1alpha1.SandboxEgressSpec{PodSelector: s}}, labels)
			Expect(ok, err).To(BeFalse(), "%v", labels)
			Expect(k8s.Create(ctx, newPod(ns, labels), client.DryRunAll)).To(Succeed(), "%v", labels)
		}
	},
		Entry("labels", &metav1.LabelSelector{MatchLabels: map[string]string{"a": "1", "b": ""}},
			[]map[string]string{{"a": "1", "b": ""}, {"a": "1", "b": "", "c": "x"}}, []map[string]string{nil, {"a": "1"}, {"a": "2", "b": ""}}),
		Entry("everything", &metav1.LabelSelector{}, []map[string]string{nil, {"x": "y"}}, nil),
		Entry("In", requirement("a", metav1.LabelSelectorOpIn, "1", "2"), []map[string]string{{"a": "1"}, {"a": "2"}}, []map[string]string{nil, {"a": "3"}}),
		Entry("NotIn", requirement("a", metav1.LabelSelectorOpNotIn, "1", "2"), []map[string]string{nil, {"a": "3"}}, []map[string]string{{"a": "1"}, {"a": "2"}}),
		Entry("Exists", requirement("a", metav1.LabelSelectorOpExists), []map[string]string{{"a": "1"}, {"a": ""}}, []map[string]string{nil, {"b": "1"}}),
		Entry("DoesNotExist", requirement("a", metav1.LabelSelectorOpDoesNotExist), []map[string]string{nil, {"b": "1"}}, []map[string]string{{"a": "1"}}),
	)

	DescribeTable("refuse what leads out of the isolation", func(ctx context.Context, change func(*corev1.PodSpec), want string) {
		ns := policyInForce(ctx, selector(agent), agent)
		pod := injected(ns)
		change(&pod.Spec)
		Expect(message(k8s.Create(ctx, pod))).To(And(ContainSubstring("ValidatingAdmissionPolicy 'sandbox-egress-isolation'"), ContainSubstring(want)))
	},
		Entry("host network", func(s *corev1.PodSpec) { s.HostNetwork = true }, "host namespaces"),
		Entry("host PID", func(s *corev1.PodSpec) { s.HostPID = true }, "host namespaces"),
		Entry("host IPC", func(s *corev1.PodSpec) { s.HostIPC = true }, "host namespaces"),
		Entry("a privileged container", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}, "privileged"),
		Entry("a privileged init container", func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{{Name: "i", Image: "i"}, {Name: "j", Image: "j", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}}
		}, "privileged"),
		Entry("NET_ADMIN", capability("NET_ADMIN"), "capabilities"),
		Entry("NET_RAW", capability("NET_RAW"), "capabilities"),
		Entry("SYS_ADMIN", capability("SYS_ADMIN"), "capabilities"),
		Entry("ALL", capability("ALL"), "capabilities"),
		Entry("lower case with prefix", capability("cap_net_admin"), "capabilities"),
	)

	Describe("keep a running sandbox as it is", func() {
		var ns string
		var pod *corev1.Pod
		BeforeEach(func(ctx SpecContext) {
			ns = policyInForce(ctx, selector(agent), agent)
			pod = injected(ns)
			Expect(k8s.Create(ctx, pod)).To(Succeed())
		})
		patch := func(ctx context.Context, c client.Client, change func(*corev1.Pod)) string {
			changed := pod.DeepCopy()
			change(changed)
			return message(c.Patch(ctx, changed, client.MergeFrom(pod)))
		}

		It("its identity", func(ctx SpecContext) {
			for _, k := range []string{v1alpha1.IDKey, v1alpha1.PolicyKey, v1alpha1.InjectedAnnotation, v1alpha1.ContainerIDAnnotation} {
				Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Annotations[k] = "zzzzzzzzzzzzzzzzzzzz" })).To(ContainSubstring("cannot change"), "change %s", k)
				Expect(patch(ctx, k8s, func(p *corev1.Pod) { delete(p.Annotations, k) })).To(ContainSubstring("cannot change"), "remove %s", k)
			}
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Labels[v1alpha1.IDKey] = "zzzzzzzzzzzzzzzzzzzz" })).To(ContainSubstring("cannot change"))
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { delete(p.Labels, v1alpha1.IDKey) })).To(ContainSubstring("cannot change"))
		})
		It("the labels that select it", func(ctx SpecContext) {
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Labels["role"] = "web" })).To(ContainSubstring("cannot change while it runs"))
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { delete(p.Labels, "role") })).To(ContainSubstring("cannot change while it runs"))
		})
		It("against the status subresource too", func(ctx SpecContext) {
			changed := pod.DeepCopy()
			changed.Labels["role"] = "web"
			Expect(message(k8s.Status().Patch(ctx, changed, client.MergeFrom(pod)))).To(ContainSubstring("cannot change while it runs"))
			changed = pod.DeepCopy()
			changed.Annotations[v1alpha1.IDKey] = "zzzzzzzzzzzzzzzzzzzz"
			Expect(message(k8s.Status().Patch(ctx, changed, client.MergeFrom(pod)))).To(ContainSubstring("cannot change"))
		})
		It("against Bindings too", func(ctx SpecContext) {
			bind := func(meta metav1.ObjectMeta) string {
				meta.Name, meta.Namespace = pod.Name, ns
				b := &corev1.Binding{ObjectMeta: meta, Target: corev1.ObjectReference{Kind: "Node", Name: "node"}}
				return message(k8s.SubResource("binding").Create(ctx, pod, b))
			}
			Expect(bind(metav1.ObjectMeta{Labels: map[string]string{"role": "web"}})).To(ContainSubstring("a Binding may not set"))
			Expect(bind(metav1.ObjectMeta{Labels: map[string]string{v1alpha1.ComponentLabel: "proxy"}})).To(ContainSubstring("a Binding may not set"))
			Expect(bind(metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.IDKey: "zzzzzzzzzzzzzzzzzzzz"}})).To(ContainSubstring("a Binding may not set"))
			Expect(bind(metav1.ObjectMeta{Annotations: map[string]string{"scheduler": "1"}})).To(BeEmpty())
		})
		It("the images of relay and gate, but not those of its own", func(ctx SpecContext) {
			relayed := injected(ns)
			relayed.Spec.InitContainers = []corev1.Container{{Name: "egress-relay", Image: "good"}, {Name: "own", Image: "good"}}
			Expect(k8s.Create(ctx, relayed)).To(Succeed())
			evil := relayed.DeepCopy()
			evil.Spec.InitContainers[0].Image = "evil"
			Expect(message(k8s.Patch(ctx, evil, client.MergeFrom(relayed)))).To(ContainSubstring("images of egress-gate and egress-relay cannot change"))
			own := relayed.DeepCopy()
			own.Spec.InitContainers[1].Image = "better"
			own.Spec.Containers[0].Image = "better"
			Expect(k8s.Patch(ctx, own, client.MergeFrom(relayed))).To(Succeed())
		})
		It("but let everything else change", func(ctx SpecContext) {
			Expect(patch(ctx, k8s, func(p *corev1.Pod) {
				p.Labels["team"] = "a"
				p.Annotations["note"] = "b"
				p.Annotations[v1alpha1.AllowedHostsAnnotation] = "api.example.com"
				p.Finalizers = []string{"example.com/hold"}
			})).To(BeEmpty())
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Finalizers = nil })).To(BeEmpty())
			changed := pod.DeepCopy()
			changed.Status.Phase = corev1.PodRunning
			Expect(k8s.Status().Patch(ctx, changed, client.MergeFrom(pod))).To(Succeed())
		})
		It("quarantine is true or false", func(ctx SpecContext) {
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Annotations[v1alpha1.QuarantineAnnotation] = "True" })).To(ContainSubstring(`must be "true" or "false"`))
			Expect(patch(ctx, k8s, func(p *corev1.Pod) { p.Annotations[v1alpha1.QuarantineAnnotation] = "true" })).To(BeEmpty())
		})
		It("the operator may add the id label", func(ctx SpecContext) {
			Expect(patch(ctx, as(operatorUser), func(p *corev1.Pod) { delete(p.Labels, v1alpha1.IDKey) })).To(BeEmpty())
		})
		It("debug containers stay unprivileged", func(ctx SpecContext) {
			changed := pod.DeepCopy()
			changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: "i", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
			}}}
			Expect(message(k8s.SubResource("ephemeralcontainers").Update(ctx, changed))).To(ContainSubstring("privileged"))
		})
	})

	It("keep an ordinary pod from becoming a sandbox while it runs", func(ctx SpecContext) {
		ns := policyInForce(ctx, selector(agent), agent)
		pod := newPod(ns, map[string]string{"role": "web"})
		pod.Spec.HostNetwork = true
		Expect(k8s.Create(ctx, pod)).To(Succeed())
		pod.Labels["role"] = "agent"
		Expect(message(k8s.Update(ctx, pod))).To(ContainSubstring("cannot change while it runs"))
	})

	It("leave the status of a pod from before the policy to the kubelet", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		pod := newPod(ns, agent)
		pod.Spec.HostNetwork = true
		Expect(k8s.Create(ctx, pod)).To(Succeed())
		readyPolicy(ctx, ns, "agents", selector(agent))
		Eventually(func() string { return message(k8s.Create(ctx, newPod(ns, agent), client.DryRunAll)) }).WithTimeout(10 * time.Second).ShouldNot(BeEmpty())
		changed := pod.DeepCopy()
		changed.Status.Phase = corev1.PodRunning
		changed.Annotations = map[string]string{"cni": "done"}
		Expect(k8s.Status().Patch(ctx, changed, client.MergeFrom(pod))).To(Succeed())
	})

	Describe("keep the component label with the operator", func() {
		proxyLabels := match.ProxyPodLabels("agents")
		controlled := func(ns, apiVersion, kind string) *corev1.Pod {
			pod := newPod(ns, proxyLabels)
			pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: "agents-egress-proxy-1", UID: "1", Controller: ptr.To(true)}}
			return pod
		}
		deployment := func(ns string) *appsv1.Deployment {
			return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "proxy-"}, Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: proxyLabels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: proxyLabels}, Spec: newPod(ns, nil).Spec},
			}}
		}
		replicaSet := func(ns, owner string) *appsv1.ReplicaSet {
			d := deployment(ns)
			return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "proxy-",
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: owner, Name: "agents-egress-proxy", UID: "1", Controller: ptr.To(true)}}},
				Spec: appsv1.ReplicaSetSpec{Selector: d.Spec.Selector, Template: d.Spec.Template}}
		}

		It("on pods", func(ctx SpecContext) {
			ns := policyInForce(ctx, func(s *v1alpha1.SandboxEgressSpec) { s.PodSelector = &metav1.LabelSelector{} }, nil)
			Expect(k8s.Create(ctx, controlled(ns, "apps/v1", "ReplicaSet"), client.DryRunAll)).NotTo(Succeed(), "not even by an administrator")
			Expect(message(as(tenant).Create(ctx, controlled(ns, "apps/v1", "ReplicaSet")))).To(ContainSubstring("belongs to the operator's own pods"))
			Expect(message(as("system:serviceaccount:kube-system:statefulset-controller").Create(ctx, controlled(ns, "apps/v1", "StatefulSet")))).To(ContainSubstring("belongs to the operator's own pods"))
			Expect(message(as("system:kube-controller-manager").Create(ctx, controlled(ns, "batch/v1", "Job")))).To(ContainSubstring("belongs to the operator's own pods"))
			Expect(as("system:kube-controller-manager").Create(ctx, controlled(ns, "apps/v1", "ReplicaSet"))).To(Succeed())
			Expect(as(replicaSetUser).Create(ctx, controlled(ns, "apps/v1", "ReplicaSet"))).To(Succeed())
		})
		It("on running pods, and their images", func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			web := newPod(ns, map[string]string{"app": "web"})
			Expect(k8s.Create(ctx, web)).To(Succeed())
			web.Labels[v1alpha1.ComponentLabel] = "proxy"
			Expect(message(k8s.Update(ctx, web))).To(ContainSubstring("cannot change"))
			proxy := controlled(ns, "apps/v1", "ReplicaSet")
			Expect(as(replicaSetUser).Create(ctx, proxy)).To(Succeed())
			evil := proxy.DeepCopy()
			evil.Spec.Containers[0].Image = "evil.example/proxy"
			Expect(message(k8s.Patch(ctx, evil, client.MergeFrom(proxy)))).To(ContainSubstring("cannot change"))
			without := proxy.DeepCopy()
			delete(without.Labels, v1alpha1.ComponentLabel)
			Expect(message(k8s.Status().Patch(ctx, without, client.MergeFrom(proxy)))).To(ContainSubstring("cannot change"))
			proxy.Annotations = map[string]string{"note": "a"}
			Expect(k8s.Update(ctx, proxy)).To(Succeed())
		})
		It("on Deployments", func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			Expect(message(as(tenant).Create(ctx, deployment(ns)))).To(ContainSubstring("operator's own Deployments"))
			d := deployment(ns)
			Expect(as(operatorUser).Create(ctx, d)).To(Succeed())
			d.Spec.Replicas = ptr.To[int32](3)
			Expect(as(tenant).Update(ctx, d)).To(Succeed(), "scaling is nobody's secret")
			d.Spec.Template.Spec.Containers[0].Image = "evil.example/proxy"
			Expect(message(as(tenant).Update(ctx, d))).To(ContainSubstring("operator's own Deployments"))
			Expect(as(operatorUser).Update(ctx, d)).To(Succeed())
			plain := deployment(ns)
			plain.Spec.Selector, plain.Spec.Template.Labels = &metav1.LabelSelector{MatchLabels: agent}, map[string]string{"role": "agent"}
			Expect(as(tenant).Create(ctx, plain)).To(Succeed())
			plain.Spec.Template.Labels[v1alpha1.ComponentLabel] = "proxy"
			Expect(message(as(tenant).Update(ctx, plain))).To(ContainSubstring("operator's own Deployments"))
		})
		It("on ReplicaSets", func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			Expect(message(as(tenant).Create(ctx, replicaSet(ns, "Deployment")))).To(ContainSubstring("operator's own Deployments"))
			Expect(message(as("system:kube-controller-manager").Create(ctx, replicaSet(ns, "Rollout")))).To(ContainSubstring("operator's own Deployments"))
			rs := replicaSet(ns, "Deployment")
			Expect(as(deploymentUser).Create(ctx, rs)).To(Succeed())
			rs.Spec.Template.Spec.Containers[0].Image = "evil.example/proxy"
			Expect(message(as(tenant).Update(ctx, rs))).To(ContainSubstring("operator's own Deployments"))
		})
	})
})

func requirement(key string, op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}
}

func capability(name corev1.Capability) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		s.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{name}}}
	}
}
