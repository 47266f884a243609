package e2e

import (
	"context"
	"fmt"
	"net"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

const (
	// long bounds what must happen at some time; a busy machine with two cores takes a while
	// to start pods.
	long = 3 * time.Minute
	// soon bounds what must happen within seconds.
	soon = 30 * time.Second
)

// namespaces that were made, oldest first.
var namespaces []string

// newNamespace makes a namespace of a name of its own, and deletes it after the container
// or spec that made it.
func newNamespace(ctx context.Context, prefix string) string {
	GinkgoHelper()
	name := newNamespaceForSuite(ctx, prefix)
	DeferCleanup(func(ctx SpecContext) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		Expect(client.IgnoreNotFound(p.Client.Delete(ctx, ns))).To(Succeed())
	}, NodeTimeout(soon))
	return name
}

// newNamespaceForSuite makes one that stays until the cluster ends.
func newNamespaceForSuite(ctx context.Context, prefix string) string {
	GinkgoHelper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-"}}
	Expect(p.Client.Create(ctx, ns)).To(Succeed())
	namespaces = append(namespaces, ns.Name)
	return ns.Name
}

func create[T client.Object](ctx context.Context, object T) T {
	GinkgoHelper()
	Expect(p.Create(ctx, object)).To(Succeed())
	return object
}

// ready creates the objects, if they are not there yet, and waits until each is Ready.
func ready(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, o := range objects {
		if o.GetUID() == "" {
			Expect(p.Create(ctx, o)).To(Succeed())
		}
	}
	for _, o := range objects {
		Expect(p.WaitReady(ctx, o, long)).To(Succeed())
	}
}

// patch changes the object by a merge patch of what mutate does to it.
func patch(ctx context.Context, object client.Object, mutate func()) {
	GinkgoHelper()
	Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
	before := object.DeepCopyObject().(client.Object)
	mutate()
	Expect(p.Client.Patch(ctx, object, client.MergeFrom(before))).To(Succeed())
}

func annotate(ctx context.Context, pod *corev1.Pod, key, value string) {
	GinkgoHelper()
	patch(ctx, pod, func() { metav1.SetMetaDataAnnotation(&pod.ObjectMeta, key, value) })
}

func curl(ctx context.Context, pod *corev1.Pod, args ...string) platform.Answer {
	GinkgoHelper()
	answer, err := p.Curl(ctx, pod, args...)
	Expect(err).NotTo(HaveOccurred())
	return answer
}

func shell(ctx context.Context, pod *corev1.Pod, script string) platform.Output {
	GinkgoHelper()
	out, err := p.Shell(ctx, pod, script)
	Expect(err).NotTo(HaveOccurred())
	return out
}

// haveStatus matches a platform.Answer.
func haveStatus(status int) types.GomegaMatcher {
	return WithTransform(func(a platform.Answer) int { return a.Status }, Equal(status))
}

// refused matches a platform.Answer that the proxy refused with this status and reason, to
// CONNECT or to a plain request, with the reason in the status line and in a header.
func refused(status int, reason string) types.GomegaMatcher {
	return SatisfyAll(
		WithTransform(func(a platform.Answer) int { return max(a.Status, a.Connect) }, Equal(status)),
		WithTransform(func(a platform.Answer) string { return a.Stdout }, SatisfyAll(
			MatchRegexp(`(?m)^HTTP/1\.1 %d [A-Za-z-]+ %s\r?$`, status, reason),
			MatchRegexp(`(?im)^x-deny-reason: %s\r?$`, reason),
		)),
	)
}

// blocked matches an Answer that never came: curl could not connect in time, or was told
// that it cannot (6 is excluded on purpose: a name that does not resolve proves nothing).
func blocked() types.GomegaMatcher {
	return SatisfyAll(
		haveStatus(0),
		WithTransform(func(a platform.Answer) int { return a.Exit }, BeElementOf(7, 28)),
	)
}

// eventually polls curl until the answer matches.
func eventuallyCurl(ctx context.Context, pod *corev1.Pod, timeout time.Duration, match types.GomegaMatcher, args ...string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		answer, err := p.Curl(ctx, pod, args...)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(answer).To(match)
	}).WithContext(ctx).WithTimeout(timeout).Should(Succeed())
}

// proxyURL is the value of HTTP_PROXY in the pod: under Env it holds its token.
func proxyURL(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	out := shell(ctx, pod, `printf %s "$HTTP_PROXY"`)
	Expect(out.Stdout).NotTo(BeEmpty())
	return out.Stdout
}

func proxyAddress(ctx context.Context, policy *v1alpha1.SandboxEgress) string {
	GinkgoHelper()
	Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(policy), policy)).To(Succeed())
	Expect(policy.Status.ProxyAddress).NotTo(BeEmpty())
	return policy.Status.ProxyAddress
}

// noneCameFrom asserts that nothing from the pod has arrived at the test internet.
func noneCameFrom(pod *corev1.Pod, since time.Time) {
	GinkgoHelper()
	Expect(pod.Status.PodIP).NotTo(BeEmpty())
	events, err := p.CameFrom(pod.Status.PodIP, since)
	Expect(err).NotTo(HaveOccurred())
	Expect(events).To(BeEmpty(), "the sandbox itself reached the internet")
}

// noneReached asserts that nothing at all has arrived at the address of the test internet.
func noneReached(address string, since time.Time) {
	GinkgoHelper()
	events, err := p.Reached(address, since)
	Expect(err).NotTo(HaveOccurred())
	Expect(events).To(BeEmpty(), fmt.Sprintf("something reached %s", address))
}

func host(address string) string {
	GinkgoHelper()
	h, _, err := net.SplitHostPort(address)
	Expect(err).NotTo(HaveOccurred())
	return h
}
