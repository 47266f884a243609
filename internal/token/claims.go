package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// Issuer is the only accepted "iss".
	Issuer = "secure-egress-control"
	// Audience must be among "aud".
	Audience = "egress-proxy"
	// Leeway is granted for clock skew on exp, nbf and iat.
	Leeway = 30 * time.Second
	// MaxTokenBytes bounds the compact serialisation. Longer ones are refused unread:
	// a token travels in every request's Proxy-Authorization header.
	MaxTokenBytes = 2048
	// MaxAllowedHostsBytes bounds the allowed_hosts claim of a token that names a live
	// policy; a longer copy is left out, the live policy decides anyway.
	MaxAllowedHostsBytes = 1024
	// MaxContainerIDBytes bounds container_id.
	MaxContainerIDBytes = 128

	maxOrganizationBytes = 128
	maxPolicyBytes       = 63 + 1 + 253
	maxIDBytes           = 128
	// 9999-12-31T23:59:59Z, the last second RFC 3339 can write.
	maxNumericDate = 253402300799
)

// Claims are the claims of a token. A *Claims that Verify returned is shared between
// callers and must not be modified.
type Claims struct {
	jwt.RegisteredClaims
	// ContainerID is the sandbox's session id; the proxy user name is "container_" + it.
	ContainerID string `json:"container_id"`
	// OrganizationUUID names who the sandbox runs for.
	OrganizationUUID string `json:"organization_uuid"`
	// AllowedHosts is comma-separated "host" or "host:port"; see AllowedHostList.
	AllowedHosts string `json:"allowed_hosts,omitempty"`
	// EgressPolicy is "namespace/name" of the live policy; only in the operator's tokens.
	EgressPolicy     string     `json:"egress_policy,omitempty"`
	IsHIPAARegulated StringBool `json:"is_hipaa_regulated"`
	UseEgressGateway StringBool `json:"use_egress_gateway"`
	// EnforceContainerBinding ties the token to the source address of its container.
	// A token without this claim is read as "true".
	EnforceContainerBinding  StringBool `json:"enforce_container_binding"`
	EnforceCentralizedEgress StringBool `json:"enforce_centralized_egress"`

	kid string
}

// KID is the kid of the key that signed the token; "" for claims that Verify did not return.
func (c *Claims) KID() string { return c.kid }

// claimNames are the members that mean something here. Others are ignored
// (RFC 7519 section 4), except those that differ from one of these by case only.
var claimNames = [...]string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti",
	"container_id", "organization_uuid", "allowed_hosts", "egress_policy",
	"is_hipaa_regulated", "use_egress_gateway", "enforce_container_binding", "enforce_centralized_egress",
}

