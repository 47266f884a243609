package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// cutForbidden forgets established connections that the policies no longer
// allow. Their next packet then counts as new, reaches the queue and is
// dropped. Without it a policy would only ever hold for new connections.
func cutForbidden(ctx context.Context, engine *networkpolicy.PolicyEngine) error {
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("listing conntrack: %w", err)
	}
	filter := forbidden{engine: engine, ctx: ctx}
	var errs []error
	for _, flow := range flows {
		if !filter.MatchConntrackFlow(flow) {
			continue
		}
		klog.InfoS("cutting a connection that is no longer allowed", "flow", flow.String())
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, sameFlow{flow}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

type forbidden struct {
	ctx    context.Context
	engine *networkpolicy.PolicyEngine
}

func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	packet, ok := firstPacket(flow)
	if !ok {
		return false
	}
	allow, err := f.engine.EvaluatePacket(f.ctx, packet)
	return err != nil || !allow
}

// firstPacket returns the packet that opened flow as the FORWARD and INPUT
// hooks saw it: the client as it sent it, the server after DNAT, which is what
// the reply direction answers from.
func firstPacket(flow *netlink.ConntrackFlow) (*network.Packet, bool) {
	var proto v1.Protocol
	switch flow.Forward.Protocol {
	case unix.IPPROTO_TCP:
		proto = v1.ProtocolTCP
	case unix.IPPROTO_UDP:
		proto = v1.ProtocolUDP
	case unix.IPPROTO_SCTP:
		proto = v1.ProtocolSCTP
	default:
		return nil, false
	}
	return &network.Packet{
		Family:  v1.IPv4Protocol,
		SrcIP:   flow.Forward.SrcIP,
		SrcPort: int(flow.Forward.SrcPort),
		DstIP:   flow.Reverse.SrcIP,
		DstPort: int(flow.Reverse.SrcPort),
		Proto:   proto,
	}, true
}

type sameFlow struct{ flow *netlink.ConntrackFlow }

func (s sameFlow) MatchConntrackFlow(other *netlink.ConntrackFlow) bool {
	return sameTuple(s.flow.Forward, other.Forward) && sameTuple(s.flow.Reverse, other.Reverse)
}

func sameTuple(a, b netlink.IPTuple) bool {
	return a.Protocol == b.Protocol && a.SrcPort == b.SrcPort && a.DstPort == b.DstPort &&
		net.IP.Equal(a.SrcIP, b.SrcIP) && net.IP.Equal(a.DstIP, b.DstIP)
}
