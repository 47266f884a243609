package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func proxyOutageSpecs() {
	Describe("with two proxies", Ordered, func() {
		var policy *v1alpha1.SandboxEgress
		var pod *corev1.Pod
		var monitor *platform.Monitor

		BeforeAll(func(ctx SpecContext) {
			ns := newNamespace(ctx, "proxies")
			policy = platform.Policy(ns, "agents", "allowed.example")
			policy.Spec.Proxy.Replicas = ptr.To[int32](2)
			ready(ctx, policy)
			pod = platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
			proxiesReady(ctx, policy, 2)
			monitor = startMonitor(ctx, pod)
		}, NodeTimeout(2*long))

		It("a sandbox does not notice when one after the other is deleted", func(ctx SpecContext) {
			begin := time.Now()
			for _, proxy := range proxiesReady(ctx, policy, 2) {
				Expect(p.Client.Delete(ctx, &proxy)).To(Succeed())
				Eventually(func(g Gomega) {
					for _, now := range readyProxies(ctx, g, policy, 2) {
						g.Expect(now.UID).NotTo(Equal(proxy.UID))
					}
				}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			}
			undisturbed(ctx, monitor, begin)
		}, SpecTimeout(3*long))

		It("a sandbox hardly notices when one after the other crashes", func(ctx SpecContext) {
			begin := time.Now()
			for range 2 {
				restarts := restartsOf(proxiesReady(ctx, policy, 2))
				// The kernel's OOM killer does the same.
				id := proxyProcess(policy)
				Expect(id.Signal(unix.SIGKILL)).To(Succeed())
				Eventually(func(g Gomega) {
					g.Expect(restartsOf(readyProxies(ctx, g, policy, 2))).To(BeNumerically(">", restarts))
				}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			}
			undisturbed(ctx, monitor, begin)
		}, SpecTimeout(3*long))
	})
}

// readyProxies returns the policy's proxy pods that are not ending; all must be Ready.
func readyProxies(ctx context.Context, g Gomega, policy *v1alpha1.SandboxEgress, want int) []corev1.Pod {
	GinkgoHelper()
	pods, err := p.ProxyPods(ctx, policy.Namespace, policy.Name)
	g.Expect(err).NotTo(HaveOccurred())
	pods = slices.DeleteFunc(pods, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	g.Expect(pods).To(HaveLen(want))
	for i := range pods {
		g.Expect(platform.PodReady(&pods[i])).To(Succeed())
	}
	return pods
}

func proxiesReady(ctx context.Context, policy *v1alpha1.SandboxEgress, want int) (pods []corev1.Pod) {
	GinkgoHelper()
	Eventually(func(g Gomega) { pods = readyProxies(ctx, g, policy, want) }).WithContext(ctx).WithTimeout(long).Should(Succeed())
	return pods
}

func restartsOf(pods []corev1.Pod) (n int32) {
	for _, pod := range pods {
		for _, c := range pod.Status.ContainerStatuses {
			n += c.RestartCount
		}
	}
	return n
}

// proxyProcess is the oldest process of the policy's proxies, so that a second call after a
// crash returns another one.
func proxyProcess(policy *v1alpha1.SandboxEgress) process.ID {
	GinkgoHelper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	Expect(err).NotTo(HaveOccurred())
	var oldest process.ID
	for _, file := range files {
		content, err := os.ReadFile(file)
		args := strings.Split(string(content), "\x00")
		if err != nil || args[0] != "/egress-proxy" || !slices.Contains(args, "--policy="+policy.Namespace+"/"+policy.Name) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		Expect(err).NotTo(HaveOccurred())
		if id, err := process.Find(pid); err == nil && (oldest.PID == 0 || id.Start < oldest.Start) {
			oldest = id
		}
	}
	Expect(oldest.PID).NotTo(BeZero(), "no process of the proxy")
	return oldest
}
