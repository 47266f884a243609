package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func liveSpecs() {
	Describe("while a sandbox runs", Ordered, func() {
		var policy *v1alpha1.SandboxEgress
		var pod *corev1.Pod

		BeforeAll(func(ctx SpecContext) {
			ns := newNamespace(ctx, "live")
			policy = platform.Policy(ns, "agents", "allowed.example")
			ready(ctx, policy)
			pod = platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
		}, NodeTimeout(2*long))

		It("a host that is added is reached, without a restart", func(ctx SpecContext) {
			Expect(curl(ctx, pod, "http://example.org/")).To(refused(403, "host_not_allowed"))
			patch(ctx, policy, func() { policy.Spec.AllowedHosts = []v1alpha1.HostPattern{"allowed.example", "example.org"} })
			begin := time.Now()
			eventuallyCurl(ctx, pod, soon, haveStatus(200), "http://example.org/")
			GinkgoWriter.Printf("the added host was reached after %s\n", time.Since(begin).Round(time.Millisecond))
		}, SpecTimeout(long))

		It("the removal of a host cuts its tunnels and no others", func(ctx SpecContext) {
			removed, kept := openStream(ctx, pod, "example.org"), openStream(ctx, pod, "allowed.example")
			begin := time.Now()
			patch(ctx, policy, func() { policy.Spec.AllowedHosts = []v1alpha1.HostPattern{"allowed.example"} })
			Eventually(removed.ended).WithContext(ctx).WithTimeout(soon).Should(BeTrue())
			GinkgoWriter.Printf("the tunnel was cut after %s\n", removed.last(ctx).Sub(begin).Round(time.Millisecond))
			Expect(curl(ctx, pod, "https://example.org/")).To(refused(403, "host_not_allowed"))
			now := time.Now()
			Eventually(func() time.Time { return kept.last(ctx) }).WithContext(ctx).WithTimeout(soon).Should(BeTemporally(">", now))
			Expect(kept.ended(ctx)).To(BeFalse())
			kept.stop(ctx)
		}, SpecTimeout(long))

		It("quarantine cuts it off within two seconds, at the proxy and in the network", func(ctx SpecContext) {
			stream := openStream(ctx, pod, "allowed.example")
			address := "tcp:" + proxyAddress(ctx, policy)
			begin := time.Now()
			annotate(ctx, pod, v1alpha1.QuarantineAnnotation, "true")
			Eventually(stream.ended).WithContext(ctx).WithTimeout(soon).Should(BeTrue())
			after := stream.last(ctx).Sub(begin)
			GinkgoWriter.Printf("the last line arrived %s after the annotation\n", after.Round(time.Millisecond))
			Expect(after).To(BeNumerically("<", 2*time.Second))
			Eventually(func(g Gomega) {
				results, err := p.Probe(ctx, pod, address)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(results).To(HaveKeyWithValue(address, HavePrefix("blocked")))
			}).WithContext(ctx).WithTimeout(soon).Should(Succeed())
			Expect(proxyLog(ctx, policy)).To(ContainElement(SatisfyAll(
				ContainSubstring(`"reason":"quarantined"`), ContainSubstring(`"host":"allowed.example"`), ContainSubstring(`"event":"close"`),
			)), "the proxy itself closed the tunnel")
		}, SpecTimeout(long))
	})
}

// stream is a download inside a pod that goes on until it is cut.
type stream struct {
	pod  *corev1.Pod
	file string
}

// openStream opens one in a TLS tunnel and returns when lines arrive.
func openStream(ctx context.Context, pod *corev1.Pod, host string) *stream {
	GinkgoHelper()
	s := &stream{pod: pod, file: fmt.Sprintf("/tmp/stream-%d", time.Now().UnixNano())}
	shell(ctx, pod, fmt.Sprintf(`(curl -sSN 'https://%s/stream?lines=0&interval=100ms' >%[2]s 2>%[2]s.err; echo $? >%[2]s.exit) >/dev/null 2>&1 &`, host, s.file))
	Eventually(func() time.Time { return s.last(ctx) }).WithContext(ctx).WithTimeout(soon).ShouldNot(BeZero())
	return s
}

// last is when the origin sent the last whole line that has arrived; zero without one.
func (s *stream) last(ctx context.Context) time.Time {
	GinkgoHelper()
	out := shell(ctx, s.pod, "tail -n 2 "+s.file)
	lines := strings.Split(out.Stdout, "\n")
	for i := len(lines) - 2; i >= 0; i-- {
		if _, stamp, ok := strings.Cut(lines[i], " "); ok {
			t, err := time.Parse(time.RFC3339Nano, stamp)
			Expect(err).NotTo(HaveOccurred())
			return t
		}
	}
	return time.Time{}
}

// ended says whether the download has ended, or stands still for two seconds: a cut in the
// network leaves the client waiting.
func (s *stream) ended(ctx context.Context) bool {
	GinkgoHelper()
	out := shell(ctx, s.pod, "test -e "+s.file+".exit || test $(($(date +%s) - $(stat -c %Y "+s.file+"))) -ge 2")
	return out.Exit == 0
}

// stop ends every download of the pod.
func (s *stream) stop(ctx context.Context) {
	GinkgoHelper()
	out := shell(ctx, s.pod, "pkill -x curl")
	Expect(out.Exit).To(BeZero(), out.String())
}

// proxyLog returns the lines that the policy's proxies have written.
func proxyLog(ctx context.Context, policy *v1alpha1.SandboxEgress) []string {
	GinkgoHelper()
	pods, err := p.ProxyPods(ctx, policy.Namespace, policy.Name)
	Expect(err).NotTo(HaveOccurred())
	var lines []string
	for i := range pods {
		out, err := p.Cluster.Kubectl(ctx, "-n", policy.Namespace, "logs", pods[i].Name)
		Expect(err).NotTo(HaveOccurred())
		lines = append(lines, strings.Split(string(out), "\n")...)
	}
	return lines
}
