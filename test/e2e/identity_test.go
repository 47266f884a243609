package e2e

import (
	"net/url"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func identitySpecs() {
	Describe("a token", Ordered, func() {
		var agents, others *v1alpha1.SandboxEgress
		var one, two, other, bystander *corev1.Pod
		var stolen, othersProxy string
		var begin time.Time

		BeforeAll(func(ctx SpecContext) {
			begin = time.Now()
			ns := newNamespace(ctx, "identity")
			agents = platform.Policy(ns, "agents", "allowed.example")
			others = platform.Policy(ns, "others", "example.org")
			others.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other-sandbox"}}
			ready(ctx, agents, others)
			one, two = platform.Sandbox(ns, "one"), platform.Sandbox(ns, "two")
			other = platform.Pod(ns, "other", "other-sandbox")
			bystander = platform.Pod(ns, "bystander", "bystander")
			ready(ctx, one, two, other, bystander)
			stolen = proxyURL(ctx, one)
			othersProxy = proxyAddress(ctx, others)
		}, NodeTimeout(2*long))

		It("works in its own pod", func(ctx SpecContext) {
			Expect(curl(ctx, one, "-x", stolen, "http://allowed.example/")).To(haveStatus(200))
			Expect(curl(ctx, other, "http://example.org/")).To(haveStatus(200))
		}, SpecTimeout(long))

		It("is worthless in another pod", func(ctx SpecContext) {
			Expect(curl(ctx, two, "-x", stolen, "http://allowed.example/stolen")).To(refused(403, "source_not_bound"))
			Expect(curl(ctx, two, "-x", stolen, "https://allowed.example/stolen")).To(refused(403, "source_not_bound"))
		}, SpecTimeout(long))

		It("does not lend its policy to a sandbox of another one", func(ctx SpecContext) {
			By("asking the other policy's proxy, which the network keeps away")
			Expect(curl(ctx, one, "-x", withHost(stolen, othersProxy), "--connect-timeout", "3", "http://example.org/stolen")).To(blocked())
			Expect(curl(ctx, other, "-x", stolen, "--connect-timeout", "3", "http://allowed.example/stolen")).To(blocked())
			By("asking the own proxy with the other policy's token")
			answer := curl(ctx, other, "-x", withHost(stolen, othersProxy), "http://allowed.example/stolen")
			Expect(answer).To(haveStatus(403))
			Expect(answer.Stdout).To(MatchRegexp(`(?im)^x-deny-reason: (policy_mismatch|policy_unknown|container_unknown|source_not_bound)\r?$`))
		}, SpecTimeout(long))

		It("does not open the proxy to a pod that is no sandbox", func(ctx SpecContext) {
			Expect(curl(ctx, bystander, "-x", stolen, "--connect-timeout", "3", "http://allowed.example/stolen")).To(blocked())
		}, SpecTimeout(long))

		It("cannot be altered nor used under another name", func(ctx SpecContext) {
			u, err := url.Parse(stolen)
			Expect(err).NotTo(HaveOccurred())
			token, _ := u.User.Password()
			// The first character of the signature.
			i := strings.LastIndex(token, ".") + 1
			altered := token[:i] + string(alter(token[i])) + token[i+1:]
			u.User = url.UserPassword(u.User.Username(), altered)
			Expect(curl(ctx, one, "-x", u.String(), "http://allowed.example/altered")).To(refused(407, "token_signature"))
			u.User = url.UserPassword("container_somebody-else", token)
			Expect(curl(ctx, one, "-x", u.String(), "http://allowed.example/altered")).To(refused(407, "user_mismatch"))
		}, SpecTimeout(long))

		It("never carried a refused request to a site", func() {
			for _, site := range []string{internet.SiteA, internet.SiteC} {
				events, err := p.Reached(site, begin)
				Expect(err).NotTo(HaveOccurred())
				Expect(events).NotTo(ContainElement(HaveField("URI", BeElementOf("/stolen", "/altered"))))
			}
			for _, pod := range []*corev1.Pod{one, two, other} {
				noneCameFrom(pod, begin)
			}
		})

		It("reaches less when its pod's annotation says so", func(ctx SpecContext) {
			patch(ctx, agents, func() { agents.Spec.AllowedHosts = append(agents.Spec.AllowedHosts, "example.org") })
			eventuallyCurl(ctx, two, soon, haveStatus(200), "http://example.org/")
			annotate(ctx, two, v1alpha1.AllowedHostsAnnotation, "example.org, evil-site.example")
			eventuallyCurl(ctx, two, soon, refused(403, "host_not_allowed"), "http://allowed.example/")
			Expect(curl(ctx, two, "http://example.org/")).To(haveStatus(200))
			Expect(curl(ctx, two, "http://evil-site.example/")).To(refused(403, "host_not_allowed"))
			Expect(curl(ctx, one, "http://allowed.example/")).To(haveStatus(200))
		}, SpecTimeout(long))
	})
}

func withHost(proxy, address string) string {
	GinkgoHelper()
	u, err := url.Parse(proxy)
	Expect(err).NotTo(HaveOccurred())
	u.Host = address
	return u.String()
}

func alter(b byte) byte {
	if b == 'A' {
		return 'B'
	}
	return 'A'
}
