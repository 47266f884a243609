package proxy

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// refusal is the one way in which a request ends without an answer from the origin.
type refusal struct {
	status int
	reason Reason
	// detail says what is wrong, in a sentence for a person; no secrets.
	detail string
	// rule is the policy entry that decided, when one did.
	rule string
	// sentence tells how to put it right; "" when detail says it.
	remedy string
	// failed marks an allowed request that could not be carried out: the audit record
	// says allow, with the reason and the status.
	failed bool
}

func (r *refusal) Error() string { return string(r.reason) + ": " + r.detail }

func (r *refusal) verdict() audit.Verdict {
	if r.failed {
		return audit.Allow
	}
	return audit.Deny
}

func malformed(reason Reason, detail string) *refusal {
	return &refusal{status: 400, reason: reason, detail: detail}
}

func forbidden(reason Reason, detail string) *refusal {
	return &refusal{status: 403, reason: reason, detail: detail}
}

func unauthenticated(reason Reason, detail string) *refusal {
	return &refusal{status: 407, reason: reason, detail: detail,
		remedy: "Use the proxy URL of this sandbox, http://container_<container_id>:jwt_<token>@<proxy>, with a token that is still valid."}
}

func limited(reason Reason, detail string) *refusal {
	return &refusal{status: 429, reason: reason, detail: detail}
}

func failure(status int, reason Reason, detail string) *refusal {
	return &refusal{status: status, reason: reason, detail: detail, failed: status != 503}
}

// retryAfter is in seconds; 0 means no such header.
func (r *refusal) retryAfter() int {
	switch r.status {
	case 429:
		return 1
	case 503:
		return 2
	}
	return 0
}

// refusalBody is the JSON form of a refusal.
type refusalBody struct {
	Error   string `json:"error"`
	Status  int    `json:"status"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
	Method  string `json:"method,omitempty"`
	Host    string `json:"host,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// body renders r for the request that rec describes. wantJSON follows the Accept header.
func (r *refusal) body(rec *audit.Record, wantJSON bool) (contentType string, body []byte) {
	b := refusalBody{
		Error: "egress_refused", Status: r.status, Reason: r.reason, Message: r.detail,
		Method: rec.Method, Host: rec.Host, Port: rec.Port, Policy: policyName(rec), Rule: r.rule, Remedy: r.remedy,
	}
	if wantJSON {
		out, err := json.Marshal(b)
		if err != nil { // strings and numbers only: cannot happen, and must not be answered with nothing
			out = []byte(`{"error":"egress_refused"}`)
		}
		return "application/json", append(out, '\n')
	}
	var s strings.Builder
	s.WriteString("sandbox-egress: " + string(r.reason) + ": " + r.detail + "\n")
	if b.Host != "" {
		s.WriteString("request: " + b.Method + " " + b.Host + " port " + strconv.Itoa(int(b.Port)) + "\n")
	}
	if b.Policy != "" {
		s.WriteString("policy: " + b.Policy + "\n")
	}
	if b.Rule != "" {
		s.WriteString("rule: " + b.Rule + "\n")
	}
	if b.Remedy != "" {
		s.WriteString(b.Remedy + "\n")
	}
	return "text/plain; charset=utf-8", []byte(s.String())
}

func policyName(rec *audit.Record) string {
	switch {
	case rec.Policy == "":
		return ""
	case rec.Namespace == "":
		return rec.Policy
	}
	return rec.Namespace + "/" + rec.Policy
}

// wantsJSON reports whether an Accept header asks for JSON and not for text.
func wantsJSON(accept string) bool {
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html") && !strings.Contains(accept, "text/plain")
}
