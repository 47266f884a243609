package lab

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ServeDNS answers A questions from records (lower-case names without the final dot) on
// address, IP:port, over UDP and TCP. Other names do not exist. stop ends it.
func (n *Namespace) ServeDNS(ctx context.Context, address string, records map[string]netip.Addr) (stop func(), err error) {
	packets, err := n.ListenPacket(ctx, address)
	if err != nil {
		return nil, err
	}
	stream, err := n.Listen(ctx, address)
	if err != nil {
		_ = packets.Close()
		return nil, err
	}
	servers := []*dns.Server{
		{PacketConn: packets, Handler: zone(records)},
		{Listener: stream, Handler: zone(records), ReadTimeout: 10 * time.Second},
	}
	for _, s := range servers {
		go func() { _ = s.ActivateAndServe() }()
	}
	return func() {
		_ = packets.Close()
		_ = stream.Close()
	}, nil
}

type zone map[string]netip.Addr

func (z zone) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative = true
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(reply)
		return
	}
	q := query.Question[0]
	a, known := z[strings.ToLower(strings.TrimSuffix(q.Name, "."))]
	switch {
	case !known:
		reply.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   net.IP(a.AsSlice()),
		}}
	}
	_ = w.WriteMsg(reply)
}
