package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// store is a cache or an API server with fixed policies.
type store struct {
	items    []v1alpha1.SandboxEgress
	unsynced atomic.Bool
	err      error
	asked    int
}

type informer struct {
	cache.Informer
	store *store
}

func (i informer) HasSynced() bool { return !i.store.unsynced.Load() }

func (s *store) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return informer{store: s}, nil
}

func (s *store) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.ErrUnsupported
}

func (s *store) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	s.asked++
	list.(*v1alpha1.SandboxEgressList).Items = s.items
	return s.err
}

type handlers struct {
	guard    *podGuard
	mutate   *podMutator
	validate *podValidator
	policy   *policyValidator
	counters *counters
}

func newHandlers(t *testing.T, cached, live *store) handlers {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := newCounters(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	d := admission.NewDecoder(scheme)
	source := &policySource{cache: cached, live: live, patience: 30 * time.Millisecond}
	cfg := injector.Config{Image: "image"}
	return handlers{
		guard:    &podGuard{decoder: d, counters: c},
		mutate:   &podMutator{decoder: d, counters: c, policies: source, injector: cfg, random: strings.NewReader(strings.Repeat("x", 1000))},
		validate: &podValidator{decoder: d, counters: c, policies: source, injector: cfg},
		policy:   &policyValidator{decoder: d, counters: c, policies: source, excluded: []string{"kube-system"}},
		counters: c,
	}
}

func policyNamed(name string, s *metav1.LabelSelector) v1alpha1.SandboxEgress {
	return v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec:       v1alpha1.SandboxEgressSpec{PodSelector: s},
		Status:     v1alpha1.SandboxEgressStatus{ProxyAddress: "10.0.0.1:8443"},
	}
}

func request(t *testing.T, op admissionv1.Operation, sub string, obj, old any) admission.Request {
	t.Helper()
	raw := func(o any) runtime.RawExtension {
		if o == nil {
			return runtime.RawExtension{}
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return runtime.RawExtension{Raw: b}
	}
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		UID: "u", Namespace: "ns", Operation: op, SubResource: sub, Object: raw(obj), OldObject: raw(old),
	}}
}

func podWith(labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "agent-", Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent"}}},
	}
}

var sandboxLabels = map[string]string{"app": "sandbox"}

func TestPodsAreRefusedWhenPoliciesAreNotKnown(t *testing.T) {
	broken := policyNamed("broken", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}})
	down := errors.New("connection refused")
	unsynced := &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}
	unsynced.unsynced.Store(true)
	for name, tc := range map[string]struct {
		cached, live *store
		why          reason
		code         int32
	}{
		"cache not synced":           {unsynced, &store{}, reasonUnavailable, http.StatusServiceUnavailable},
		"cache broken":               {&store{err: down}, &store{}, reasonUnavailable, http.StatusServiceUnavailable},
		"API server does not answer": {&store{}, &store{err: down}, reasonUnavailable, http.StatusServiceUnavailable},
		"a selector nobody can read": {&store{items: []v1alpha1.SandboxEgress{broken}}, &store{}, reasonBadPolicy, http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHandlers(t, tc.cached, tc.live)
			req := request(t, admissionv1.Create, "", podWith(sandboxLabels), nil)
			for what, handler := range map[string]admission.Handler{"mutate": h.mutate, "validate": h.validate} {
				resp := handler.Handle(t.Context(), req)
				if resp.Allowed || resp.Result.Code != tc.code {
					t.Errorf("%s: allowed %v, %+v", what, resp.Allowed, resp.Result)
				}
			}
			if n := testutil.ToFloat64(h.counters.denials.WithLabelValues(string(tc.why))); n != 2 {
				t.Errorf("%v denials counted as %s, want 2", n, tc.why)
			}
		})
	}
}

func TestAPodWaitsForTheFirstSync(t *testing.T) {
	cached := &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}
	cached.unsynced.Store(true)
	h := newHandlers(t, cached, &store{})
	h.mutate.policies.patience = 10 * time.Second
	timer := time.AfterFunc(50*time.Millisecond, func() { cached.unsynced.Store(false) })
	defer timer.Stop()
	if resp := h.mutate.Handle(t.Context(), request(t, admissionv1.Create, "", podWith(sandboxLabels), nil)); !resp.Allowed || len(resp.Patch) == 0 {
		t.Errorf("allowed %v: %+v", resp.Allowed, resp.Result)
	}
}

