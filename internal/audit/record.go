// Package audit writes what the proxy decided: one JSON line per decision and one per
// close. A record holds no token, no query string, no path and no userinfo, so that the
// log can be kept and shared.
package audit

import (
	"net/netip"
	"time"
)

// Event says which of the two records of a request or tunnel this is.
type Event string

const (
	// Decision is written when the proxy has decided.
	Decision Event = "decision"
	// Close is written when an allowed request or tunnel ends. When its decision is
	// "deny" the tunnel was cut for that reason after it had been allowed.
	Close Event = "close"
)

// Verdict is what was decided.
type Verdict string

// The verdicts. An allowed request that could not be carried out (DNS, connect, upstream)
// is Allow, with the reason and the status: the policy did allow it.
const (
	Allow     Verdict = "allow"
	Deny      Verdict = "deny"
	WouldDeny Verdict = "would_deny" // mode Audit: allowed, but Enforce would refuse it
)

// Record is one line. Its JSON names are an interface: egressctl and log pipelines read
// them. Fields that do not apply are left out, except the bytes and the duration of a
// Close record.
type Record struct {
	Time  time.Time `json:"time"`
	Event Event     `json:"event"`
	// ID joins the decision and the close of one request or tunnel; unique per process.
	ID       string  `json:"id,omitempty"`
	Decision Verdict `json:"decision"`
	// Reason is a stable word: why it was refused, would have been, failed, or was closed.
	Reason string `json:"reason,omitempty"`
	// Rule is the entry of the policy that decided, such as `allowedHosts[2] "*.example.org"`.
	Rule             string `json:"rule,omitempty"`
	Namespace        string `json:"namespace,omitempty"`
	Policy           string `json:"policy,omitempty"`
	PolicyGeneration int64  `json:"policy_generation,omitempty"`
	ContainerID      string `json:"container_id,omitempty"`
	Pod              string `json:"pod,omitempty"`
	// PodUID is for whoever attaches Events to the pod.
	PodUID       string     `json:"pod_uid,omitempty"`
	Organization string     `json:"organization,omitempty"`
	ClientIP     netip.Addr `json:"client_ip,omitzero"`
	Method       string     `json:"method,omitempty"`
	// Scheme is "http" for a request the proxy sees, "tunnel" for CONNECT.
	Scheme string `json:"scheme,omitempty"`
	Host   string `json:"host,omitempty"`
	Port   uint16 `json:"port,omitempty"`
	// DialledIP is the checked address that the connection went to.
	DialledIP netip.Addr `json:"dialled_ip,omitzero"`
	SNI       string     `json:"sni,omitempty"`
	// Status is the HTTP status that the client got; 0 when the tunnel was cut instead.
	Status int `json:"status,omitempty"`
	// BytesSent went from the client to the origin, BytesReceived the other way.
	BytesSent     int64 `json:"bytes_sent"`
	BytesReceived int64 `json:"bytes_received"`
	// Duration is how long the request or tunnel lasted; duration_ms in JSON.
	Duration time.Duration `json:"-"`
	// Detail is one sentence for a person, without secrets.
	Detail string `json:"detail,omitempty"`
}

// AppendJSON appends r as one JSON object without a newline. encoding/json would cost
// about five times as much, and there are two records per request.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, '"')
	b = appendField(b, "event", string(r.Event))
	b = appendField(b, "id", r.ID)
	b = appendField(b, "decision", string(r.Decision))
	b = appendField(b, "reason", r.Reason)
	b = appendField(b, "rule", r.Rule)
	b = appendField(b, "namespace", r.Namespace)
	b = appendField(b, "policy", r.Policy)
	b = appendInt(b, "policy_generation", r.PolicyGeneration)
	b = appendField(b, "container_id", r.ContainerID)
	b = appendField(b, "pod", r.Pod)
	b = appendField(b, "pod_uid", r.PodUID)
	b = appendField(b, "organization", r.Organization)
	b = appendAddr(b, "client_ip", r.ClientIP)
	b = appendField(b, "method", r.Method)
	b = appendField(b, "scheme", r.Scheme)
	b = appendField(b, "host", r.Host)
	b = appendInt(b, "port", int64(r.Port))
	b = appendAddr(b, "dialled_ip", r.DialledIP)
	b = appendField(b, "sni", r.SNI)
	b = appendInt(b, "status", int64(r.Status))
	if r.Event == Close {
		b = appendNumber(b, "bytes_sent", r.BytesSent)
		b = appendNumber(b, "bytes_received", r.BytesReceived)
		b = appendNumber(b, "duration_ms", r.Duration.Milliseconds())
	}
	b = appendField(b, "detail", r.Detail)
	return append(b, '}')
}
