// Package netpol builds the NetworkPolicies around sandboxes and proxies. It is pure: what
// it returns depends on its arguments only.
package netpol

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

const dnsPort = 53

// Config is what the policies need to know about the cluster.
type Config struct {
	// DNSNamespace is where the cluster's DNS servers run, "kube-system".
	DNSNamespace string
	// NodeLocalDNS are addresses of a DNS cache on the node, such as 169.254.20.10/32. It
	// runs on the host network, so no selector reaches it.
	NodeLocalDNS []netip.Prefix
	// MetricsNamespaces may scrape the proxies' admin port; none when empty.
	MetricsNamespaces []string
}

// DefaultDeny isolates every pod that p selects. Under Shared granularity it carries the
// allow rules too, unless isolate is set: then it allows nothing.
//
// It has no owner on purpose: the garbage collector would delete it with a foreground
// deletion of the SandboxEgress while sandboxes still run. And it has a finalizer, so that
// it outlives whoever deletes it, the deletion of its namespace included: an object that is
// being deleted is enforced until it is gone.
func DefaultDeny(p *v1alpha1.SandboxEgress, cfg Config, isolate bool) (*networkingv1ac.NetworkPolicyApplyConfiguration, error) {
	sel, err := match.PodSelector(p)
	if err != nil {
		return nil, err
	}
	spec := networkingv1ac.NetworkPolicySpec().
		WithPodSelector(selector(sel)).
		WithPolicyTypes(networkingv1.PolicyTypeEgress)
	if p.Spec.NetworkPolicy.Granularity == v1alpha1.GranularityShared && !isolate {
		spec.WithEgress(sandboxEgress(p, cfg)...)
	}
	return networkingv1ac.NetworkPolicy(v1alpha1.DefaultDenyName(p.Name), p.Namespace).
		WithLabels(Labels(p.Name, v1alpha1.ComponentDefaultDeny)).
		WithFinalizers(v1alpha1.IsolationFinalizer).
		WithSpec(spec), nil
}

// Labels are those of every owned object.
func Labels(policy, component string) map[string]string {
	return map[string]string{
		v1alpha1.PolicyKey:             policy,
		v1alpha1.ComponentLabel:        component,
		"app.kubernetes.io/managed-by": "sandbox-egress",
	}
}

// Pod allows the one sandbox that carries the id label what DefaultDeny closes: DNS and its
// proxy. The pod owns it.
func Pod(p *v1alpha1.SandboxEgress, cfg Config, pod metav1.Object, id string) *networkingv1ac.NetworkPolicyApplyConfiguration {
	return networkingv1ac.NetworkPolicy(v1alpha1.IdentityName(id), p.Namespace).
		WithLabels(Labels(p.Name, v1alpha1.ComponentIdentity)).
		WithOwnerReferences(PodOwner(pod.GetName(), pod.GetUID())).
		WithSpec(networkingv1ac.NetworkPolicySpec().
			WithPodSelector(metav1ac.LabelSelector().WithMatchLabels(map[string]string{v1alpha1.IDKey: id})).
			WithPolicyTypes(networkingv1.PolicyTypeEgress).
			WithEgress(sandboxEgress(p, cfg)...))
}

// PodOwner makes a pod the controlling owner of an identity object.
func PodOwner(name string, uid types.UID) *metav1ac.OwnerReferenceApplyConfiguration {
	return metav1ac.OwnerReference().WithAPIVersion("v1").WithKind("Pod").WithName(name).WithUID(uid).WithController(true)
}

// sandboxEgress is all that a sandbox may reach: the proxy's port and, unless dns is None,
// DNS. The canary port is left out: the start gate proves by it that the CNI enforces.
func sandboxEgress(p *v1alpha1.SandboxEgress, cfg Config) []*networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration {
	proxy := networkingv1ac.NetworkPolicyEgressRule().
		WithTo(networkingv1ac.NetworkPolicyPeer().
			WithPodSelector(metav1ac.LabelSelector().WithMatchLabels(match.ProxyLabels(p.Name)))).
		WithPorts(port(corev1.ProtocolTCP, v1alpha1.ProxyPort))
	rules := []*networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration{proxy}
	if p.Spec.DNS != v1alpha1.DNSNone {
		rules = append(rules, dnsRule(cfg))
	}
	return rules
}

func dnsRule(cfg Config) *networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration {
	rule := networkingv1ac.NetworkPolicyEgressRule().
		WithTo(networkingv1ac.NetworkPolicyPeer().WithNamespaceSelector(namespaces(cfg.DNSNamespace))).
		WithPorts(port(corev1.ProtocolUDP, dnsPort), port(corev1.ProtocolTCP, dnsPort))
	for _, prefix := range cfg.NodeLocalDNS {
		rule.WithTo(networkingv1ac.NetworkPolicyPeer().WithIPBlock(networkingv1ac.IPBlock().WithCIDR(prefix.String())))
	}
	return rule
}

// namespaces selects by kubernetes.io/metadata.name, which the API server sets and nobody
// can change (KEP-2161).
func namespaces(names ...string) *metav1ac.LabelSelectorApplyConfiguration {
	if len(names) == 1 {
		return metav1ac.LabelSelector().WithMatchLabels(map[string]string{corev1.LabelMetadataName: names[0]})
	}
	return metav1ac.LabelSelector().WithMatchExpressions(metav1ac.LabelSelectorRequirement().
		WithKey(corev1.LabelMetadataName).WithOperator(metav1.LabelSelectorOpIn).WithValues(names...))
}

// port spells the protocol out: a defaulted field would differ from what was applied.
func port(protocol corev1.Protocol, number int32) *networkingv1ac.NetworkPolicyPortApplyConfiguration {
	return networkingv1ac.NetworkPolicyPort().WithProtocol(protocol).WithPort(intstr.FromInt32(number))
}

func selector(s *metav1.LabelSelector) *metav1ac.LabelSelectorApplyConfiguration {
	out := metav1ac.LabelSelector()
	if len(s.MatchLabels) > 0 {
		out.WithMatchLabels(s.MatchLabels)
	}
	for _, r := range s.MatchExpressions {
		req := metav1ac.LabelSelectorRequirement().WithKey(r.Key).WithOperator(r.Operator)
		if len(r.Values) > 0 {
			req.WithValues(r.Values...)
		}
		out.WithMatchExpressions(req)
	}
	return out
}