// AllowedHostList splits allowed_hosts; nil when the claim is empty.
func (c *Claims) AllowedHostList() []string {
	var hosts []string
	for host := range strings.SplitSeq(c.AllowedHosts, ",") {
		if host = strings.TrimSpace(host); host != "" {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// wireClaims fixes the order and form of what Mint writes: "aud" as a plain string.
type wireClaims struct {
	Issuer                   string           `json:"iss,omitempty"`
	Subject                  string           `json:"sub,omitempty"`
	Audience                 any              `json:"aud,omitempty"`
	ExpiresAt                *jwt.NumericDate `json:"exp,omitempty"`
	NotBefore                *jwt.NumericDate `json:"nbf,omitempty"`
	IssuedAt                 *jwt.NumericDate `json:"iat,omitempty"`
	ID                       string           `json:"jti,omitempty"`
	ContainerID              string           `json:"container_id"`
	OrganizationUUID         string           `json:"organization_uuid"`
	AllowedHosts             string           `json:"allowed_hosts,omitempty"`
	EgressPolicy             string           `json:"egress_policy,omitempty"`
	IsHIPAARegulated         StringBool       `json:"is_hipaa_regulated"`
	UseEgressGateway         StringBool       `json:"use_egress_gateway"`
	EnforceContainerBinding  StringBool       `json:"enforce_container_binding"`
	EnforceCentralizedEgress StringBool       `json:"enforce_centralized_egress"`
}

// MarshalJSON writes the claims as a token carries them.
func (c Claims) MarshalJSON() ([]byte, error) {
	w := wireClaims{
		Issuer: c.Issuer, Subject: c.Subject, ExpiresAt: c.ExpiresAt, NotBefore: c.NotBefore, IssuedAt: c.IssuedAt, ID: c.ID,
		ContainerID: c.ContainerID, OrganizationUUID: c.OrganizationUUID, AllowedHosts: c.AllowedHosts, EgressPolicy: c.EgressPolicy,
		IsHIPAARegulated: c.IsHIPAARegulated, UseEgressGateway: c.UseEgressGateway,
		EnforceContainerBinding: c.EnforceContainerBinding, EnforceCentralizedEgress: c.EnforceCentralizedEgress,
	}
	switch len(c.Audience) {
	case 0:
	case 1:
		w.Audience = c.Audience[0]
	default:
		w.Audience = []string(c.Audience)
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads the claims strictly: one member per name, exact names, exact types.
// It checks form only; what the values must be is for Verify.
func (c *Claims) UnmarshalJSON(data []byte) error {
	members, err := strictObject(data)
	if err != nil {
		return &payloadError{ErrMalformed, fmt.Errorf("the payload %w", err)}
	}
	for name := range members {
		for _, known := range claimNames {
			if name != known && strings.EqualFold(name, known) {
				return &payloadError{ErrClaims, fmt.Errorf("claim %q must be written %q", clip(name), known)}
			}
		}
	}
	// Without this claim the stricter reading holds.
	out := Claims{EnforceContainerBinding: true}
	for name, dst := range map[string]*string{
		"iss": &out.Issuer, "sub": &out.Subject, "jti": &out.ID,
		"container_id": &out.ContainerID, "organization_uuid": &out.OrganizationUUID,
		"allowed_hosts": &out.AllowedHosts, "egress_policy": &out.EgressPolicy,
	} {
		if *dst, err = stringMember(members, name); err != nil {
			return &payloadError{ErrClaims, err}
		}
	}
	for name, dst := range map[string]*StringBool{
		"is_hipaa_regulated": &out.IsHIPAARegulated, "use_egress_gateway": &out.UseEgressGateway,
		"enforce_container_binding": &out.EnforceContainerBinding, "enforce_centralized_egress": &out.EnforceCentralizedEgress,
	} {
		if raw, ok := members[name]; ok {
			if err := dst.UnmarshalJSON(raw); err != nil {
				return &payloadError{ErrClaims, fmt.Errorf("%s %w", name, err)}
			}
		}
	}
	for name, dst := range map[string]**jwt.NumericDate{
		"exp": &out.ExpiresAt, "nbf": &out.NotBefore, "iat": &out.IssuedAt,
	} {
		if raw, ok := members[name]; ok {
			if *dst, err = numericDate(raw); err != nil {
				return &payloadError{ErrClaims, fmt.Errorf("%s %w", name, err)}
			}
		}
	}
	if raw, ok := members["aud"]; ok {
		if out.Audience, err = audience(raw); err != nil {
			return &payloadError{ErrClaims, fmt.Errorf("aud %w", err)}
		}
	}
	*c = out
	return nil
}

// numericDate reads seconds since the epoch (RFC 7519 section 2), to the whole second.
func numericDate(raw json.RawMessage) (*jwt.NumericDate, error) {
	const want = "must be a number of seconds between 0 and the year 9999"
	if len(raw) == 0 || (raw[0] != '-' && (raw[0] < '0' || raw[0] > '9')) {
		return nil, errors.New(want)
	}
	// A float64 beyond int64 converts to an arbitrary second, so bound it first.
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f < 0 || f > maxNumericDate {
		return nil, errors.New(want)
	}
	return jwt.NewNumericDate(time.Unix(int64(f), 0)), nil
}

func audience(raw json.RawMessage) (jwt.ClaimStrings, error) {
	var list []string
	if len(raw) > 0 && raw[0] == '"' {
		list = make([]string, 1)
		if err := json.Unmarshal(raw, &list[0]); err != nil {
			return nil, errors.New("must be a string or a list of strings")
		}
		return list, nil
	}
	// A null inside the list would decode to "", so decode to pointers.
	var ptrs []*string
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &ptrs) != nil || slices.Contains(ptrs, nil) {
		return nil, errors.New("must be a string or a list of strings")
	}
	for _, p := range ptrs {
		list = append(list, *p)
	}
	return list, nil
}

// Validate checks the private claims and jti; it does not depend on time.
func (c *Claims) Validate() error {
	if err := ValidateContainerID(c.ContainerID); err != nil {
		return fmt.Errorf("%w: container_id %w", ErrClaims, err)
	}
	if err := validateText(c.OrganizationUUID, maxOrganizationBytes); err != nil {
		return fmt.Errorf("%w: organization_uuid %w", ErrClaims, err)
	}
	if err := validateText(c.ID, maxIDBytes); err != nil {
		return fmt.Errorf("%w: jti %w", ErrClaims, err)
	}
	if err := validateText(c.AllowedHosts, MaxTokenBytes); err != nil {
		return fmt.Errorf("%w: allowed_hosts %w", ErrClaims, err)
	}
	if err := ValidatePolicyRef(c.EgressPolicy); err != nil {
		return fmt.Errorf("%w: egress_policy %w", ErrClaims, err)
	}
	return nil
}

// ValidateContainerID accepts 1 to 128 letters, digits, '.', '_', '-', of which the first
// is a letter or a digit. The id becomes part of a proxy URL's user name, so it must need
// no escaping and hold no ':' (RFC 7617 section 2).
func ValidateContainerID(id string) error {
	switch {
	case id == "":
		return errors.New("is missing")
	case len(id) > MaxContainerIDBytes:
		return fmt.Errorf("is longer than %d characters", MaxContainerIDBytes)
	case !isAlnum(id[0]):
		return fmt.Errorf("%q must start with a letter or a digit", clip(id))
	}
	for i := range len(id) {
		if b := id[i]; !isAlnum(b) && b != '.' && b != '_' && b != '-' {
			return fmt.Errorf("%q may hold letters, digits, '.', '_' and '-' only", clip(id))
		}
	}
	return nil
}

// ValidatePolicyRef accepts "" and "namespace/name" made of Kubernetes names
// (lower-case letters, digits, '-', and '.' in the name).
func ValidatePolicyRef(ref string) error {
	if ref == "" {
		return nil
	}
	if len(ref) > maxPolicyBytes {
		return fmt.Errorf("is longer than %d characters", maxPolicyBytes)
	}
	namespace, name, ok := strings.Cut(ref, "/")
	if !ok || !isKubeName(namespace, false) || !isKubeName(name, true) {
		return fmt.Errorf("%q must be namespace/name", clip(ref))
	}
	return nil
}

func isKubeName(s string, dots bool) bool {
	if s == "" || s[0] == '-' || s[0] == '.' || s[len(s)-1] == '-' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		b := s[i]
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && (b != '.' || !dots) {
			return false
		}
	}
	return true
}

// validateText keeps control characters and non-ASCII out of what ends up in logs,
// headers and metrics.
func validateText(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("is longer than %d characters", most)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return errors.New("must be printable ASCII")
		}
	}
	return nil
}

func isAlnum(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9'
}
