package v1alpha1_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

var namespaces int

func newNamespace(ctx context.Context) string {
	namespaces++
	name := fmt.Sprintf("api-%d", namespaces)
	Expect(k8s.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})).To(Succeed())
	return name
}

// create sends the spec as a user's manifest would arrive, without Go's zero values.
func create(ctx context.Context, namespace, name, spec string) error {
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(v1alpha1.GroupVersionKind)
	obj.SetNamespace(namespace)
	obj.SetName(name)
	if spec != "" {
		var parsed map[string]any
		Expect(yaml.Unmarshal([]byte(spec), &parsed)).To(Succeed())
		obj.Object["spec"] = parsed
	}
	return client.WithFieldValidation(k8s, metav1.FieldValidationStrict).Create(ctx, obj)
}

type specCase struct {
	accepted string
	refused  string
	// message must stand in the refusal, so that a case cannot pass for another reason.
	message string
}

func list(n int, item string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\n- "+item, i)
	}
	return b.String()
}

var _ = Describe("the CRD", func() {
	DescribeTable("accepts one and refuses the other",
		func(ctx SpecContext, c specCase) {
			namespace := newNamespace(ctx)
			Expect(create(ctx, namespace, "good", c.accepted)).To(Succeed())
			err := create(ctx, namespace, "bad", c.refused)
			Expect(err).To(HaveOccurred())
			Expect(apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)).To(BeTrue(), "%v", err)
			Expect(err.Error()).To(ContainSubstring(c.message))
		},
		Entry("mode", specCase{"mode: Audit", "mode: Permissive", `spec.mode: Unsupported value: "Permissive"`}),
		Entry("delivery", specCase{"delivery: Relay", "delivery: File", "spec.delivery"}),
		Entry("dns", specCase{"dns: None", "dns: Host", "spec.dns"}),
		Entry("startGate", specCase{"startGate: Disabled", "startGate: Off", "spec.startGate"}),
		Entry("granularity", specCase{"networkPolicy: {granularity: Shared}", "networkPolicy: {granularity: PerNode}", "spec.networkPolicy.granularity"}),
		Entry("container binding", specCase{"token: {containerBinding: Disabled}", "token: {containerBinding: Maybe}", "spec.token.containerBinding"}),
		Entry("ttl, least", specCase{"token: {ttl: 5m}", "token: {ttl: 4m59s}", "must be between 5m and 24h"}),
		Entry("ttl, most", specCase{"token: {ttl: 24h}", "token: {ttl: 24h1s}", "must be between 5m and 24h"}),
		Entry("ttl, form", specCase{"token: {ttl: 90m}", "token: {ttl: tomorrow}", "spec.token.ttl"}),
		Entry("organization, form", specCase{"token: {organization: user_123}", "token: {organization: \"a b\"}", "spec.token.organization"}),
		Entry("organization, length", specCase{"token: {organization: " + strings.Repeat("a", 128) + "}", "token: {organization: " + strings.Repeat("a", 129) + "}", "spec.token.organization"}),
		Entry("replicas, least", specCase{"proxy: {replicas: 1}", "proxy: {replicas: 0}", "spec.proxy.replicas"}),
		Entry("replicas, most", specCase{"proxy: {replicas: 50}", "proxy: {replicas: 51}", "spec.proxy.replicas"}),
		Entry("limits: connections", specCase{"limits: {connections: 0}", "limits: {connections: -1}", "spec.limits.connections"}),
		Entry("limits: requests", specCase{"limits: {requestsPerSecond: 0}", "limits: {requestsPerSecond: -1}", "spec.limits.requestsPerSecond"}),
		Entry("limits: bytes", specCase{"limits: {bytesPerSecond: 1}", "limits: {bytesPerSecond: -1}", "spec.limits.bytesPerSecond"}),
		Entry("presets: unique", specCase{"presets: [npm, python]", "presets: [npm, npm]", "spec.presets[1]: Duplicate value"}),
		Entry("allowedHosts: unique", specCase{"allowedHosts: [a.example.com]", "allowedHosts: [a.example.com, a.example.com]", "spec.allowedHosts[1]: Duplicate value"}),
		Entry("allowedHosts: not empty", specCase{"allowedHosts: [a]", "allowedHosts: ['']", "spec.allowedHosts[0]"}),
		Entry("allowedHosts: length", specCase{"allowedHosts: [" + strings.Repeat("a", 262) + "]", "allowedHosts: [" + strings.Repeat("a", 263) + "]", "spec.allowedHosts[0]"}),
		Entry("allowedHosts: count", specCase{"allowedHosts:" + list(5000, "h%d.example.com"), "allowedHosts:" + list(5001, "h%d.example.com"), "spec.allowedHosts: Too many"}),
		Entry("deniedHosts: unique", specCase{"deniedHosts: [a.example.com]", "deniedHosts: [a.example.com, a.example.com]", "spec.deniedHosts[1]: Duplicate value"}),
		Entry("privateNetworks: form", specCase{"privateNetworks: [10.20.0.0/16, 'fd00::/8']", "privateNetworks: [10.20.0.0]", "must be an address range in CIDR notation"}),
		Entry("privateNetworks: unique", specCase{"privateNetworks: [10.20.0.0/16]", "privateNetworks: [10.20.0.0/16, 10.20.0.0/16]", "Duplicate value"}),
		Entry("rules: hosts", specCase{"rules: [{hosts: [a.example.com]}]", "rules: [{hosts: []}]", "spec.rules[0].hosts"}),
		Entry("rules: hosts required", specCase{"rules: [{hosts: [a.example.com], ports: [443]}]", "rules: [{ports: [443]}]", "spec.rules[0].hosts: Required value"}),
		Entry("rules: port, least", specCase{"rules: [{hosts: [a], ports: [1]}]", "rules: [{hosts: [a], ports: [0]}]", "spec.rules[0].ports[0]"}),
		Entry("rules: port, most", specCase{"rules: [{hosts: [a], ports: [65535]}]", "rules: [{hosts: [a], ports: [65536]}]", "spec.rules[0].ports[0]"}),
		Entry("rules: methods", specCase{"rules: [{hosts: [a], methods: [GET]}]", "rules: [{hosts: [a], methods: [get]}]", "spec.rules[0].methods[0]"}),
		Entry("rules: paths", specCase{"rules: [{hosts: [a], paths: ['/v1/*']}]", "rules: [{hosts: [a], paths: ['v1']}]", "spec.rules[0].paths[0]"}),
		Entry("rules: tls", specCase{"rules: [{hosts: [a], tls: Optional}]", "rules: [{hosts: [a], tls: Never}]", "spec.rules[0].tls"}),
		Entry("rules: count", specCase{"rules:" + list(256, "hosts: [h%d.example.com]"), "rules:" + list(257, "hosts: [h%d.example.com]"), "spec.rules: Too many"}),
		Entry("upstream: url", specCase{"proxy: {upstream: {url: 'http://corp-proxy:3128'}}", "proxy: {upstream: {url: 'http://user:pw@corp-proxy:3128'}}", "must be http://host:port"}),
		Entry("upstream: scheme", specCase{"proxy: {upstream: {url: 'http://10.0.0.1:3128/'}}", "proxy: {upstream: {url: 'socks5://10.0.0.1:3128'}}", "must be http://host:port"}),
		Entry("upstream: secret", specCase{"proxy: {upstream: {url: 'http://p:1', credentialsSecret: {name: s}}}", "proxy: {upstream: {url: 'http://p:1', credentialsSecret: {}}}", "credentialsSecret.name"}),
		Entry("proxy's own NetworkPolicy", specCase{"proxy: {networkPolicy: Disabled}", "proxy: {networkPolicy: None}", "spec.proxy.networkPolicy"}),
		Entry("the proxy's ports cannot be configured", specCase{"proxy: {}", "proxy: {port: 9000}", "spec.proxy.port"}),
		Entry("the canary's port cannot be configured", specCase{"proxy: {}", "proxy: {canaryPort: 9000}", "spec.proxy.canaryPort"}),
	)

	It("bounds the name so that the Service's name fits", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		Expect(create(ctx, namespace, strings.Repeat("a", 50), "")).To(Succeed())
		err := create(ctx, namespace, strings.Repeat("a", 51), "")
		Expect(err).To(MatchError(ContainSubstring("at most 50 characters")))
	})

	It("takes an empty spec as deny all and fills in every default", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		Expect(create(ctx, namespace, "empty", "")).To(Succeed())
		var got v1alpha1.SandboxEgress
		Expect(k8s.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "empty"}, &got)).To(Succeed())
		Expect(got.Spec).To(BeComparableTo(v1alpha1.SandboxEgressSpec{
			PodSelector:   &metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}},
			Mode:          v1alpha1.ModeEnforce,
			Delivery:      v1alpha1.DeliveryEnv,
			DNS:           v1alpha1.DNSCluster,
			StartGate:     v1alpha1.Enabled,
			NetworkPolicy: v1alpha1.NetworkPolicySpec{Granularity: v1alpha1.GranularityPerPod},
			Token: v1alpha1.TokenSpec{
				TTL:              &metav1.Duration{Duration: 4 * time.Hour},
				ContainerBinding: v1alpha1.BindingEnforced,
			},
			Limits: v1alpha1.LimitsSpec{
				Connections:       new(int32(256)),
				RequestsPerSecond: new(int32(200)),
				BytesPerSecond:    new(int64(0)),
			},
			Proxy: v1alpha1.ProxySpec{Replicas: new(int32(2)), NetworkPolicy: v1alpha1.Enabled},
		}))
	})

	It("keeps an explicit 0 as no limit", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		obj := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "unlimited"}}
		obj.Spec.Limits.Connections = new(int32(0))
		Expect(k8s.Create(ctx, obj)).To(Succeed())
		Expect(obj.Spec.Limits.Connections).To(HaveValue(BeZero()))
		Expect(obj.Spec.Limits.RequestsPerSecond).To(HaveValue(BeEquivalentTo(200)))
	})

	It("keeps podSelector immutable, {} included, and lets the rest change", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		key := client.ObjectKey{Namespace: namespace, Name: "agents"}
		Expect(create(ctx, namespace, "agents", "podSelector: {matchLabels: {app: agent}}")).To(Succeed())
		update := func(mutate func(*v1alpha1.SandboxEgress)) error {
			return retry.RetryOnConflict(retry.DefaultRetry, func() error {
				var obj v1alpha1.SandboxEgress
				if err := k8s.Get(ctx, key, &obj); err != nil {
					return err
				}
				mutate(&obj)
				return k8s.Update(ctx, &obj)
			})
		}
		Expect(update(func(o *v1alpha1.SandboxEgress) { o.Spec.AllowedHosts = []v1alpha1.HostPattern{"a.example.com"} })).To(Succeed())
		for _, selector := range []*metav1.LabelSelector{{}, {MatchLabels: map[string]string{"app": "other"}}, nil} {
			err := update(func(o *v1alpha1.SandboxEgress) { o.Spec.PodSelector = selector })
			Expect(err).To(MatchError(ContainSubstring("podSelector is immutable")), "%v", selector)
		}
	})

	It("has the short name, the category and the printer columns", func(ctx SpecContext) {
		mapping, err := k8s.RESTMapper().RESTMapping(v1alpha1.GroupVersionKind.GroupKind(), v1alpha1.Version)
		Expect(err).NotTo(HaveOccurred())
		Expect(mapping.Resource.Resource).To(Equal("sandboxegresses"))
		crd := &unstructured.Unstructured{}
		crd.SetAPIVersion("apiextensions.k8s.io/v1")
		crd.SetKind("CustomResourceDefinition")
		Expect(k8s.Get(ctx, client.ObjectKey{Name: "sandboxegresses.egress.sandbox.dev"}, crd)).To(Succeed())
		names, _, _ := unstructured.NestedMap(crd.Object, "spec", "names")
		Expect(names).To(HaveKeyWithValue("shortNames", ConsistOf("sbe")))
		Expect(names).To(HaveKeyWithValue("categories", ConsistOf("sandbox")))
		versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
		var columns []string
		for _, column := range versions[0].(map[string]any)["additionalPrinterColumns"].([]any) {
			columns = append(columns, column.(map[string]any)["name"].(string))
		}
		Expect(columns).To(Equal([]string{"Mode", "Ready", "Sandboxes", "Proxy", "Age"}))
	})

	It("keeps one condition per type", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		obj := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "status"}}
		Expect(k8s.Create(ctx, obj)).To(Succeed())
		condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Test", LastTransitionTime: metav1.Now()}
		obj.Status.Conditions = []metav1.Condition{condition, condition}
		Expect(k8s.Status().Update(ctx, obj)).To(MatchError(ContainSubstring("Duplicate value")))
		obj.Status.Conditions = obj.Status.Conditions[:1]
		Expect(k8s.Status().Update(ctx, obj)).To(Succeed())
	})
})
