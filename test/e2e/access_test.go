package e2e

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func accessSpecs() {
	Describe("a sandbox", Ordered, func() {
		var policy *v1alpha1.SandboxEgress
		var pod *corev1.Pod
		var begin time.Time

		BeforeAll(func(ctx SpecContext) {
			begin = time.Now()
			ns := newNamespace(ctx, "access")
			policy = platform.Policy(ns, "agents", "allowed.example", "*.example.org", "db.example.net:8443", "mixed.example", "metadata.example")
			policy.Spec.Rules = []v1alpha1.Rule{{Hosts: []v1alpha1.HostPattern{"api.example.com"}, Methods: []v1alpha1.HTTPMethod{"GET"}, Paths: []v1alpha1.PathPattern{"/v1/*"}}}
			policy.Spec.DeniedHosts = []v1alpha1.HostPattern{"denied.example.org"}
			ready(ctx, policy)
			pod = platform.Sandbox(ns, "sandbox")
			ready(ctx, pod)
		}, NodeTimeout(2*long))

		It("reaches allowed hosts over http, https and CONNECT", func(ctx SpecContext) {
			Expect(curl(ctx, pod, "http://allowed.example/hello")).To(haveStatus(200))
			Expect(curl(ctx, pod, "https://allowed.example/hello")).To(SatisfyAll(haveStatus(200), HaveField("Connect", 200)))
			Expect(curl(ctx, pod, "--proxytunnel", "http://allowed.example/hello")).To(SatisfyAll(haveStatus(200), HaveField("Connect", 200)))
			Expect(curl(ctx, pod, "http://a.b.example.org/")).To(haveStatus(200))
			Expect(curl(ctx, pod, "https://db.example.net:8443/")).To(haveStatus(200))
			events, err := p.Reached(internet.SiteA, begin)
			Expect(err).NotTo(HaveOccurred())
			Expect(events).To(ContainElement(SatisfyAll(
				HaveField("Kind", internet.KindHTTP), HaveField("TLS", true), HaveField("SNI", "allowed.example"), HaveField("URI", "/hello"))))
			for _, e := range events {
				Expect(e.Header).NotTo(HaveKey("Proxy-Authorization"), "the token reached an origin")
			}
		}, SpecTimeout(long))

		It("speaks WebSocket, in a tunnel and forwarded", func(ctx SpecContext) {
			for _, mode := range []string{"connect", "forward"} {
				out, err := p.WebSocket(ctx, pod, mode, "allowed.example", "80", "hello "+mode)
				Expect(err).NotTo(HaveOccurred())
				Expect(out).To(HaveField("Stdout", "hello "+mode+"\n"), out.String())
			}
			out, err := p.WebSocket(ctx, pod, "connect", "evil-site.example", "80", "hello")
			Expect(err).NotTo(HaveOccurred())
			Expect(out.Exit).To(Equal(1), out.String())
			Expect(out.Stderr).To(ContainSubstring("403 Egress-Blocked host_not_allowed"))
		}, SpecTimeout(long))

		It("clones with git", func(ctx SpecContext) {
			for _, scheme := range []string{"http", "https"} {
				out := shell(ctx, pod, "rm -rf /tmp/demo && git clone -q "+scheme+"://allowed.example/git/demo.git /tmp/demo && git -C /tmp/demo rev-parse HEAD")
				Expect(out.Exit).To(BeZero(), out.String())
				Expect(out.Stdout).To(MatchRegexp(`^[0-9a-f]{40}\n$`))
			}
			out := shell(ctx, pod, "rm -rf /tmp/evil && git clone -q https://evil-site.example/git/demo.git /tmp/evil")
			Expect(out.Exit).NotTo(BeZero())
			Expect(out.Stderr).To(ContainSubstring("403"))
		}, SpecTimeout(long))

		DescribeTable("is refused with the reason", func(ctx SpecContext, status int, reason string, args []string) {
			Expect(curl(ctx, pod, args...)).To(refused(status, reason))
		},
			Entry("a host that is not allowed, http", SpecTimeout(long), 403, "host_not_allowed", []string{"http://evil-site.example/"}),
			Entry("a host that is not allowed, https", SpecTimeout(long), 403, "host_not_allowed", []string{"https://evil-site.example/"}),
			Entry("a denied host below an allowed wildcard", SpecTimeout(long), 403, "host_denied", []string{"https://denied.example.org/"}),
			Entry("the domain of an allowed wildcard itself", SpecTimeout(long), 403, "host_not_allowed", []string{"https://example.org/"}),
			Entry("a port that is not allowed", SpecTimeout(long), 403, "port_not_allowed", []string{"http://allowed.example:8080/"}),
			Entry("a method that is not allowed", SpecTimeout(long), 403, "method_not_allowed", []string{"-d", "x=1", "http://api.example.com/v1/items"}),
			Entry("a path that is not allowed", SpecTimeout(long), 403, "path_not_allowed", []string{"http://api.example.com/v2"}),
			Entry("an allowed site by its address", SpecTimeout(long), 403, "host_not_allowed", []string{"http://" + internet.SiteA + "/"}),
			Entry("an allowed name that is the metadata address", SpecTimeout(long), 403, "address_not_allowed", []string{"http://metadata.example/latest/meta-data"}),
			Entry("an allowed name with a private address among public ones", SpecTimeout(long), 403, "address_not_allowed", []string{"http://mixed.example/"}),
		)

		It("is asked for its token", func(ctx SpecContext) {
			Expect(curl(ctx, pod, "-x", "http://"+proxyAddress(ctx, policy), "http://allowed.example/")).To(refused(407, "auth_required"))
		}, SpecTimeout(long))

		It("cannot reach another site through a tunnel to an allowed one", func(ctx SpecContext) {
			answer := curl(ctx, pod, "--connect-to", "evil-site.example:443:allowed.example:443", "https://evil-site.example/fronted")
			Expect(answer).To(haveStatus(0))
			Expect(answer.Connect).To(Equal(200))
			Expect(answer.Exit).NotTo(BeZero())
			events, err := p.Reached(internet.SiteA, begin)
			Expect(err).NotTo(HaveOccurred())
			Expect(events).NotTo(ContainElement(HaveField("SNI", "evil-site.example")))
		}, SpecTimeout(long))

		It("has sent nothing to any site that is not allowed, nor anything past the proxy", func() {
			noneReached(internet.SiteEvil, begin)
			noneReached(internet.Metadata, begin)
			noneCameFrom(pod, begin)
		})
	})
}
