package pod

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what happens to identities.
type Metrics struct {
	// Minted tokens by reason: new, rotation, changed, key_gone, drift.
	Minted *prometheus.CounterVec
	// Revoked identities by reason: completed, deleted, quarantined, policy.
	Revoked *prometheus.CounterVec
	// Refused identities by the reason of the Event on the pod.
	Refused *prometheus.CounterVec
}

// NewMetrics registers the counters; one that is registered already is used again, so that
// two managers can run in one process.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	var err error
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
		if e := reg.Register(c); e != nil {
			var again prometheus.AlreadyRegisteredError
			if !errors.As(e, &again) {
				err = errors.Join(err, e)
				return c
			}
			if old, ok := again.ExistingCollector.(*prometheus.CounterVec); ok {
				return old
			}
		}
		return c
	}
	m := &Metrics{
		Minted:  counter("sandbox_egress_operator_tokens_minted_total", "Tokens minted into identity Secrets, by reason."),
		Revoked: counter("sandbox_egress_operator_identities_revoked_total", "Identity Secrets and NetworkPolicies removed, by reason."),
		Refused: counter("sandbox_egress_operator_identities_refused_total", "Sandboxes that were given no identity, by reason."),
	}
	return m, err
}
