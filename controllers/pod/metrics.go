package pod

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Why an identity was taken away.
const (
	revokeCompleted   = "completed"
	revokeDeleted     = "deleted"
	revokeQuarantined = "quarantined"
	revokePolicy      = "policy"
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

// NewMetrics registers the counters.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
	}
	m := &Metrics{
		Minted:  counter("sandbox_egress_operator_tokens_minted_total", "Tokens minted into identity Secrets, by reason."),
		Revoked: counter("sandbox_egress_operator_identities_revoked_total", "Identity Secrets and NetworkPolicies removed, by reason."),
		Refused: counter("sandbox_egress_operator_identities_refused_total", "Sandboxes that were given no identity, by reason."),
	}
	// At 0 from the start, or the first of its kind would not show as an increase.
	for _, reason := range []mintReason{mintNew, mintRotation, mintChanged, mintKeyGone, mintDrift} {
		m.Minted.WithLabelValues(string(reason))
	}
	for _, reason := range []string{revokeCompleted, revokeDeleted, revokeQuarantined, revokePolicy} {
		m.Revoked.WithLabelValues(reason)
	}
	for _, reason := range []string{EventUninjected, EventPolicyGone, EventInvalidID, EventDuplicateID, EventDuplicateContainerID, EventInvalidContainerID, EventQuarantined} {
		m.Refused.WithLabelValues(reason)
	}
	return m, errors.Join(reg.Register(m.Minted), reg.Register(m.Revoked), reg.Register(m.Refused))
}
