package main

import (
	"context"
	"fmt"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// headerBytes of each packet are looked at: 60 (IPv4 with options) + 60 (TCP
// with options).
const headerBytes = 128

// openQueue answers the packets of the queue until ctx ends. A packet that
// cannot be parsed or judged is dropped.
func openQueue(ctx context.Context, number uint16, engine *networkpolicy.PolicyEngine) (*nfqueue.Nfqueue, error) {
	queue, err := nfqueue.Open(&nfqueue.Config{
		NfQueue:      number,
		MaxPacketLen: headerBytes,
		MaxQueueLen:  4096,
		Copymode:     nfqueue.NfQnlCopyPacket,
		Flags:        nfqueue.NfQaCfgFlagGSO,
		WriteTimeout: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("NFQUEUE %d: %w", number, err)
	}
	answer := func(a nfqueue.Attribute) int {
		verdict := nfqueue.NfDrop
		if a.Payload != nil && allowed(ctx, engine, *a.PacketID, *a.Payload) {
			verdict = nfqueue.NfAccept
		}
		if err := queue.SetVerdict(*a.PacketID, verdict); err != nil {
			klog.ErrorS(err, "verdict not delivered", "packet", *a.PacketID)
		}
		return 0
	}
	report := func(err error) int {
		if ctx.Err() != nil {
			return 1
		}
		klog.ErrorS(err, "reading the queue")
		return 0
	}
	if err := queue.RegisterWithErrorFunc(ctx, answer, report); err != nil {
		_ = queue.Close()
		return nil, fmt.Errorf("NFQUEUE %d: %w", number, err)
	}
	return queue, nil
}

func allowed(ctx context.Context, engine *networkpolicy.PolicyEngine, id uint32, payload []byte) (ok bool) {
	defer func() {
		// Upstream's parser indexes a TCP header without checking its length.
		if cause := recover(); cause != nil {
			klog.ErrorS(nil, "dropping a packet that broke the parser", "packet", id, "cause", cause)
			ok = false
		}
	}()
	packet, err := network.ParsePacket(payload)
	if err != nil {
		klog.ErrorS(err, "dropping a packet that cannot be parsed", "packet", id)
		return false
	}
	packet.ID = id
	ok, err = engine.EvaluatePacket(ctx, &packet)
	if err != nil {
		klog.ErrorS(err, "dropping a packet that cannot be judged", "packet", packet)
		return false
	}
	klog.V(2).InfoS("verdict", "allow", ok, "proto", packet.Proto,
		"src", packet.SrcIP, "sport", packet.SrcPort, "dst", packet.DstIP, "dport", packet.DstPort)
	return ok
}
