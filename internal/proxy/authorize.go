package proxy

import (
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// selectPolicy finds the policy in force for a token: the live one that it names, or the
// proxy's default one for tokens that name none.
func selectPolicy(id *identity, pod *policy.Pod, st *policy.State) (*policy.Policy, *refusal) {
	ref := id.claims.EgressPolicy
	if ref == "" {
		p := st.Default()
		if p == nil {
			return nil, forbidden(ReasonPolicyUnknown, "the token names no egress_policy, and this proxy serves only tokens that do")
		}
		if id.claims.EnforceCentralizedEgress && p.Upstream == nil {
			return nil, forbidden(ReasonUpstreamRequired, "the token demands centralized egress, and this proxy has no upstream")
		}
		return p, nil
	}
	if pod != nil && pod.PolicyRef != "" && pod.PolicyRef != ref {
		return nil, forbidden(ReasonPolicyMismatch, "the token is for policy "+ref+", but the pod is under "+pod.PolicyRef)
	}
	p := st.Policy(ref)
	if p == nil {
		return nil, forbidden(ReasonPolicyUnknown, "the token's policy "+ref+" is not known to this proxy")
	}
	return p, nil
}

// verdict is what a policy says about a request.
type verdict struct {
	allowed bool
	// wouldDeny marks a request that passes only because the policy is in mode Audit.
	wouldDeny bool
	reason    Reason
	rule      string
	tls       allowlist.TLSMode
	remedy    string
}

// authorize decides by name, before any DNS. All lists that apply must allow the request:
// the policy, the pod's annotation, and for tokens without a policy the claim.
func authorize(id *identity, pod *policy.Pod, p *policy.Policy, r allowlist.Request) verdict {
	v := decide(id, pod, p, r)
	if !v.allowed && p.Mode == policy.Audit {
		v.allowed, v.wouldDeny = true, true
		v.tls = allowlist.TLSOptional
	}
	return v
}

func decide(id *identity, pod *policy.Pod, p *policy.Policy, r allowlist.Request) verdict {
	out := verdict{allowed: true, tls: allowlist.TLSRequired}
	host := r.Authority.Host.String()
	if p.Matcher != nil || !p.TokenHosts {
		d := p.Matcher.Decide(r)
		if !d.Allowed {
			return verdict{reason: Reason(d.Reason), rule: d.Rule, remedy: remedy(d, host, "SandboxEgress "+p.Ref)}
		}
		out.rule, out.tls = d.Rule, d.TLS
	}
	if p.TokenHosts {
		d := id.hosts.Decide(r)
		if !d.Allowed {
			return verdict{reason: Reason(d.Reason), rule: inList("allowed_hosts", d.Rule),
				remedy: "Mint a token whose allowed_hosts contain \"" + host + "\": egressctl token mint --allow " + host}
		}
		if out.rule == "" {
			out.rule = inList("allowed_hosts", d.Rule)
		}
	}
	if pod != nil && pod.Narrow != nil {
		d := pod.Narrow.Decide(r)
		if !d.Allowed {
			return verdict{reason: Reason(d.Reason), rule: inList("annotation egress.sandbox.dev/allowed-hosts", d.Rule),
				remedy: "The pod's annotation egress.sandbox.dev/allowed-hosts narrows its policy; add \"" + host + "\" to it."}
		}
	}
	return out
}

func inList(list, rule string) string {
	if rule == "" {
		return list
	}
	return list + ": " + rule
}

func remedy(d allowlist.Decision, host, where string) string {
	switch d.Reason {
	case allowlist.ReasonHostNotAllowed:
		return "To allow it, add \"" + host + "\" to spec.allowedHosts of " + where + "."
	case allowlist.ReasonPortNotAllowed:
		return "To allow it, add the port to the entry in " + where + ", as in \"" + host + ":<port>\"."
	case allowlist.ReasonHostDenied:
		return "It is in spec.deniedHosts of " + where + ", which beats every allow."
	}
	return "To allow it, extend the rule in " + where + "."
}
