package netpol_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"
	"pgregory.net/rapid"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

const namespace = "team-a"

// pod is a pod somewhere in the cluster, as source or destination.
type pod struct {
	namespace string
	labels    map[string]string
	addr      netip.Addr
}

// target is where a packet goes: to a pod, or to an address outside the cluster.
type target struct {
	pod      *pod
	addr     netip.Addr
	protocol corev1.Protocol
	port     int32
}

func typed(t interface{ Fatalf(string, ...any) }, c *networkingv1ac.NetworkPolicyApplyConfiguration) networkingv1.NetworkPolicy {
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	var np networkingv1.NetworkPolicy
	if err := json.Unmarshal(raw, &np); err != nil {
		t.Fatalf("decode: %v", err)
	}
	return np
}

func selects(s *metav1.LabelSelector, l map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(l))
}

// allowed evaluates the egress half of NetworkPolicy as the API documents it: a pod that no
// Egress policy selects may send anywhere; else the union of the rules decides.
func allowed(policies []networkingv1.NetworkPolicy, from pod, to target) bool {
	isolated := false
	for _, np := range policies {
		if np.Namespace != from.namespace || !slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) || !selects(&np.Spec.PodSelector, from.labels) {
			continue
		}
		isolated = true
		for _, rule := range np.Spec.Egress {
			if portMatches(rule.Ports, to) && peerMatches(np.Namespace, rule.To, to) {
				return true
			}
		}
	}
	return !isolated
}

func portMatches(ports []networkingv1.NetworkPolicyPort, to target) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return *p.Protocol == to.protocol && (p.Port == nil || p.Port.IntVal == to.port)
	})
}

func peerMatches(ns string, peers []networkingv1.NetworkPolicyPeer, to target) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			// An address block matches a pod's address too, in the CNIs that are lax about it.
			addr := to.addr
			if to.pod != nil {
				addr = to.pod.addr
			}
			return netip.MustParsePrefix(p.IPBlock.CIDR).Contains(addr) &&
				!slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(addr) })
		}
		if to.pod == nil {
			return false
		}
		if p.NamespaceSelector == nil {
			return to.pod.namespace == ns && selects(p.PodSelector, to.pod.labels)
		}
		return selects(p.NamespaceSelector, map[string]string{corev1.LabelMetadataName: to.pod.namespace}) &&
			(p.PodSelector == nil || selects(p.PodSelector, to.pod.labels))
	})
}

var (
	labelKeys   = []string{"app", "tier", "team", v1alpha1.ComponentLabel, v1alpha1.PolicyKey}
	labelValues = []string{"sandbox", "web", "proxy", "p0", "p1", ""}
)

func genLabels(t *rapid.T, name string) map[string]string {
	return rapid.MapOf(rapid.SampledFrom(labelKeys), rapid.SampledFrom(labelValues)).Draw(t, name)
}

