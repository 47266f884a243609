package internet

import (
	"net"
	"time"

	"github.com/miekg/dns"
)

// dnsHandler answers from the zone and logs every question.
type dnsHandler struct {
	zone *Zone
	log  *Log
}

func (h dnsHandler) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative = true
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(reply)
		return
	}
	question := query.Question[0]
	err := h.log.Add(Event{
		Kind: KindDNS, Server: w.LocalAddr().String(), Client: w.RemoteAddr().String(),
		Name: question.Name, Type: dns.TypeToString[question.Qtype],
	})
	if err != nil {
		reply.Rcode = dns.RcodeServerFailure
		_ = w.WriteMsg(reply)
		return
	}
	h.answer(reply, question)
	_ = w.WriteMsg(reply) // a client that has gone needs no answer
}

func (h dnsHandler) answer(reply *dns.Msg, question dns.Question) {
	record, ok := h.zone.Lookup(question.Name, question.Qtype == dns.TypeAAAA)
	switch {
	case !ok:
		reply.Rcode = dns.RcodeNameError
		return
	case record.Fail:
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	time.Sleep(record.Delay)
	if question.Qtype != dns.TypeA && question.Qtype != dns.TypeAAAA {
		return
	}
	for _, a := range record.Addresses {
		// TTL 0: a test that changes a record sees the change at once.
		header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET}
		ip := net.IP(a.AsSlice())
		if question.Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: ip})
		} else {
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: ip})
		}
	}
}
