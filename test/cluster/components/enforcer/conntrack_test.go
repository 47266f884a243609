package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func tuple(proto uint8, src string, sport uint16, dst string, dport uint16) netlink.IPTuple {
	return netlink.IPTuple{
		Protocol: proto, SrcIP: net.ParseIP(src), SrcPort: sport, DstIP: net.ParseIP(dst), DstPort: dport,
	}
}

func TestFirstPacketIsTheOneAfterServiceTranslation(t *testing.T) {
	flow := &netlink.ConntrackFlow{
		Forward: tuple(unix.IPPROTO_TCP, "10.244.0.2", 4000, "10.96.0.10", 80),
		Reverse: tuple(unix.IPPROTO_TCP, "10.244.0.3", 8080, "10.244.0.2", 4000),
	}
	got, ok := firstPacket(flow)
	if !ok || got.Proto != v1.ProtocolTCP || got.SrcIP.String() != "10.244.0.2" || got.SrcPort != 4000 ||
		got.DstIP.String() != "10.244.0.3" || got.DstPort != 8080 {
		t.Errorf("got %v, %v", got, ok)
	}
	flow.Forward.Protocol = unix.IPPROTO_ICMP
	if _, ok := firstPacket(flow); ok {
		t.Error("a flow without ports has a packet with ports")
	}
}

func TestSameFlowComparesBothDirections(t *testing.T) {
	flow := &netlink.ConntrackFlow{
		Forward: tuple(unix.IPPROTO_TCP, "10.244.0.2", 4000, "10.96.0.10", 80),
		Reverse: tuple(unix.IPPROTO_TCP, "10.244.0.3", 8080, "10.244.0.2", 4000),
	}
	other := *flow
	if !(sameFlow{flow}).MatchConntrackFlow(&other) {
		t.Error("a flow differs from its copy")
	}
	other.Reverse.SrcIP = net.ParseIP("10.244.0.4")
	if (sameFlow{flow}).MatchConntrackFlow(&other) {
		t.Error("a flow to another pod counts as the same")
	}
}

// fixed is an evaluator with one answer.
type fixed struct {
	verdict api.Verdict
	err     error
}

func (f fixed) Name() string                                           { return "fixed" }
func (f fixed) Ready() bool                                            { return true }
func (f fixed) SetDataplaneSyncCallback(api.SyncFunc)                  {}
func (f fixed) ManagedIPs(context.Context) ([]netip.Addr, bool, error) { return nil, true, nil }
func (f fixed) EvaluateIngress(context.Context, *network.Packet, *api.PodInfo, *api.PodInfo) (api.Verdict, error) {
	return f.verdict, f.err
}
func (f fixed) EvaluateEgress(context.Context, *network.Packet, *api.PodInfo, *api.PodInfo) (api.Verdict, error) {
	return f.verdict, f.err
}

type noPods struct{}

func (noPods) GetPodInfoByIP(string) (*api.PodInfo, bool) { return nil, false }

func TestPacketsThatCannotBeJudgedAreDropped(t *testing.T) {
	syn := []byte{
		0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 244, 0, 2, 10, 244, 0, 3,
		0x10, 0, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
	}
	tests := map[string]struct {
		evaluator fixed
		payload   []byte
		want      bool
	}{
		"allowed":               {fixed{verdict: api.VerdictAccept}, syn, true},
		"denied":                {fixed{verdict: api.VerdictDeny}, syn, false},
		"evaluation fails":      {fixed{verdict: api.VerdictAccept, err: errors.New("broken")}, syn, false},
		"truncated":             {fixed{verdict: api.VerdictAccept}, syn[:10], false},
		"neither IPv4 nor IPv6": {fixed{verdict: api.VerdictAccept}, make([]byte, 40), false},
		"half a TCP header":     {fixed{verdict: api.VerdictAccept}, syn[:24], false},
		"empty":                 {fixed{verdict: api.VerdictAccept}, nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			engine := networkpolicy.NewPolicyEngine(noPods{}, []api.PolicyEvaluator{test.evaluator})
			if got := allowed(t.Context(), engine, 1, test.payload); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
