package netpol

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// Proxy keeps the proxy of p from the cluster's own services, should it be compromised, and
// lets only the sandboxes of p talk to it. apiServer are the endpoint addresses of the API
// server; upstream is the compiled spec.proxy.upstream, or nil.
func Proxy(p *v1alpha1.SandboxEgress, cfg Config, apiServer []netip.AddrPort, upstream *policy.Upstream) (*networkingv1ac.NetworkPolicyApplyConfiguration, error) {
	sandboxes, err := match.PodSelector(p)
	if err != nil {
		return nil, err
	}
	spec := networkingv1ac.NetworkPolicySpec().
		WithPodSelector(metav1ac.LabelSelector().WithMatchLabels(match.ProxyLabels(p.Name))).
		WithPolicyTypes(networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress).
		// The canary port stays open on this side: were it closed here, the start gate would
		// find it unreachable without anything being enforced on the sandbox.
		WithIngress(networkingv1ac.NetworkPolicyIngressRule().
			WithFrom(networkingv1ac.NetworkPolicyPeer().WithPodSelector(selector(sandboxes))).
			WithPorts(port(corev1.ProtocolTCP, v1alpha1.ProxyPort), port(corev1.ProtocolTCP, v1alpha1.CanaryPort)))
	if len(cfg.MetricsNamespaces) > 0 {
		spec.WithIngress(networkingv1ac.NetworkPolicyIngressRule().
			WithFrom(networkingv1ac.NetworkPolicyPeer().WithNamespaceSelector(namespaces(cfg.MetricsNamespaces...))).
			WithPorts(port(corev1.ProtocolTCP, v1alpha1.AdminPort)))
	}
	spec.WithEgress(dnsRule(cfg))
	for _, ap := range apiServer {
		spec.WithEgress(networkingv1ac.NetworkPolicyEgressRule().
			WithTo(block(netip.PrefixFrom(ap.Addr(), ap.Addr().BitLen()), nil)).
			WithPorts(port(corev1.ProtocolTCP, int32(ap.Port()))))
	}
	if upstream != nil {
		spec.WithEgress(upstreamRule(upstream))
	}
	open, err := privateBlocks(p.Spec.PrivateNetworks)
	if err != nil {
		return nil, err
	}
	spec.WithEgress(networkingv1ac.NetworkPolicyEgressRule().
		WithTo(append(internet(), open...)...).
		WithPorts(networkingv1ac.NetworkPolicyPort().WithProtocol(corev1.ProtocolTCP)))
	return networkingv1ac.NetworkPolicy(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(Labels(p.Name, v1alpha1.ComponentProxy)).
		WithOwnerReferences(PolicyOwner(p)).
		WithSpec(spec), nil
}

// PolicyOwner makes a SandboxEgress the controlling owner of an object.
func PolicyOwner(p *v1alpha1.SandboxEgress) *metav1ac.OwnerReferenceApplyConfiguration {
	return metav1ac.OwnerReference().
		WithAPIVersion(v1alpha1.SchemeGroupVersion.String()).WithKind(v1alpha1.Kind).
		WithName(p.Name).WithUID(p.UID).WithController(true).WithBlockOwnerDeletion(true)
}

// upstreamRule opens the upstream's port. A NetworkPolicy cannot hold a name, and an
// upstream is usually private, so for a name it opens that one port to every address that
// is not closed for good, and to pods.
func upstreamRule(u *policy.Upstream) *networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration {
	rule := networkingv1ac.NetworkPolicyEgressRule().WithPorts(port(corev1.ProtocolTCP, int32(u.Authority.Port)))
	if a := u.Authority.Host.Addr(); a.IsValid() {
		return rule.WithTo(block(netip.PrefixFrom(a, a.BitLen()), nil))
	}
	never := slices.DeleteFunc(ipguard.SpecialRanges(), func(r ipguard.Range) bool { return !r.Never })
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		p := netip.MustParsePrefix(all)
		rule.WithTo(block(p, within(p, prefixes(never))))
	}
	// Some CNIs never match a pod by an address block.
	return rule.WithTo(networkingv1ac.NetworkPolicyPeer().WithNamespaceSelector(metav1ac.LabelSelector()))
}

// internet is all that the address guard leaves open. Of IPv6 that is global unicast space
// (RFC 4291 section 2.4) and what NAT64 makes of IPv4 (RFC 6052); naming these two says the
// same as ::/0 without the rest, in a third of the exceptions.
func internet() []*networkingv1ac.NetworkPolicyPeerApplyConfiguration {
	special := prefixes(ipguard.SpecialRanges())
	var out []*networkingv1ac.NetworkPolicyPeerApplyConfiguration
	for _, open := range []string{"0.0.0.0/0", "2000::/3", "64:ff9b::/96"} {
		p := netip.MustParsePrefix(open)
		out = append(out, block(p, within(p, special)))
	}
	return out
}

func privateBlocks(cidrs []v1alpha1.CIDR) ([]*networkingv1ac.NetworkPolicyPeerApplyConfiguration, error) {
	never := prefixes(slices.DeleteFunc(ipguard.SpecialRanges(), func(r ipguard.Range) bool { return !r.Never }))
	var out []*networkingv1ac.NetworkPolicyPeerApplyConfiguration
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(string(c))
		if err != nil {
			return nil, fmt.Errorf("spec.privateNetworks[%d]: %w", i, err)
		}
		out = append(out, block(p, within(p, never)))
	}
	return out, nil
}

func prefixes(rs []ipguard.Range) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.Prefix)
	}
	return out
}

// within returns those of all that lie inside p, without those inside another one: an
// except must be a proper part of its block, and fewer of them make smaller rule sets.
func within(p netip.Prefix, all []netip.Prefix) []netip.Prefix {
	inside := func(outer, inner netip.Prefix) bool {
		return outer.Bits() < inner.Bits() && outer.Contains(inner.Addr())
	}
	var out []netip.Prefix
	for _, x := range all {
		if inside(p, x) && !slices.ContainsFunc(all, func(y netip.Prefix) bool { return inside(p, y) && inside(y, x) }) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

func block(p netip.Prefix, except []netip.Prefix) *networkingv1ac.NetworkPolicyPeerApplyConfiguration {
	b := networkingv1ac.IPBlock().WithCIDR(p.String())
	for _, e := range except {
		b.WithExcept(e.String())
	}
	return networkingv1ac.NetworkPolicyPeer().WithIPBlock(b)
}
