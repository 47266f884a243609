package webhook_test

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

var _ = Describe("A matched pod", func() {
	It("gets identity, environment and gate under Env", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		pod := sandboxPod(ns)
		pod.Spec.InitContainers = []corev1.Container{{Name: "fetch", Image: "example.com/fetch:1"}}
		pod.Spec.Containers[0].Env = []corev1.EnvVar{
			{Name: "HTTP_PROXY", Value: "http://evil.example:3128"}, {Name: "https_proxy", Value: "http://evil.example:3128"}, {Name: "MODE", Value: "fast"},
		}
		Expect(createPod(ctx, k8s, pod)).To(Succeed())

		id := pod.Annotations[v1alpha1.IDKey]
		Expect(injector.ValidID(id)).To(BeTrue(), "id %q", id)
		Expect(pod.Annotations).To(HaveKeyWithValue(v1alpha1.PolicyKey, "agents"))
		Expect(pod.Annotations).To(HaveKeyWithValue(v1alpha1.InjectedAnnotation, "Env"))
		Expect(pod.Labels).To(HaveKeyWithValue(v1alpha1.IDKey, id))
		Expect(pod.Spec.InitContainers).To(HaveLen(2))
		gate := pod.Spec.InitContainers[0]
		Expect(gate.Name).To(Equal(injector.GateContainer))
		Expect(gate.Args).To(Equal([]string{"gate", "--proxy=10.96.12.7:8443", "--canary=10.96.12.7:9902", "--timeout=1m0s"}))
		Expect(gate.Env).To(BeEmpty())
		for _, c := range []corev1.Container{pod.Spec.InitContainers[1], pod.Spec.Containers[0]} {
			url := envOf(c, "HTTP_PROXY")
			Expect(url).To(HaveLen(1), c.Name)
			Expect(url[0].Value).To(BeEmpty())
			Expect(url[0].ValueFrom.SecretKeyRef.Name).To(Equal("egress-" + id))
			Expect(url[0].ValueFrom.SecretKeyRef.Key).To(Equal("proxy-url"))
			Expect(url[0].ValueFrom.SecretKeyRef.Optional).To(BeNil())
			Expect(envOf(c, "https_proxy")).To(Equal([]corev1.EnvVar{{Name: "https_proxy", Value: "$(HTTP_PROXY)"}}))
		}
		Expect(envOf(pod.Spec.Containers[0], "MODE")).To(HaveLen(1))
	})

	It("gets the relay, and no credential of its own, under Relay", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = v1alpha1.DeliveryRelay })
		pod := sandboxPod(ns)
		pod.Annotations = map[string]string{v1alpha1.ContainerIDAnnotation: "session-7"}
		Expect(createPod(ctx, k8s, pod)).To(Succeed())

		Expect(pod.Spec.InitContainers).To(HaveLen(2))
		relay := pod.Spec.InitContainers[1]
		Expect(relay.Name).To(Equal(injector.RelayContainer))
		Expect(*relay.RestartPolicy).To(Equal(corev1.ContainerRestartPolicyAlways))
		Expect(relay.Args).To(ContainElements("serve", "--container-id=session-7", "--proxy=10.96.12.7:8443"))
		Expect(relay.Resources.Requests.Memory().String()).To(Equal("16Mi"))
		Expect(relay.VolumeMounts).To(ContainElement(HaveField("Name", injector.TokenVolume)))
		Expect(pod.Spec.Containers[0].VolumeMounts).NotTo(ContainElement(HaveField("Name", injector.TokenVolume)))
		Expect(envOf(pod.Spec.Containers[0], "HTTP_PROXY")).To(Equal([]corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://127.0.0.1:3128"}}))
		Expect(envOf(pod.Spec.Containers[0], "JAVA_TOOL_OPTIONS")).To(HaveLen(1))
	})

	It("has no id label under Shared and no gate when that is disabled", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) {
			s.NetworkPolicy.Granularity, s.StartGate = v1alpha1.GranularityShared, v1alpha1.Disabled
		})
		pod := sandboxPod(ns)
		Expect(createPod(ctx, k8s, pod)).To(Succeed())
		Expect(pod.Labels).NotTo(HaveKey(v1alpha1.IDKey))
		Expect(pod.Annotations).To(HaveKey(v1alpha1.IDKey))
		Expect(pod.Spec.InitContainers).To(BeEmpty())
	})

	It("is found by any selector once its namespace is enforced", func(ctx SpecContext) {
		ns := enforced(ctx)
		readyPolicy(ctx, ns, "agents", selector(map[string]string{"role": "agent"}))
		pod := newPod(ns, map[string]string{"role": "agent"})
		Expect(createPod(ctx, k8s, pod)).To(Succeed())
		Expect(pod.Annotations).To(HaveKey(v1alpha1.IDKey))
	})

	It("passes the Pod Security Standard restricted when its own containers do", func(ctx SpecContext) {
		ns := newNamespace(ctx, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
		readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = v1alpha1.DeliveryRelay })
		pod := sandboxPod(ns)
		pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false), RunAsNonRoot: ptr.To(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		Expect(createPod(ctx, k8s, pod)).To(Succeed())
	})

	It("gives every pod its own id, and a dry run leaves no trace", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		before := injections("Env")
		seen := map[string]bool{}
		for range 5 {
			pod := sandboxPod(ns)
			Expect(createPod(ctx, k8s, pod)).To(Succeed())
			seen[pod.Annotations[v1alpha1.IDKey]] = true
		}
		Expect(seen).To(HaveLen(5))
		Expect(k8s.Create(ctx, sandboxPod(ns), client.DryRunAll)).To(Succeed())
		Expect(injections("Env") - before).To(Equal(5.0))
	})

	It("is one of 500 at once, each with its own id", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		Expect(createPod(ctx, k8s, sandboxPod(ns))).To(Succeed())
		cfg := rest.CopyConfig(environment.Config)
		cfg.QPS = -1
		c, err := client.New(cfg, client.Options{Scheme: scheme})
		Expect(err).NotTo(HaveOccurred())
		var group errgroup.Group
		group.SetLimit(50)
		start := time.Now()
		for range 500 {
			group.Go(func() error { return c.Create(ctx, sandboxPod(ns)) })
		}
		Expect(group.Wait()).To(Succeed())
		AddReportEntry("500 pods", time.Since(start).String())
		var pods corev1.PodList
		Expect(k8s.List(ctx, &pods, client.InNamespace(ns))).To(Succeed())
		ids := map[string]bool{}
		for _, p := range pods.Items {
			ids[p.Annotations[v1alpha1.IDKey]] = true
		}
		Expect(ids).To(HaveLen(501))
	}, NodeTimeout(time.Minute))

	// envtest has no controllers: the pods are made as the controllers make them.
	DescribeTable("of a workload's template is injected", func(ctx context.Context, workload func(ns string, t corev1.PodTemplateSpec) (client.Object, string, string), user string) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "sandbox"}}, Spec: sandboxPod(ns).Spec}
		template.Spec.RestartPolicy = corev1.RestartPolicyNever
		obj, apiVersion, kind := workload(ns, template)
		Expect(k8s.Create(ctx, obj)).To(Succeed(), "templates stay as they are")
		pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
		pod.Namespace, pod.GenerateName = ns, obj.GetName()+"-"
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: obj.GetName(), UID: obj.GetUID(), Controller: ptr.To(true)}}
		Expect(createPod(ctx, as(user), pod)).To(Succeed())
		Expect(pod.Annotations).To(HaveKey(v1alpha1.IDKey))
		Expect(pod.Spec.InitContainers[0].Name).To(Equal(injector.GateContainer))
	},
		Entry("Job", func(ns string, t corev1.PodTemplateSpec) (client.Object, string, string) {
			return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "job"}, Spec: batchv1.JobSpec{Template: t}}, "batch/v1", "Job"
		}, "system:serviceaccount:kube-system:job-controller"),
		Entry("StatefulSet", func(ns string, t corev1.PodTemplateSpec) (client.Object, string, string) {
			t.Spec.RestartPolicy = corev1.RestartPolicyAlways
			return &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "set"}, Spec: appsv1.StatefulSetSpec{
				ServiceName: "set", Selector: &metav1.LabelSelector{MatchLabels: t.Labels}, Template: t,
			}}, "apps/v1", "StatefulSet"
		}, "system:serviceaccount:kube-system:statefulset-controller"),
	)

	Describe("that another webhook changes afterwards", func() {
		It("is made whole again by the reinvocation", func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = v1alpha1.DeliveryRelay })
			pod := newPod(ns, map[string]string{"app": "sandbox", "mesh": "polite"})
			before := injections("Relay")
			Expect(createPod(ctx, k8s, pod)).To(Succeed())
			names := []string{}
			for _, c := range pod.Spec.InitContainers {
				names = append(names, c.Name)
			}
			Expect(names).To(Equal([]string{injector.GateContainer, injector.RelayContainer, "mesh-init"}))
			Expect(pod.Spec.Containers[1].Name).To(Equal("mesh"))
			Expect(envOf(pod.Spec.Containers[1], "HTTP_PROXY")).To(HaveLen(1))
			Expect(pod.Spec.Volumes).To(HaveLen(1))
			Expect(injections("Relay") - before).To(Equal(1.0))
		})

		It("is refused when the other one insists", func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			readyPolicy(ctx, ns, "agents", nil)
			err := createPod(ctx, k8s, newPod(ns, map[string]string{"app": "sandbox", "mesh": "stubborn"}))
			Expect(message(err)).To(And(ContainSubstring("another admission webhook changed"), ContainSubstring("/spec/initContainers")))
		})
	})

	DescribeTable("is refused", func(ctx context.Context, change func(*corev1.Pod), want ...string) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = v1alpha1.DeliveryRelay })
		pod := sandboxPod(ns)
		pod.Annotations = map[string]string{}
		change(pod)
		err := createPod(ctx, as(tenant), pod)
		for _, part := range want {
			Expect(message(err)).To(ContainSubstring(part))
		}
	},
		Entry("with a forged id", func(p *corev1.Pod) { p.Annotations[v1alpha1.IDKey] = "abcdefghij234567abcd" }, "annotations[egress.sandbox.dev/id]", "is set by the operator"),
		Entry("with a whole forged identity", func(p *corev1.Pod) {
			p.Annotations[v1alpha1.IDKey], p.Annotations[v1alpha1.PolicyKey], p.Annotations[v1alpha1.InjectedAnnotation] = "abcdefghij234567abcd", "agents", "Relay"
			p.Labels[v1alpha1.IDKey] = "abcdefghij234567abcd"
		}, "annotations[egress.sandbox.dev/id]", "annotations[egress.sandbox.dev/policy]", "labels[egress.sandbox.dev/id]"),
		Entry("with a container of the relay's name", func(p *corev1.Pod) { p.Spec.Containers[0].Name = injector.RelayContainer }, "spec.containers[0].name"),
		Entry("with a mount of the token that injection would add", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: injector.TokenVolume, MountPath: "/t"}}
		}, "spec.containers[0].volumeMounts[0]"),
		Entry("with another sandbox's Secret", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "egress-abcdefghij234567abcd"}}}}
		}, "spec.volumes[0].secret.secretName", "identity of a sandbox"),
		Entry("with host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "hostNetwork"),
		Entry("with a shared process namespace under Relay", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr.To(true) }, "spec.shareProcessNamespace"),
		Entry("with a privileged container", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}, "privileged"),
		Entry("with a capability", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_RAW"}}}
		}, "NET_RAW"),
		Entry("with the proxy's label", func(p *corev1.Pod) { p.Labels[v1alpha1.ComponentLabel] = v1alpha1.ComponentProxy }, "egress.sandbox.dev/component", "remove it"),
		Entry("with a container id that is none", func(p *corev1.Pod) { p.Annotations[v1alpha1.ContainerIDAnnotation] = "a:b" }, "annotations[egress.sandbox.dev/container-id]"),
		Entry("with a host list that is none", func(p *corev1.Pod) { p.Annotations[v1alpha1.AllowedHostsAnnotation] = "api.example.com,exa mple.com" }, "annotations[egress.sandbox.dev/allowed-hosts]", "exa mple.com"),
		Entry("with a quarantine that is none", func(p *corev1.Pod) { p.Annotations[v1alpha1.QuarantineAnnotation] = "True" }, "egress.sandbox.dev/quarantine", "true"),
	)

	It("is refused, retryably, while the proxy has no address", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		policy := newPolicy(ns, "agents", nil)
		Expect(k8s.Create(ctx, policy)).To(Succeed())
		err := k8s.Create(ctx, sandboxPod(ns)) // at once: the cache need not have the policy yet
		Expect(apierrors.IsServiceUnavailable(err)).To(BeTrue(), "%v", err)
		Expect(message(err)).To(ContainSubstring(`SandboxEgress "agents" has no status.proxyAddress`))
		policy.Status.ProxyAddress = proxyAddress
		Expect(k8s.Status().Update(ctx, policy)).To(Succeed())
		Expect(createPod(ctx, k8s, sandboxPod(ns))).To(Succeed())
	})

	It("is refused when two policies match, naming both", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		readyPolicy(ctx, ns, "tools", selector(map[string]string{"tier": "batch"}))
		pod := newPod(ns, map[string]string{"app": "sandbox", "tier": "batch"})
		Eventually(func() string { return message(k8s.Create(ctx, pod.DeepCopy())) }).Should(
			And(ContainSubstring("agents, tools"), ContainSubstring("more than one SandboxEgress")))
	})

	It("is refused while its policy is being deleted", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		policy := readyPolicy(ctx, ns, "agents", nil)
		policy.Finalizers = []string{v1alpha1.IsolationFinalizer}
		Expect(k8s.Update(ctx, policy)).To(Succeed())
		Expect(k8s.Delete(ctx, policy)).To(Succeed())
		Eventually(func() string { return message(k8s.Create(ctx, sandboxPod(ns))) }).Should(ContainSubstring("is being deleted"))
		Expect(k8s.Get(ctx, client.ObjectKeyFromObject(policy), policy)).To(Succeed())
		policy.Finalizers = nil
		Expect(k8s.Update(ctx, policy)).To(Succeed(), "the finalizer comes off")
	})
})

