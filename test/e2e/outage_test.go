package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

const (
	// unnoticed is how long a client that asks again and again may go without an answer while
	// something is taken away that it does not need.
	unnoticed = 5 * time.Second
	// failover is the same for one of its proxies.
	failover = 2 * time.Second
)

func outageSpecs() {
	Describe("a running sandbox keeps what is allowed, and nothing else", Ordered, func() {
		var ns string
		var pod *corev1.Pod
		var monitor *platform.Monitor

		BeforeAll(func(ctx SpecContext) {
			ns = newNamespace(ctx, "outage")
			ready(ctx, platform.Policy(ns, "agents", "allowed.example"))
			pod = platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
			monitor = startMonitor(ctx, pod)
		}, NodeTimeout(2*long))

		It("while the operator and its webhooks are down, and no new sandbox starts", func(ctx SpecContext) {
			begin := time.Now()
			scaleOperator(ctx, 0)
			DeferCleanup(func(ctx SpecContext) { scaleOperator(ctx, 2) }, NodeTimeout(2*long))

			err := p.Client.Create(ctx, platform.Sandbox(ns, "new"))
			Expect(err).To(MatchError(ContainSubstring("failed calling webhook")))
			By("starting pods that are no sandboxes where there is no policy")
			elsewhere := newNamespace(ctx, "elsewhere")
			ready(ctx, platform.Pod(elsewhere, "pod", "anything"))
			By("holding on to the labels that isolate a sandbox")
			Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
			before := pod.DeepCopy()
			pod.Labels["app"] = "released"
			Expect(p.Client.Patch(ctx, pod, client.MergeFrom(before))).To(MatchError(ContainSubstring("cannot change while it runs")))

			scaleOperator(ctx, 2)
			ready(ctx, platform.Sandbox(ns, "new"))
			undisturbed(ctx, monitor, begin, unnoticed)
		}, SpecTimeout(3*long))

		It("while the API server is down", func(ctx SpecContext) {
			begin := time.Now()
			Expect(p.Cluster.StopComponent(ctx, node.APIServer, 0)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) {
				Expect(p.Cluster.StartComponent(ctx, node.APIServer)).To(Succeed())
			}, NodeTimeout(long))
			time.Sleep(10 * time.Second) // the outage itself
			Expect(p.Cluster.StartComponent(ctx, node.APIServer)).To(Succeed())
			Eventually(func() error {
				return p.Client.Create(ctx, platform.Sandbox(ns, "after"))
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			Expect(p.WaitReady(ctx, platform.Sandbox(ns, "after"), long)).To(Succeed())
			undisturbed(ctx, monitor, begin, unnoticed)
		}, SpecTimeout(3*long))

		It("while the kubelet restarts", func(ctx SpecContext) {
			begin := time.Now()
			Expect(p.Cluster.RestartComponent(ctx, node.Kubelet)).To(Succeed())
			ready(ctx, platform.Sandbox(ns, "later"))
			undisturbed(ctx, monitor, begin, unnoticed)
		}, SpecTimeout(2*long))
	})
}

func startMonitor(ctx context.Context, pod *corev1.Pod) *platform.Monitor {
	GinkgoHelper()
	m, err := p.StartMonitor(ctx, pod, "http://allowed.example/monitor", "http://evil-site.example/monitor", "198.51.100.10:80")
	Expect(err).NotTo(HaveOccurred())
	Eventually(func(g Gomega) {
		r, err := m.Report(ctx, time.Time{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.AllowedOK).To(BeNumerically(">", 0))
		g.Expect(r.Denied).To(HaveKey(403))
		g.Expect(r.DirectBlocked).To(BeNumerically(">", 0))
	}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
	return m
}

// undisturbed asserts that since then allowed requests went on without a longer gap, and that nothing else ever got out.
func undisturbed(ctx context.Context, m *platform.Monitor, since time.Time, tolerance time.Duration) {
	GinkgoHelper()
	now := time.Now()
	var r platform.Report
	Eventually(func(g Gomega) {
		var err error
		r, err = m.Report(ctx, since)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.Last).To(BeTemporally(">", now))
	}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
	GinkgoWriter.Println(r)
	Expect(r.AllowedOK).To(BeNumerically(">", 10), r.String())
	Expect(r.Outage).To(BeNumerically("<=", tolerance), r.String())
	contained(r)
}

// contained asserts that no denied request and no direct connection got through.
func contained(r platform.Report) {
	GinkgoHelper()
	Expect(r.Denied).To(HaveKey(403), r.String())
	for status := range r.Denied {
		// 0: no answer. 503: the proxy ends or begins.
		Expect(status).To(BeElementOf(0, 403, 503), r.String())
	}
	Expect(r.DirectOpen).To(BeZero(), r.String())
	Expect(r.DirectBlocked).To(BeNumerically(">", 0), r.String())
}

func scaleOperator(ctx context.Context, replicas int32) {
	GinkgoHelper()
	operator := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: platform.SystemNamespace, Name: "sandbox-egress-manager"}}
	patch(ctx, operator, func() { operator.Spec.Replicas = ptr.To(replicas) })
	Eventually(func(g Gomega) {
		g.Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(operator), operator)).To(Succeed())
		g.Expect(operator.Status.ObservedGeneration).To(Equal(operator.Generation))
		g.Expect(operator.Status.ReadyReplicas).To(Equal(replicas))
		var pods corev1.PodList
		g.Expect(p.Client.List(ctx, &pods, client.InNamespace(platform.SystemNamespace), client.MatchingLabels(operator.Spec.Selector.MatchLabels))).To(Succeed())
		g.Expect(pods.Items).To(HaveLen(int(replicas)))
	}).WithContext(ctx).WithTimeout(long).Should(Succeed())
}
