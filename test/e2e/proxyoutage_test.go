package e2e

import (
	"context"
	"fmt"
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
			undisturbed(ctx, monitor, begin, failover)
		}, SpecTimeout(3*long))

		It("a sandbox hardly notices when one after the other crashes", func(ctx SpecContext) {
			begin := time.Now()
			for _, proxy := range proxiesReady(ctx, policy, 2) {
				restarts := proxy.Status.ContainerStatuses[0].RestartCount
				// The kernel's OOM killer does the same.
				Expect(processOf(&proxy, "/egress-proxy").Signal(unix.SIGKILL)).To(Succeed())
				Eventually(func(g Gomega) {
					for _, now := range readyProxies(ctx, g, policy, 2) {
						if now.UID == proxy.UID {
							g.Expect(now.Status.ContainerStatuses[0].RestartCount).To(BeNumerically(">", restarts))
						}
					}
				}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			}
			undisturbed(ctx, monitor, begin, failover)
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

// processOf finds the pod's process with that program; the kubelet names the cgroups of a
// pod after its UID.
func processOf(pod *corev1.Pod, program string) process.ID {
	GinkgoHelper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	Expect(err).NotTo(HaveOccurred())
	for _, dir := range dirs {
		// What has ended meanwhile cannot be read.
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if strings.HasPrefix(string(args), program+"\x00") && strings.Contains(string(cgroup), "pod"+string(pod.UID)) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			Expect(err).NotTo(HaveOccurred())
			id, err := process.Find(pid)
			Expect(err).NotTo(HaveOccurred())
			return id
		}
	}
	Fail(fmt.Sprintf("pod %s runs no %s", pod.Name, program))
	return process.ID{}
}