var _ = Describe("A pod that no policy matches", func() {
	It("passes untouched in an enforced namespace, privileges included", func(ctx SpecContext) {
		ns := enforced(ctx)
		readyPolicy(ctx, ns, "agents", nil)
		pod := newPod(ns, map[string]string{"app": "web"})
		pod.Spec.HostNetwork = true
		pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://corp:3128"}}
		c, got := warned()
		Expect(c.Create(ctx, pod)).To(Succeed())
		Expect(pod.Annotations).To(BeEmpty())
		Expect(pod.Labels).To(Equal(map[string]string{"app": "web"}))
		Expect(pod.Spec.InitContainers).To(BeEmpty())
		Expect(pod.Spec.Containers[0].Env).To(Equal([]corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://corp:3128"}}))
		Expect(*got).To(BeEmpty())
	})

	It("passes with a warning when it has app=sandbox", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		c, got := warned()
		pod := sandboxPod(ns)
		Expect(c.Create(ctx, pod)).To(Succeed())
		Expect(pod.Annotations).To(BeEmpty())
		Expect(*got).To(ContainElement(ContainSubstring("its egress is not restricted")))
	})

	It("passes in kube-system with app=sandbox", func(ctx SpecContext) {
		c, got := warned()
		pod := sandboxPod("kube-system")
		Expect(c.Create(ctx, pod, client.DryRunAll)).To(Succeed())
		Expect(*got).To(BeEmpty())
	})

	It("may still not play a sandbox in an enforced namespace", func(ctx SpecContext) {
		ns := enforced(ctx)
		readyPolicy(ctx, ns, "agents", nil)
		pod := newPod(ns, nil)
		pod.Annotations = map[string]string{v1alpha1.IDKey: "abcdefghij234567abcd"}
		Expect(message(k8s.Create(ctx, pod))).To(ContainSubstring("annotations[egress.sandbox.dev/id]"))
	})
})

var _ = Describe("An ephemeral container", func() {
	debug := func(ctx context.Context, pod *corev1.Pod, change func(*corev1.EphemeralContainer)) error {
		c := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "example.com/debug:1"}}
		if change != nil {
			change(&c)
		}
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, c)
		return k8s.SubResource("ephemeralcontainers").Update(ctx, pod)
	}
	for _, delivery := range []v1alpha1.Delivery{v1alpha1.DeliveryEnv, v1alpha1.DeliveryRelay} {
		It("of a sandbox gets its environment under "+string(delivery), func(ctx SpecContext) {
			ns := newNamespace(ctx, nil)
			readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = delivery })
			pod := sandboxPod(ns)
			Expect(createPod(ctx, k8s, pod)).To(Succeed())
			Expect(debug(ctx, pod, func(c *corev1.EphemeralContainer) {
				c.Env = []corev1.EnvVar{{Name: "http_proxy", Value: "http://evil.example"}}
			})).To(Succeed())
			c := corev1.Container(pod.Spec.EphemeralContainers[0].EphemeralContainerCommon)
			Expect(envOf(c, "HTTP_PROXY")).To(HaveLen(1))
			Expect(envOf(c, "http_proxy")).To(Equal([]corev1.EnvVar{{Name: "http_proxy", Value: "$(HTTP_PROXY)"}}))

			By("a second one, the first unchanged")
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug2", Image: "example.com/debug:1"}})
			Expect(k8s.SubResource("ephemeralcontainers").Update(ctx, pod)).To(Succeed())
			Expect(pod.Spec.EphemeralContainers[1].Env).NotTo(BeEmpty())
		})
	}

	DescribeTable("is refused", func(ctx context.Context, change func(*corev1.EphemeralContainer), want string) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", func(s *v1alpha1.SandboxEgressSpec) { s.Delivery = v1alpha1.DeliveryRelay })
		pod := sandboxPod(ns)
		Expect(createPod(ctx, k8s, pod)).To(Succeed())
		Expect(message(debug(ctx, pod, change))).To(ContainSubstring(want))
	},
		Entry("privileged", func(c *corev1.EphemeralContainer) {
			c.SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}, "privileged"),
		Entry("with NET_ADMIN", func(c *corev1.EphemeralContainer) {
			c.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
		}, "NET_ADMIN"),
		Entry("in the relay's process namespace", func(c *corev1.EphemeralContainer) { c.TargetContainerName = injector.RelayContainer }, "targetContainerName"),
		Entry("with the relay's token", func(c *corev1.EphemeralContainer) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: injector.TokenVolume, MountPath: "/t"}}
		}, "volumeMounts"),
	)

	It("of an ordinary pod stays as it is", func(ctx SpecContext) {
		ns := enforced(ctx)
		readyPolicy(ctx, ns, "agents", nil)
		pod := newPod(ns, map[string]string{"app": "web"})
		Expect(k8s.Create(ctx, pod)).To(Succeed())
		Expect(debug(ctx, pod, func(c *corev1.EphemeralContainer) {
			c.SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		})).To(Succeed())
		Expect(pod.Spec.EphemeralContainers[0].Env).To(BeEmpty())
	})
})

