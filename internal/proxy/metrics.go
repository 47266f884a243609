package proxy

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// metrics have bounded labels only: policies that are configured, verdicts, reasons of
// reason.go. Never a host, a pod or a container.
type metrics struct {
	decisions   *prometheus.CounterVec
	closes      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	dialSeconds prometheus.Histogram
	dnsSeconds  *prometheus.HistogramVec
	accepted    prometheus.Counter
	refusedConn prometheus.Counter
	pauses      prometheus.Counter

	// Looking a label set up costs more than all the rest of counting, hence the caches.
	byDecision sync.Map // decisionKey -> prometheus.Counter
	byClose    sync.Map // closeKey -> closeCounters
}

type decisionKey struct {
	policy, reason string
	verdict        audit.Verdict
}

type closeKey struct{ policy, reason string }

type closeCounters struct{ n, sent, received prometheus.Counter }

func newMetrics(reg prometheus.Registerer, s *Server) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_decisions_total", Help: "Decisions by policy, verdict and reason.",
		}, []string{"policy", "decision", "reason"}),
		closes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_closes_total", Help: "Requests and tunnels that have ended, by policy and reason.",
		}, []string{"policy", "reason"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_bytes_total", Help: "Bytes of requests and tunnels that have ended, by policy and direction.",
		}, []string{"policy", "direction"}),
		dialSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sandbox_egress_dial_seconds", Help: "Time to connect to an origin or upstream.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		dnsSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sandbox_egress_dns_seconds", Help: "Time of name lookups that the cache did not answer, by result.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"result"}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sandbox_egress_connections_accepted_total", Help: "Client connections accepted.",
		}),
		refusedConn: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sandbox_egress_connections_refused_total", Help: "Client connections closed at once because their source address has too many.",
		}),
		pauses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sandbox_egress_accept_pauses_total", Help: "Times that accepting paused for lack of sockets or at the connection limit.",
		}),
	}
	gauges := []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sandbox_egress_connections", Help: "Client connections open.",
		}, func() float64 { return float64(s.open.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sandbox_egress_flows", Help: "Requests and tunnels in flight.",
		}, func() float64 { return float64(s.flows.n.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sandbox_egress_pods_known", Help: "Sandboxes that the policy source has reported.",
		}, func() float64 { return float64(s.store.Load().PodCount()) }),
	}
	for _, c := range append(gauges, m.decisions, m.closes, m.bytes, m.dialSeconds, m.dnsSeconds, m.accepted, m.refusedConn, m.pauses) {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) dns(result string, took time.Duration) {
	m.dnsSeconds.WithLabelValues(result).Observe(took.Seconds())
}

// count counts a record. label is the policy, "" when it is not one that is in force.
func (m *metrics) count(r *audit.Record, label string) {
	if r.Event == audit.Decision {
		m.decision(decisionKey{label, r.Reason, r.Decision}).Inc()
		return
	}
	if r.Decision == audit.Deny { // cut after it had been allowed
		m.decision(decisionKey{label, r.Reason, r.Decision}).Inc()
	}
	c := m.close(closeKey{label, r.Reason})
	c.n.Inc()
	c.sent.Add(float64(r.BytesSent))
	c.received.Add(float64(r.BytesReceived))
}

func (m *metrics) decision(k decisionKey) prometheus.Counter {
	if c, ok := m.byDecision.Load(k); ok {
		if counter, ok := c.(prometheus.Counter); ok {
			return counter
		}
	}
	c := m.decisions.WithLabelValues(k.policy, string(k.verdict), k.reason)
	m.byDecision.Store(k, c)
	return c
}

func (m *metrics) close(k closeKey) closeCounters {
	if c, ok := m.byClose.Load(k); ok {
		if counters, ok := c.(closeCounters); ok {
			return counters
		}
	}
	c := closeCounters{
		n:        m.closes.WithLabelValues(k.policy, k.reason),
		sent:     m.bytes.WithLabelValues(k.policy, "sent"),
		received: m.bytes.WithLabelValues(k.policy, "received"),
	}
	m.byClose.Store(k, c)
	return c
}
