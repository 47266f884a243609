package controllers_test

import (
	"context"
	"encoding/json"
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

func key(namespace, name string) client.ObjectKey {
	return client.ObjectKey{Namespace: namespace, Name: name}
}

func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	ns, err := env.Namespace(ctx)
	Expect(err).NotTo(HaveOccurred())
	return ns
}

func create(ctx context.Context, objs ...client.Object) {
	GinkgoHelper()
	for _, o := range objs {
		Expect(env.Client.Create(ctx, o)).To(Succeed())
	}
}

// injected creates a sandbox as the webhook admits it, after change.
func injected(ctx context.Context, p *v1alpha1.SandboxEgress, name string, change ...func(*corev1.Pod)) *corev1.Pod {
	GinkgoHelper()
	pod, err := managertest.Injected(p, name)
	Expect(err).NotTo(HaveOccurred())
	for _, c := range change {
		c(pod)
	}
	create(ctx, pod)
	return pod
}

func sandboxID(pod *corev1.Pod) string { return pod.Annotations[v1alpha1.IDKey] }

// clean removes what a spec made in ns, so that later managers have nothing to do there.
func clean(ctx context.Context, ns string) {
	GinkgoHelper()
	now := int64(0)
	in := client.InNamespace(ns)
	Expect(env.Client.DeleteAllOf(ctx, &corev1.Pod{}, in, client.GracePeriodSeconds(now))).To(Succeed())
	Expect(env.Client.DeleteAllOf(ctx, &v1alpha1.SandboxEgress{}, in)).To(Succeed())
	Eventually(func(g Gomega) {
		var list v1alpha1.SandboxEgressList
		g.Expect(env.Client.List(ctx, &list, in)).To(Succeed())
		g.Expect(list.Items).To(BeEmpty())
	}).Should(Succeed(), "the finalizer lets go once no pod runs")
}

func getNP(ctx context.Context, ns, name string) (*networkingv1.NetworkPolicy, error) {
	np := new(networkingv1.NetworkPolicy)
	return np, env.Client.Get(ctx, key(ns, name), np)
}

func identityNP(ctx context.Context, pod *corev1.Pod) func() error {
	return func() error {
		_, err := getNP(ctx, pod.Namespace, v1alpha1.IdentityName(sandboxID(pod)))
		return err
	}
}

func identitySecret(ctx context.Context, pod *corev1.Pod) (*corev1.Secret, error) {
	s := new(corev1.Secret)
	return s, env.Client.Get(ctx, key(pod.Namespace, v1alpha1.IdentityName(sandboxID(pod))), s)
}

func hasSecret(ctx context.Context, pod *corev1.Pod) func() error {
	return func() error { _, err := identitySecret(ctx, pod); return err }
}

func notFound() OmegaMatcher { return WithTransform(apierrors.IsNotFound, BeTrue()) }

// tokenOf verifies the token of pod with the published keys at the fake clock's time.
func tokenOf(ctx context.Context, g Gomega, p *v1alpha1.SandboxEgress, pod *corev1.Pod) (string, *token.Claims) {
	GinkgoHelper()
	s, err := identitySecret(ctx, pod)
	g.Expect(err).NotTo(HaveOccurred())
	raw := string(s.Data[v1alpha1.SecretKeyToken])
	claims, err := verify(ctx, p, raw)
	g.Expect(err).NotTo(HaveOccurred())
	return raw, claims
}

func verify(ctx context.Context, p *v1alpha1.SandboxEgress, raw string) (*token.Claims, error) {
	var cm corev1.ConfigMap
	if err := env.Client.Get(ctx, key(p.Namespace, v1alpha1.JWKSName(p.Name)), &cm); err != nil {
		return nil, err
	}
	keys, err := token.ParseJWKS([]byte(cm.Data[v1alpha1.ConfigMapKeyJWKS]))
	if err != nil {
		return nil, err
	}
	return token.NewVerifier(keys, token.WithClock(clock.Now)).Verify(raw)
}

func condition(ctx context.Context, p *v1alpha1.SandboxEgress, kind string) func() string {
	return func() string {
		var live v1alpha1.SandboxEgress
		if err := env.Client.Get(ctx, client.ObjectKeyFromObject(p), &live); err != nil {
			return err.Error()
		}
		c := meta.FindStatusCondition(live.Status.Conditions, kind)
		if c == nil {
			return "no condition " + kind
		}
		return fmt.Sprintf("%s/%s: %s (generation %d)", c.Status, c.Reason, c.Message, c.ObservedGeneration)
	}
}

// eventsOn returns the Events about pod as "reason: note".
func eventsOn(ctx context.Context, pod *corev1.Pod) func() []string {
	return func() []string {
		var list eventsv1.EventList
		if err := env.Client.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
			return []string{err.Error()}
		}
		var out []string
		for _, e := range list.Items {
			if e.Regarding.Name == pod.Name {
				out = append(out, e.Reason+": "+e.Note)
			}
		}
		return out
	}
}

// poke changes an annotation that nobody reads, for an event on the pod.
func poke(ctx context.Context, pod *corev1.Pod) {
	GinkgoHelper()
	annotate(ctx, pod, v1alpha1.Group+"/test-poke", clock.Now().Format("150405.000000000"))
}

// annotate sets an annotation, or removes it when value is "".
func annotate(ctx context.Context, o client.Object, name, value string) {
	GinkgoHelper()
	var v any
	if value != "" {
		v = value
	}
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{name: v}}})
	Expect(err).NotTo(HaveOccurred())
	Expect(env.Client.Patch(ctx, o.DeepCopyObject().(client.Object), client.RawPatch("application/merge-patch+json", raw))).To(Succeed())
}

func update[T client.Object](ctx context.Context, o T, change func(T)) {
	GinkgoHelper()
	Eventually(func() error {
		live := o.DeepCopyObject().(T)
		if err := env.Client.Get(ctx, client.ObjectKeyFromObject(o), live); err != nil {
			return err
		}
		change(live)
		return env.Client.Update(ctx, live)
	}).Should(Succeed())
}

func deployment(ctx context.Context, p *v1alpha1.SandboxEgress) (*appsv1.Deployment, error) {
	d := new(appsv1.Deployment)
	return d, env.Client.Get(ctx, key(p.Namespace, v1alpha1.ProxyName(p.Name)), d)
}

func signingSecret(ctx context.Context) (*corev1.Secret, error) {
	s := new(corev1.Secret)
	return s, env.Client.Get(ctx, key(managercmd.NewOptions().Namespace, managercmd.SigningKeySecret), s)
}

func hasOwner(o client.Object, owner client.Object) bool { return metav1.IsControlledBy(o, owner) }