var _ = Describe("The narrowing annotation", func() {
	It("changes live, and a wrong list is refused with the wrong entry", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		pod := sandboxPod(ns)
		Expect(createPod(ctx, k8s, pod)).To(Succeed())
		set := func(v string) error {
			base := pod.DeepCopy()
			pod.Annotations[v1alpha1.AllowedHostsAnnotation] = v
			err := k8s.Patch(ctx, pod, client.MergeFrom(base))
			if err != nil {
				*pod = *base
			}
			return err
		}
		Expect(set("api.example.com")).To(Succeed())
		Expect(set("")).To(Succeed())
		Expect(message(set("https://api.example.com"))).To(And(ContainSubstring("allowed-hosts"), ContainSubstring("https://api.example.com")))
	})
})

func injections(delivery string) float64 {
	GinkgoHelper()
	families, err := registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, f := range families {
		if f.GetName() != "sandbox_egress_operator_injections_total" {
			continue
		}
		for _, m := range f.Metric {
			if m.Label[0].GetValue() == delivery {
				return m.Counter.GetValue()
			}
		}
	}
	return 0
}

var _ = Describe("Metrics", func() {
	It("count denials by reason and pass the linter", func(ctx SpecContext) {
		ns := newNamespace(ctx, nil)
		readyPolicy(ctx, ns, "agents", nil)
		pod := sandboxPod(ns)
		pod.Annotations = map[string]string{v1alpha1.IDKey: "x"}
		Expect(k8s.Create(ctx, pod)).NotTo(Succeed())
		problems, err := testutil.GatherAndLint(registry)
		Expect(err).NotTo(HaveOccurred())
		Expect(problems).To(BeEmpty())
		n, err := testutil.GatherAndCount(registry, "sandbox_egress_operator_admission_denials_total")
		Expect(err).NotTo(HaveOccurred())
		Expect(n).To(BeNumerically(">", 0))
	})
})