func TestThePolicyThatTheCacheLacksIsFound(t *testing.T) {
	cached, live := &store{}, &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}
	h := newHandlers(t, cached, live)
	resp := h.mutate.Handle(t.Context(), request(t, admissionv1.Create, "", podWith(sandboxLabels), nil))
	if !resp.Allowed || len(resp.Patch) == 0 {
		t.Errorf("allowed %v, patch %s", resp.Allowed, resp.Patch)
	}
	cached.items = live.items
	h.mutate.Handle(t.Context(), request(t, admissionv1.Create, "", podWith(sandboxLabels), nil))
	if live.asked != 1 {
		t.Errorf("the API server was asked %d times; with the policy in the cache it need not be", live.asked)
	}
}

func TestOverlapNamesAllPolicies(t *testing.T) {
	all := &metav1.LabelSelector{}
	h := newHandlers(t, &store{items: []v1alpha1.SandboxEgress{policyNamed("z", all), policyNamed("a", nil), policyNamed("m", all)}}, &store{})
	resp := h.mutate.Handle(t.Context(), request(t, admissionv1.Create, "", podWith(sandboxLabels), nil))
	if resp.Allowed || !strings.Contains(resp.Result.Message, "(a, m, z)") {
		t.Errorf("allowed %v: %s", resp.Allowed, resp.Result.Message)
	}
}

func TestUnreadableRequestsAreRefused(t *testing.T) {
	h := newHandlers(t, &store{}, &store{})
	bad := request(t, admissionv1.Create, "", nil, nil)
	bad.Object.Raw = []byte(`{"spec": 1}`)
	badOld := request(t, admissionv1.Update, "ephemeralcontainers", podWith(nil), nil)
	badOld.OldObject.Raw = []byte(`[`)
	badPolicy := request(t, admissionv1.Update, "", policyNamed("a", nil), nil)
	badPolicy.OldObject.Raw = []byte(`[`)
	for name, tc := range map[string]struct {
		handler admission.Handler
		req     admission.Request
	}{
		"guard": {h.guard, bad}, "mutate": {h.mutate, bad}, "validate": {h.validate, bad}, "policy": {h.policy, bad},
		"mutate's old": {h.mutate, badOld}, "validate's old": {h.validate, badOld}, "policy's old": {h.policy, badPolicy},
	} {
		t.Run(name, func(t *testing.T) {
			if resp := tc.handler.Handle(t.Context(), tc.req); resp.Allowed || resp.Result.Code != http.StatusBadRequest {
				t.Errorf("allowed %v, %+v", resp.Allowed, resp.Result)
			}
		})
	}
}

func TestNoEntropyNoSandbox(t *testing.T) {
	h := newHandlers(t, &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}, &store{})
	h.mutate.random = iotest.ErrReader(errors.New("no entropy"))
	if resp := h.mutate.Handle(t.Context(), request(t, admissionv1.Create, "", podWith(sandboxLabels), nil)); resp.Allowed {
		t.Error("allowed")
	}
}

func TestValidatorRefusesWhatTheMutatorDidNotSee(t *testing.T) {
	injected := func(t *testing.T, p v1alpha1.SandboxEgress) *corev1.Pod {
		pod, err := injector.Inject(injector.Config{Image: "image"}, injector.Input{Pod: podWith(sandboxLabels), Policy: &p, ID: "abcdefghij234567abcd"})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	policy := policyNamed("a", nil)
	for name, tc := range map[string]struct {
		items []v1alpha1.SandboxEgress
		pod   *corev1.Pod
		why   reason
	}{
		"an injected pod":            {[]v1alpha1.SandboxEgress{policy}, injected(t, policy), ""},
		"a pod that was not":         {[]v1alpha1.SandboxEgress{policy}, podWith(sandboxLabels), reasonUninjected},
		"a pod of a vanished policy": {nil, injected(t, policy), reasonUninjected},
		"a pod of another policy":    {[]v1alpha1.SandboxEgress{policyNamed("b", nil)}, injected(t, policy), reasonConflict},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHandlers(t, &store{items: tc.items}, &store{})
			resp := h.validate.Handle(t.Context(), request(t, admissionv1.Create, "", tc.pod, nil))
			if resp.Allowed != (tc.why == "") {
				t.Fatalf("allowed %v: %s", resp.Allowed, resp.Result.Message)
			}
			if tc.why != "" && testutil.ToFloat64(h.counters.denials.WithLabelValues(string(tc.why))) != 1 {
				t.Errorf("not counted as %s: %s", tc.why, resp.Result.Message)
			}
		})
	}
}

