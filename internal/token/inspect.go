package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Inspection is a token taken apart WITHOUT any check of its signature or its time.
type Inspection struct {
	// Header and Payload are the JSON texts as the token carries them.
	Header, Payload json.RawMessage
	// KID is empty when the header is not acceptable.
	KID string
	// Claims is nil when the payload is not acceptable.
	Claims *Claims
	// Problems are what Verify would refuse whatever the keys and the time are.
	Problems []error
}

// Inspect shows what a token says, for a person who asks why it is refused. It returns an
// error only for what cannot be shown: too large, not three base64url parts, no JSON.
func Inspect(raw string) (*Inspection, error) {
	if len(raw) > MaxTokenBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLarge, len(raw), MaxTokenBytes)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: want three parts separated by dots", ErrMalformed)
	}
	out := new(Inspection)
	for i, dst := range []*json.RawMessage{&out.Header, &out.Payload} {
		name := [...]string{"header", "payload"}[i]
		if !isBase64URL(parts[i]) {
			return nil, fmt.Errorf("%w: the %s is not base64url", ErrMalformed, name)
		}
		text, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil {
			return nil, fmt.Errorf("%w: the %s is not base64url", ErrMalformed, name)
		}
		if !json.Valid(text) {
			return nil, fmt.Errorf("%w: the %s is not JSON", ErrMalformed, name)
		}
		*dst = text
	}
	var err error
	if out.KID, err = inspectHeader(raw); err != nil {
		out.Problems = append(out.Problems, err)
	}
	claims := new(Claims)
	if err := claims.UnmarshalJSON(out.Payload); err != nil {
		out.Problems = append(out.Problems, err)
		return out, nil
	}
	out.Claims = claims
	if err := checkStatic(claims); err != nil {
		out.Problems = append(out.Problems, err)
	}
	if sig, err := base64.RawURLEncoding.Strict().DecodeString(parts[2]); err == nil && len(sig) != 2*coordinateBytes {
		out.Problems = append(out.Problems, fmt.Errorf("%w: it is %d bytes long, ES256 has %d", ErrSignature, len(sig), 2*coordinateBytes))
	}
	return out, nil
}

// FromProxyURL takes the token out of what a person has at hand: the token itself, the
// password "jwt_<token>", or the whole proxy URL.
func FromProxyURL(s string) (string, error) {
	s = strings.TrimSpace(s)
	if _, rest, ok := strings.Cut(s, "://"); ok {
		userinfo, _, ok := strings.Cut(rest, "@")
		_, password, hasPassword := strings.Cut(userinfo, ":")
		if !ok || !hasPassword || !strings.HasPrefix(password, PasswordPrefix) {
			return "", errors.New("the URL carries no jwt_<token> password")
		}
		s = password
	}
	return strings.TrimPrefix(s, PasswordPrefix), nil
}

// The user name and password of the proxy URL are these and the container id, the token.
const (
	UserPrefix     = "container_"
	PasswordPrefix = "jwt_"
)

// ProxyURL is the HTTP_PROXY value for a token: neither part needs escaping, since a
// container id and a token hold unreserved characters only (RFC 3986 section 2.3).
func ProxyURL(containerID, raw, authority string) string {
	return "http://" + UserPrefix + containerID + ":" + PasswordPrefix + raw + "@" + authority
}
