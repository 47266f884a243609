package token

import "errors"

// The ways in which a token is refused. Verify wraps exactly one of them, so
// errors.Is tells them apart and Reason turns them into stable wire words.
var (
	ErrTooLarge    = errors.New("token is too large")
	ErrMalformed   = errors.New("token is malformed")
	ErrAlgorithm   = errors.New("token algorithm is not ES256")
	ErrUnknownKey  = errors.New("token is signed by an unknown key")
	ErrSignature   = errors.New("token signature is wrong")
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
	ErrAudience    = errors.New("token is for another audience")
	ErrIssuer      = errors.New("token is from another issuer")
	ErrClaims      = errors.New("token claims are invalid")
)

// Reason returns the stable word for a refusal, as sent in X-Deny-Reason and written
// to audit records and metrics: "" for nil, "token_invalid" for an error that Verify
// does not return.
func Reason(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrTooLarge):
		return "token_too_large"
	case errors.Is(err, ErrAlgorithm):
		return "token_algorithm"
	case errors.Is(err, ErrUnknownKey):
		return "token_unknown_key"
	case errors.Is(err, ErrSignature):
		return "token_signature"
	case errors.Is(err, ErrExpired):
		return "token_expired"
	case errors.Is(err, ErrNotYetValid):
		return "token_not_yet_valid"
	case errors.Is(err, ErrAudience):
		return "token_audience"
	case errors.Is(err, ErrIssuer):
		return "token_issuer"
	case errors.Is(err, ErrClaims):
		return "token_claims"
	case errors.Is(err, ErrMalformed):
		return "token_malformed"
	}
	return "token_invalid"
}

// payloadError is what Claims.UnmarshalJSON found. golang-jwt wraps it in its own words;
// the type lets Verify take it out again.
type payloadError struct {
	kind   error // ErrMalformed or ErrClaims
	detail error
}

func (e *payloadError) Error() string   { return e.kind.Error() + ": " + e.detail.Error() }
func (e *payloadError) Unwrap() []error { return []error{e.kind, e.detail} }
