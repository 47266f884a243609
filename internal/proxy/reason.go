package proxy

import (
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
)

// Reason is the stable word for a refusal, a failure or the end of a tunnel: sent in
// X-Deny-Reason, written to audit records, and a metric label. docs/proxy.md lists all.
type Reason string

// 400: what was sent is not a request that this proxy can read in one way only.
const (
	ReasonBadRequestLine  Reason = "bad_request_line"
	ReasonBadHeader       Reason = "bad_header"
	ReasonHeaderTooLarge  Reason = "header_too_large"
	ReasonHeaderTimeout   Reason = "header_timeout"
	ReasonBadTarget       Reason = "bad_target"
	ReasonBadHost         Reason = "bad_host"
	ReasonHostMismatch    Reason = "host_mismatch"
	ReasonBadFraming      Reason = "bad_framing"
	ReasonBadBody         Reason = "bad_body"
	ReasonNotProxyRequest Reason = "not_a_proxy_request"
	ReasonNotSupported    Reason = "not_supported"
)

// 407: who is asking is not known. Reasons token_* are those of token.Reason.
const (
	ReasonAuthRequired  Reason = "auth_required"
	ReasonAuthMalformed Reason = "auth_malformed"
	ReasonUserMismatch  Reason = "user_mismatch"
	ReasonTokenExpired  Reason = "token_expired"
)

// 403: who is asking is known and may not.
const (
	ReasonContainerUnknown    Reason = "container_unknown"
	ReasonContainerAmbiguous  Reason = "container_ambiguous"
	ReasonContainerTerminated Reason = "container_terminated"
	ReasonQuarantined         Reason = "quarantined"
	ReasonSourceNotBound      Reason = "source_not_bound"
	ReasonPolicyUnknown       Reason = "policy_unknown"
	ReasonPolicyMismatch      Reason = "policy_mismatch"
	ReasonUpstreamRequired    Reason = "upstream_required"

	ReasonHostDenied       = Reason(allowlist.ReasonHostDenied)
	ReasonHostNotAllowed   = Reason(allowlist.ReasonHostNotAllowed)
	ReasonPortNotAllowed   = Reason(allowlist.ReasonPortNotAllowed)
	ReasonMethodNotAllowed = Reason(allowlist.ReasonMethodNotAllowed)
	ReasonPathNotAllowed   = Reason(allowlist.ReasonPathNotAllowed)

	ReasonAddressNotAllowed Reason = "address_not_allowed"
	ReasonLoop              Reason = "loop_detected"
)

// 429: too much at once.
const (
	ReasonConnectionLimit Reason = "connection_limit"
	ReasonRequestRate     Reason = "request_rate"
)

// 502, 503, 504: allowed, and it did not work.
const (
	ReasonDNSNotFound     Reason = "dns_not_found"
	ReasonDNSFailure      Reason = "dns_failure"
	ReasonDNSTimeout      Reason = "dns_timeout"
	ReasonConnectFailed   Reason = "connect_failed"
	ReasonConnectTimeout  Reason = "connect_timeout"
	ReasonUpstreamRefused Reason = "upstream_refused"
	ReasonUpstreamFailed  Reason = "upstream_failed"
	ReasonOriginClosed    Reason = "origin_closed"
	ReasonBadResponse     Reason = "bad_response"
	ReasonDraining        Reason = "draining"
	ReasonNotReady        Reason = "not_ready"
	ReasonOverloaded      Reason = "overloaded"
)

// Tunnels that are cut after the 200, which is the only way to refuse them by then.
const (
	ReasonSNIMismatch  Reason = "sni_mismatch"
	ReasonSNIMissing   Reason = "sni_missing"
	ReasonTLSRequired  Reason = "tls_required"
	ReasonHelloInvalid Reason = "client_hello_invalid"
	ReasonHelloTimeout Reason = "client_hello_timeout"
)

// How requests and tunnels that were allowed end.
const (
	ReasonClosed        Reason = "closed"         // both sides said all they had to say
	ReasonClientError   Reason = "client_error"   // the client's side broke
	ReasonOriginError   Reason = "origin_error"   // the origin's side broke
	ReasonIdle          Reason = "idle"           // no byte within the idle limit
	ReasonKeyRemoved    Reason = "key_removed"    // the key that signed the token is gone
	ReasonPolicyChanged Reason = "policy_changed" // allowed by the new policy, but not this way
	ReasonShutdown      Reason = "shutdown"       // the drain timeout was over
)

// phrase goes into the status line, because on CONNECT it is the only part of a refusal
// that most clients show.
func phrase(status int) string {
	switch status {
	case 400:
		return "Egress-Malformed"
	case 403:
		return "Egress-Blocked"
	case 407:
		return "Proxy-Authentication-Required"
	case 429:
		return "Egress-Limited"
	case 502:
		return "Egress-Failed"
	case 503:
		return "Egress-Unavailable"
	case 504:
		return "Egress-Timeout"
	}
	return "Egress-Refused"
}
