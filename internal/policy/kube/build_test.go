package kube

import (
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

const goodID = "abcdefghijklmnopqrst"

func testJWKS(t *testing.T) string {
	t.Helper()
	key, err := token.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := token.NewKeySet(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	data, err := set.MarshalJWKS()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func world(t *testing.T, objs ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objs...).Build()
}

func keysMap(jwks string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "keys"}, Data: map[string]string{v1alpha1.ConfigMapKeyJWKS: jwks}}
}

func object(hosts ...v1alpha1.HostPattern) *v1alpha1.SandboxEgress {
	return &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1", Generation: 1}, Spec: v1alpha1.SandboxEgressSpec{AllowedHosts: hosts}}
}

func sandboxPod(name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "pod-1", Labels: map[string]string{"app": "sandbox"}, Annotations: map[string]string{
			v1alpha1.IDKey: goodID, v1alpha1.PolicyKey: "p", v1alpha1.InjectedAnnotation: "Env"}},
		Status: corev1.PodStatus{PodIP: "10.0.0.7", PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}, {IP: "fd00::7"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func build(t *testing.T, b *builder, c client.Reader, store *policy.Store) {
	t.Helper()
	if err := b.update(t.Context(), c, store); err != nil {
		t.Fatal(err)
	}
}

func testBuilder() *builder {
	return newBuilder(Options{Namespace: "ns", Policy: "p", ConfigMap: "keys"}, slog.New(slog.DiscardHandler))
}

func TestTheProxyIsNotReadyBeforeItHasPolicyAndKeys(t *testing.T) {
	jwks := testJWKS(t)
	for name, tc := range map[string]struct {
		objs  []client.Object
		ready bool
	}{
		"nothing":           {nil, false},
		"keys only":         {[]client.Object{keysMap(jwks)}, false},
		"policy only":       {[]client.Object{object("a.example")}, false},
		"broken keys":       {[]client.Object{object("a.example"), keysMap("{")}, false},
		"an invalid policy": {[]client.Object{object("*.*.bad"), keysMap(jwks)}, false},
		"both":              {[]client.Object{object("a.example"), keysMap(jwks)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var store policy.Store
			build(t, testBuilder(), world(t, tc.objs...), &store)
			if store.Ready() != tc.ready {
				t.Errorf("ready = %v, want %v", store.Ready(), tc.ready)
			}
		})
	}
}

func TestKeysThatCannotBeReadLeaveTheLastOnesInForce(t *testing.T) {
	c := world(t, object("a.example"), keysMap(testJWKS(t)))
	var store policy.Store
	b := testBuilder()
	build(t, b, c, &store)
	want := store.Load().Keys()
	for _, text := range []string{"", "{", `{"keys":[{"kty":"oct"}]}`} {
		if err := c.Update(t.Context(), keysMap(text)); err != nil {
			t.Fatal(err)
		}
		build(t, b, c, &store)
		if store.Load().Keys() != want {
			t.Fatalf("JWKS %q replaced the keys", text)
		}
	}
	if err := c.Delete(t.Context(), keysMap("")); err != nil {
		t.Fatal(err)
	}
	build(t, b, c, &store)
	if store.Load().Keys() != want {
		t.Fatal("a missing ConfigMap took the keys away")
	}
}

func TestOnlyAdmittedPodsAreKnown(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		known  bool
	}{
		"a sandbox":                        {nil, true},
		"without the webhook's mark":       {func(p *corev1.Pod) { delete(p.Annotations, v1alpha1.InjectedAnnotation) }, false},
		"under another policy":             {func(p *corev1.Pod) { p.Annotations[v1alpha1.PolicyKey] = "q" }, false},
		"with an id that nobody drew":      {func(p *corev1.Pod) { p.Annotations[v1alpha1.IDKey] = "x" }, false},
		"that the selector does not match": {func(p *corev1.Pod) { p.Labels = nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			var store policy.Store
			build(t, testBuilder(), world(t, object("a.example"), keysMap(testJWKS(t)), sandboxPod("a", tc.change)), &store)
			if got := store.Load().PodCount() == 1; got != tc.known {
				t.Errorf("known = %v, want %v", got, tc.known)
			}
		})
	}
}

func TestPodsAreConverted(t *testing.T) {
	narrowed := func(text string) *corev1.Pod {
		return sandboxPod("a", func(p *corev1.Pod) { p.Annotations[v1alpha1.AllowedHostsAnnotation] = text })
	}
	load := func(t *testing.T, pod *corev1.Pod) *policy.Pod {
		t.Helper()
		var store policy.Store
		build(t, testBuilder(), world(t, object("a.example", "b.example"), keysMap(testJWKS(t)), pod), &store)
		got, err := store.Load().Pod(goodID)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	p := load(t, sandboxPod("a", nil))
	if !p.HasIP(netip.MustParseAddr("10.0.0.7")) || !p.HasIP(netip.MustParseAddr("fd00::7")) || len(p.IPs) != 2 || p.Narrow != nil || p.PolicyRef != "ns/p" {
		t.Errorf("%+v", p)
	}
	allows := func(m *allowlist.Matcher, host string) bool {
		a, err := hostname.ParseAuthority(host)
		if err != nil {
			t.Fatal(err)
		}
		return m.Decide(allowlist.Request{Authority: a}).Allowed
	}
	for text, want := range map[string]bool{"a.example": true, " a.example , b.example": true, "b.example": false, "": false, "a.example,*.*.bad": false} {
		n := load(t, narrowed(text)).Narrow
		if n == nil {
			t.Fatalf("%q did not narrow", text)
		}
		if got := allows(n, "a.example:443"); got != want {
			t.Errorf("%q: a.example allowed = %v, want %v", text, got, want)
		}
	}
	if p := load(t, sandboxPod("a", func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		p.Annotations[v1alpha1.QuarantineAnnotation] = "true"
	})); !p.Terminal || !p.Quarantined {
		t.Errorf("%+v", p)
	}
}

func TestAnotherObjectOfTheSameNameInheritsNothing(t *testing.T) {
	c := world(t, object("a.example"), keysMap(testJWKS(t)))
	var store policy.Store
	b := testBuilder()
	build(t, b, c, &store)
	if store.Load().Policy("ns/p") == nil {
		t.Fatal("no policy")
	}
	if err := c.Delete(t.Context(), object()); err != nil {
		t.Fatal(err)
	}
	next := object("*.*.bad")
	next.UID = "u2"
	if err := c.Create(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	build(t, b, c, &store)
	if store.Load().Policy("ns/p") != nil {
		t.Error("the policy of a deleted object is in force for its successor")
	}
}