func TestDryRunsAreNotCounted(t *testing.T) {
	h := newHandlers(t, &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}, &store{})
	req := request(t, admissionv1.Create, "", podWith(sandboxLabels), nil)
	req.DryRun = ptr.To(true)
	if resp := h.mutate.Handle(t.Context(), req); !resp.Allowed {
		t.Fatal(resp.Result.Message)
	}
	if resp := h.validate.Handle(t.Context(), req); resp.Allowed {
		t.Fatal("allowed an uninjected pod")
	}
	if n := testutil.CollectAndCount(h.counters.injections) + testutil.CollectAndCount(h.counters.denials); n != 0 {
		t.Errorf("%d series", n)
	}
}

func TestAnInvalidPolicyFromBeforeStaysDeletable(t *testing.T) {
	old := policyNamed("a", nil)
	old.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.Kind}
	old.Spec.AllowedHosts = []v1alpha1.HostPattern{"not a host"}
	changed := old
	changed.Finalizers = []string{v1alpha1.IsolationFinalizer}
	h := newHandlers(t, &store{}, &store{})
	if resp := h.policy.Handle(t.Context(), request(t, admissionv1.Update, "", changed, old)); !resp.Allowed {
		t.Errorf("a change of finalizers was refused: %s", resp.Result.Message)
	}
	changed.Spec.AllowedHosts = append([]v1alpha1.HostPattern{"a.example"}, old.Spec.AllowedHosts...)
	if resp := h.policy.Handle(t.Context(), request(t, admissionv1.Update, "", changed, old)); resp.Allowed || !strings.Contains(resp.Result.Message, "spec.allowedHosts[1]") {
		t.Errorf("allowed %v: %v", resp.Allowed, resp.Result)
	}
}

func TestOverlap(t *testing.T) {
	labels := func(kv ...string) *metav1.LabelSelector {
		s := &metav1.LabelSelector{MatchLabels: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			s.MatchLabels[kv[i]] = kv[i+1]
		}
		return s
	}
	expr := func(key string, op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	for name, tc := range map[string]struct {
		a, b *metav1.LabelSelector
		want bool
	}{
		"the same":                     {nil, labels("app", "sandbox"), true},
		"everything":                   {labels("app", "x"), &metav1.LabelSelector{}, true},
		"independent keys":             {labels("app", "x"), labels("tier", "y"), true},
		"different values":             {labels("app", "x"), labels("app", "y"), false},
		"a key that may not be there":  {labels("app", "x"), expr("app", metav1.LabelSelectorOpDoesNotExist), false},
		"a key that must be there":     {labels("app", "x"), expr("app", metav1.LabelSelectorOpExists), true},
		"a value that is excluded":     {labels("app", "x"), expr("app", metav1.LabelSelectorOpNotIn, "x"), false},
		"another value that is":        {labels("app", "x"), expr("app", metav1.LabelSelectorOpNotIn, "y"), true},
		"a selector that cannot match": {expr("app", metav1.LabelSelectorOpIn), labels("app", "x"), false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := policyNamed("a", tc.a), policyNamed("b", tc.b)
			if overlap(&a, &b) != tc.want || overlap(&b, &a) != tc.want {
				t.Errorf("overlap = %v, %v; want %v", overlap(&a, &b), overlap(&b, &a), tc.want)
			}
		})
	}
}

func TestOperatorNamespace(t *testing.T) {
	if ns, err := operatorNamespace("system:serviceaccount:egress:manager"); err != nil || ns != "egress" {
		t.Errorf("%q, %v", ns, err)
	}
	for _, user := range []string{"", "admin", "system:serviceaccount::manager", "system:serviceaccount:egress:", "system:node:a:b"} {
		if ns, err := operatorNamespace(user); err == nil {
			t.Errorf("%q gives %q", user, ns)
		}
	}
}

func BenchmarkMutate(b *testing.B) {
	t := &testing.T{}
	h := newHandlers(t, &store{items: []v1alpha1.SandboxEgress{policyNamed("a", nil)}}, &store{})
	h.mutate.random = zero{}
	req := request(t, admissionv1.Create, "", podWith(sandboxLabels), nil)
	b.ReportAllocs()
	for b.Loop() {
		if resp := h.mutate.Handle(b.Context(), req); !resp.Allowed {
			b.Fatal(resp.Result.Message)
		}
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }
