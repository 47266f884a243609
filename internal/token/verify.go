package token

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	defaultCacheSize         = 8192
	defaultNegativeCacheSize = 4096
)

// Verifier verifies tokens against a key set that may change while it works.
// All methods are safe for concurrent use.
//
// The cache holds only what time cannot change: the outcome of the signature and the
// static claims under one key. exp, nbf and iat are checked on every call, so neither a
// cached success outlives its token nor a cached failure hides one that became valid.
type Verifier struct {
	now      func() time.Time
	keys     atomic.Pointer[KeySet]
	parser   *jwt.Parser
	positive *cache
	negative *cache
}

// VerifierOption configures NewVerifier.
type VerifierOption func(*verifierConfig)

type verifierConfig struct {
	now                func() time.Time
	size, negativeSize int
}

// WithClock replaces time.Now.
func WithClock(now func() time.Time) VerifierOption {
	return func(c *verifierConfig) { c.now = now }
}

// WithCacheSize bounds the number of cached good tokens; 0 turns this cache off.
func WithCacheSize(n int) VerifierOption {
	return func(c *verifierConfig) { c.size = n }
}

// WithNegativeCacheSize bounds the number of cached wrong-signature and expired tokens,
// which are kept apart so that a flood of them evicts no good one; 0 turns it off.
func WithNegativeCacheSize(n int) VerifierOption {
	return func(c *verifierConfig) { c.negativeSize = n }
}

// NewVerifier starts with the given keys; nil refuses every token until SetKeys.
func NewVerifier(keys *KeySet, opts ...VerifierOption) *Verifier {
	cfg := verifierConfig{now: time.Now, size: defaultCacheSize, negativeSize: defaultNegativeCacheSize}
	for _, opt := range opts {
		opt(&cfg)
	}
	v := &Verifier{
		now:      cfg.now,
		positive: newCache(cfg.size),
		negative: newCache(cfg.negativeSize),
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}),
			jwt.WithStrictDecoding(),
			jwt.WithoutClaimsValidation(), // done by entry.result, with the injected clock, on every call
		),
	}
	v.keys.Store(keys)
	return v
}

// SetKeys swaps the keys. Results that were cached under a kid which is gone or now
// names another key are dropped; the others survive a rotation.
func (v *Verifier) SetKeys(keys *KeySet) {
	v.keys.Store(keys)
	stale := func(e *entry) bool { return !e.validUnder(keys) }
	v.positive.removeIf(stale)
	v.negative.removeIf(stale)
}

// Verify returns the claims of a good token, or an error that wraps one of this package's
// Err values. The claims are shared: read only.
func (v *Verifier) Verify(raw string) (*Claims, error) {
	// Nothing is hashed, split or allocated for an input that cannot be a token.
	if len(raw) > MaxTokenBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLarge, len(raw), MaxTokenBytes)
	}
	now := v.now()
	keys := v.keys.Load()
	sum := hash(raw)
	for _, c := range [...]*cache{v.positive, v.negative} {
		// An entry that was cached under other keys stays usable only when its own key
		// is still there: a Verify that raced with SetKeys cannot leave a stale result.
		if e := c.get(sum); e != nil && e.validUnder(keys) {
			return e.result(now)
		}
	}
	return v.verifyUncached(raw, sum, keys, now)
}

// hash copies to the stack: the conversion []byte(raw) would cost a heap allocation of the
// token's size on every call, a third of a cache hit.
func hash(raw string) [sha256.Size]byte {
	var buf [MaxTokenBytes]byte
	return sha256.Sum256(buf[:copy(buf[:], raw)])
}

func (v *Verifier) verifyUncached(raw string, sum [sha256.Size]byte, keys *KeySet, now time.Time) (*Claims, error) {
	kid, err := inspectHeader(raw)
	if err != nil {
		return nil, err
	}
	key := keys.Lookup(kid)
	if key == nil {
		return nil, fmt.Errorf("%w: kid %q", ErrUnknownKey, clip(kid))
	}
	claims := new(Claims)
	_, err = v.parser.ParseWithClaims(raw, claims, func(*jwt.Token) (any, error) { return key, nil })
	if err != nil {
		err = translate(err)
	} else {
		err = checkStatic(claims)
	}
	e := newEntry(kid, key, keys)
	if err != nil {
		// Form errors are found again for less than the cache costs; a wrong signature is not.
		if errors.Is(err, ErrSignature) {
			e.err = err
			v.negative.put(sum, e, now)
		}
		return nil, err
	}
	claims.kid = kid
	e.claims = claims
	e.setTimes(claims)
	out, err := e.result(now)
	if errors.Is(err, ErrExpired) {
		v.negative.put(sum, e, now)
	} else {
		v.positive.put(sum, e, now)
	}
	return out, err
}

// inspectHeader checks the outer form and returns the kid, before any key is touched.
func inspectHeader(raw string) (string, error) {
	if raw == "" {
		return "", fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	if strings.Count(raw, ".") != 2 {
		return "", fmt.Errorf("%w: want three parts separated by dots", ErrMalformed)
	}
	for part := range strings.SplitSeq(raw, ".") {
		if !isBase64URL(part) {
			return "", fmt.Errorf("%w: a part is not base64url", ErrMalformed)
		}
	}
	part, _, _ := strings.Cut(raw, ".")
	data, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return "", fmt.Errorf("%w: the header is not base64url", ErrMalformed)
	}
	return parseHeader(data)
}

// parseHeader accepts alg, kid and typ only: "crit", "jwk", "jku", "x5c" and "zip" all
// ask a verifier for something that is not done here (RFC 7515 section 4.1, RFC 8725).
func parseHeader(data []byte) (string, error) {
	members, err := strictObject(data)
	if err != nil {
		return "", fmt.Errorf("%w: the header %w", ErrMalformed, err)
	}
	for name := range members {
		if name != "alg" && name != "kid" && name != "typ" {
			return "", fmt.Errorf("%w: header member %q is not supported", ErrMalformed, clip(name))
		}
	}
	alg, err := stringMember(members, "alg")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if alg != jwt.SigningMethodES256.Alg() {
		return "", fmt.Errorf("%w: alg is %q", ErrAlgorithm, clip(alg))
	}
	typ, err := stringMember(members, "typ")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, present := members["typ"]; present && !strings.EqualFold(typ, "JWT") {
		return "", fmt.Errorf("%w: typ is %q, want JWT", ErrMalformed, clip(typ))
	}
	kid, err := stringMember(members, "kid")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := validateKID(kid); err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return kid, nil
}

// translate maps golang-jwt's errors to this package's.
func translate(err error) error {
	var payload *payloadError
	switch {
	case errors.As(err, &payload):
		return payload
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return fmt.Errorf("%w: it does not match the key", ErrSignature)
	}
	return fmt.Errorf("%w: %s", ErrMalformed, strings.TrimPrefix(err.Error(), jwt.ErrTokenMalformed.Error()+": "))
}

// checkStatic checks what stays true or false for the token's whole life.
func checkStatic(c *Claims) error {
	if c.Issuer != Issuer {
		return fmt.Errorf("%w: iss is %q, want %q", ErrIssuer, clip(c.Issuer), Issuer)
	}
	if !slices.Contains(c.Audience, Audience) {
		return fmt.Errorf("%w: want %q", ErrAudience, Audience)
	}
	if c.ExpiresAt == nil {
		return fmt.Errorf("%w: exp is missing", ErrClaims)
	}
	return c.Validate()
}
