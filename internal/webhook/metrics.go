package webhook

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// counters of admission. Labels are bounded: deliveries, and the reasons below.
type counters struct {
	injections *prometheus.CounterVec // delivery
	denials    *prometheus.CounterVec // reason
}

func newCounters(r prometheus.Registerer) (*counters, error) {
	c := &counters{
		injections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_operator_injections_total",
			Help: "Pods that were made sandboxes at admission, by delivery. Dry runs and reinvocations do not count.",
		}, []string{"delivery"}),
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_operator_admission_denials_total",
			Help: "Pods and SandboxEgress objects that were refused at admission, by reason. Dry runs do not count.",
		}, []string{"reason"}),
	}
	for _, v := range []*prometheus.CounterVec{c.injections, c.denials} {
		if err := r.Register(v); err != nil {
			return nil, fmt.Errorf("webhook metrics: %w", err)
		}
	}
	return c, nil
}