func genSelector(t *rapid.T, name string) *metav1.LabelSelector {
	if rapid.Bool().Draw(t, name+" default") {
		return nil
	}
	s := &metav1.LabelSelector{MatchLabels: genLabels(t, name+" labels")}
	for i := range rapid.IntRange(0, 2).Draw(t, name+" expressions") {
		op := rapid.SampledFrom([]metav1.LabelSelectorOperator{metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist}).Draw(t, fmt.Sprint(name, " op ", i))
		r := metav1.LabelSelectorRequirement{Key: rapid.SampledFrom(labelKeys).Draw(t, fmt.Sprint(name, " key ", i)), Operator: op}
		if op == metav1.LabelSelectorOpIn || op == metav1.LabelSelectorOpNotIn {
			r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom(labelValues), 1, 3, rapid.ID[string]).Draw(t, fmt.Sprint(name, " values ", i))
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func genPolicy(t *rapid.T, i int) *v1alpha1.SandboxEgress {
	name := fmt.Sprint("p", i)
	p := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	p.Spec.PodSelector = genSelector(t, name)
	p.Spec.DNS = rapid.SampledFrom([]v1alpha1.DNSMode{"", v1alpha1.DNSCluster, v1alpha1.DNSNone}).Draw(t, name+" dns")
	p.Spec.NetworkPolicy.Granularity = rapid.SampledFrom([]v1alpha1.Granularity{"", v1alpha1.GranularityPerPod, v1alpha1.GranularityShared}).Draw(t, name+" granularity")
	p.Spec.Proxy.NetworkPolicy = v1alpha1.Enabled
	return p
}

// genSandboxLabels mostly gives labels that some policy selects, with some more.
func genSandboxLabels(t *rapid.T, policies []*v1alpha1.SandboxEgress, name string) map[string]string {
	out := genLabels(t, name)
	if sel, err := match.PodSelector(rapid.SampledFrom(policies).Draw(t, name+" of")); err == nil && rapid.IntRange(0, 4).Draw(t, name+" matches") > 0 {
		if example, ok := match.Example(sel); ok {
			maps.Copy(out, example)
		}
	}
	return out
}

func genAddr(t *rapid.T, name string) netip.Addr {
	if rapid.Bool().Draw(t, name+" v4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
}

func genPod(t *rapid.T, name string) pod {
	return pod{
		namespace: rapid.SampledFrom([]string{namespace, "kube-system", "team-b"}).Draw(t, name+" namespace"),
		labels:    genLabels(t, name), addr: genAddr(t, name+" address"),
	}
}

// genTarget aims at what matters half of the time: proxies, DNS, the ports in question.
func genTarget(t *rapid.T, policies []*v1alpha1.SandboxEgress) target {
	to := target{
		protocol: rapid.SampledFrom([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}).Draw(t, "protocol"),
		port:     rapid.OneOf(rapid.SampledFrom([]int32{53, 8443}), rapid.SampledFrom([]int32{80, 443, 6443, 9901, 9902}), rapid.Int32Range(1, 65535)).Draw(t, "port"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "kind of target") {
	case 0:
		to.addr = genAddr(t, "target address")
	case 1:
		to.pod = &pod{namespace: namespace, labels: match.ProxyPodLabels(rapid.SampledFrom(policies).Draw(t, "proxy of").Name), addr: genAddr(t, "proxy address")}
	default:
		p := genPod(t, "target")
		to.pod = &p
	}
	return to
}

// TestASandboxReachesAtMostDNSAndItsProxy is the promise of the design on the level of
// NetworkPolicies, whatever policies and pods there are, and whichever of the policies of
// single sandboxes exist at that moment.
func TestASandboxReachesAtMostDNSAndItsProxy(t *testing.T) {
	cfg := netpol.Config{DNSNamespace: "kube-system", NodeLocalDNS: []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32")}, MetricsNamespaces: []string{"monitoring"}}
	seen := map[bool]int{}
	defer func() { t.Logf("packets allowed: %d, refused: %d", seen[true], seen[false]) }()
	rapid.Check(t, func(t *rapid.T) {
		var policies []*v1alpha1.SandboxEgress
		var set []networkingv1.NetworkPolicy
		for i := range rapid.IntRange(1, 2).Draw(t, "policies") {
			p := genPolicy(t, i)
			policies = append(policies, p)
			deny, err := netpol.DefaultDeny(p, cfg, rapid.Bool().Draw(t, "isolated"))
			if err != nil {
				t.Fatalf("DefaultDeny: %v", err)
			}
			proxy, err := netpol.Proxy(p, cfg, nil, nil)
			if err != nil {
				t.Fatalf("Proxy: %v", err)
			}
			set = append(set, typed(t, deny), typed(t, proxy))
		}
		type sandbox struct {
			pod
			under []string
		}
		var sandboxes []sandbox
		for i := range rapid.IntRange(1, 3).Draw(t, "pods") {
			pd := pod{namespace: namespace, labels: genSandboxLabels(t, policies, fmt.Sprint("pod ", i)), addr: genAddr(t, fmt.Sprint("pod address ", i))}
			under := match.Policies([]v1alpha1.SandboxEgress{*policies[0], *policies[len(policies)-1]}, pd.labels)
			// A pod with the proxy's label is refused at admission when a selector catches it; on
			// this level it would have the proxy's own policy.
			if len(under) == 0 || pd.labels[v1alpha1.ComponentLabel] == v1alpha1.ComponentProxy {
				continue
			}
			p := policies[slices.IndexFunc(policies, func(p *v1alpha1.SandboxEgress) bool { return p.Name == under[0] })]
			id := fmt.Sprintf("id%d", i)
			if p.Spec.NetworkPolicy.Granularity != v1alpha1.GranularityShared {
				pd.labels[v1alpha1.IDKey] = id
				if rapid.Bool().Draw(t, "has its policy") {
					set = append(set, typed(t, netpol.Pod(p, cfg, &metav1.ObjectMeta{Name: "x", UID: "u"}, id)))
				}
			}
			sandboxes = append(sandboxes, sandbox{pd, under})
		}
		// Order must not matter.
		set = rapid.Permutation(set).Draw(t, "order")
		for _, s := range sandboxes {
			for range 8 {
				to := genTarget(t, policies)
				got := allowed(set, s.pod, to)
				seen[got]++
				if !got {
					continue
				}
				dns := to.port == 53 && to.protocol != corev1.ProtocolSCTP &&
					(to.pod != nil && to.pod.namespace == "kube-system" || addrOf(to) == netip.MustParseAddr("169.254.20.10"))
				proxy := to.pod != nil && to.pod.namespace == namespace && to.protocol == corev1.ProtocolTCP && to.port == v1alpha1.ProxyPort &&
					to.pod.labels[v1alpha1.ComponentLabel] == v1alpha1.ComponentProxy && slices.Contains(s.under, to.pod.labels[v1alpha1.PolicyKey])
				if !dns && !proxy {
					t.Fatalf("sandbox %v under %v reaches %+v (pod %+v)", s.labels, s.under, to, to.pod)
				}
			}
		}
	})
	if seen[true] == 0 || seen[false] == 0 {
		t.Fatalf("the generator never reached both answers: %v", seen)
	}
}

func addrOf(to target) netip.Addr {
	if to.pod != nil {
		return to.pod.addr
	}
	return to.addr
}

// TestAProxyReachesNoSpecialAddress holds the proxy's own policy against the table of the
// address guard.
func TestAProxyReachesNoSpecialAddress(t *testing.T) {
	cfg := netpol.Config{DNSNamespace: "kube-system"}
	api := netip.MustParseAddrPort("10.0.0.1:6443")
	private := netip.MustParsePrefix("10.20.0.0/16")
	guard, err := ipguard.New([]netip.Prefix{private})
	if err != nil {
		t.Fatal(err)
	}
	p := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: "p0", Namespace: namespace, UID: "u"}}
	p.Spec.PrivateNetworks = []v1alpha1.CIDR{v1alpha1.CIDR(private.String())}
	np, err := netpol.Proxy(p, cfg, []netip.AddrPort{api}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := []networkingv1.NetworkPolicy{typed(t, np)}
	from := pod{namespace: namespace, labels: match.ProxyPodLabels("p0")}
	ranges := ipguard.SpecialRanges()
	rapid.Check(t, func(t *rapid.T) {
		addr := genAddr(t, "address")
		if rapid.Bool().Draw(t, "special") {
			addr = inside(rapid.SampledFrom(ranges).Draw(t, "range").Prefix, addr)
		}
		if addr.Is4In6() {
			return // cannot be written as a destination of a packet
		}
		to := target{addr: addr, protocol: corev1.ProtocolTCP, port: rapid.SampledFrom([]int32{53, 80, 443, 6443}).Draw(t, "port")}
		if allowed(set, from, to) && guard.Check(addr) != nil && netip.AddrPortFrom(addr, uint16(to.port)) != api && !embeds(addr) {
			t.Fatalf("the proxy's NetworkPolicy lets %s:%d through, which the guard refuses: %v", addr, to.port, guard.Check(addr))
		}
		to.protocol = corev1.ProtocolUDP
		if allowed(set, from, to) {
			t.Fatalf("UDP to %s:%d is let through", addr, to.port)
		}
	})
	for _, to := range []struct {
		addr string
		port int32
		want bool
	}{
		{"1.1.1.1", 443, true}, {"10.20.3.4", 5432, true}, {"10.0.0.1", 6443, true}, {"10.0.0.1", 443, false}, {"10.21.0.1", 443, false},
		{"169.254.169.254", 80, false}, {"127.0.0.1", 80, false}, {"2606:4700::1", 443, true}, {"fd00::1", 443, false},
	} {
		got := allowed(set, from, target{addr: netip.MustParseAddr(to.addr), protocol: corev1.ProtocolTCP, port: to.port})
		if got != to.want {
			t.Errorf("proxy to %s:%d: allowed = %v, want %v", to.addr, to.port, got, to.want)
		}
	}
}

// embeds reports addresses that the guard refuses for an IPv4 address inside, which no list
// of ranges can express: ISATAP interface identifiers.
func embeds(a netip.Addr) bool {
	b := a.As16()
	return a.Is6() && (b[8] == 0 || b[8] == 2) && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

func inside(p netip.Prefix, a netip.Addr) netip.Addr {
	base, host := p.Addr().AsSlice(), a.As16()
	out := make([]byte, len(base))
	for i := range base {
		bits := min(max(p.Bits()-8*i, 0), 8)
		mask := byte(0xff << (8 - bits))
		out[i] = base[i]&mask | host[16-len(base)+i]&^mask
	}
	addr, _ := netip.AddrFromSlice(out)
	return addr
}

func TestUpstreamRule(t *testing.T) {
	for name, tc := range map[string]struct {
		upstream string
		reach    map[string]bool
	}{
		"an address opens itself only": {"10.9.8.7:3128", map[string]bool{"10.9.8.7": true, "10.9.8.8": false}},
		"a name opens its port to private addresses, not to metadata and loopback": {"corp-proxy:3128", map[string]bool{
			"10.9.8.7": true, "169.254.169.254": false, "127.0.0.1": false, "fd12::1": true, "fe80::1": false}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := hostname.ParseAuthority(tc.upstream)
			if err != nil {
				t.Fatal(err)
			}
			p := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: "p0", Namespace: namespace}}
			np, err := netpol.Proxy(p, netpol.Config{DNSNamespace: "kube-system"}, nil, &policy.Upstream{Authority: a})
			if err != nil {
				t.Fatal(err)
			}
			set := []networkingv1.NetworkPolicy{typed(t, np)}
			from := pod{namespace: namespace, labels: match.ProxyPodLabels("p0")}
			for addr, want := range tc.reach {
				if got := allowed(set, from, target{addr: netip.MustParseAddr(addr), protocol: corev1.ProtocolTCP, port: 3128}); got != want {
					t.Errorf("%s:3128: allowed = %v, want %v", addr, got, want)
				}
				if allowed(set, from, target{addr: netip.MustParseAddr("10.9.8.7"), protocol: corev1.ProtocolTCP, port: 22}) {
					t.Error("another port is open")
				}
			}
		})
	}
}
