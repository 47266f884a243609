package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MintOptions says what a token is for. The zero value of a flag is "false".
type MintOptions struct {
	// Now becomes iat and, unless NotBefore is set, nbf.
	Now time.Time
	// TTL is added to Now for exp; at least one second.
	TTL time.Duration
	// NotBefore delays the token; zero means Now.
	NotBefore time.Time
	// ID is the jti; empty means 128 random bits.
	ID           string
	ContainerID  string
	Organization string
	// AllowedHosts are "host" or "host:port" entries.
	AllowedHosts []string
	// EgressPolicy is "namespace/name"; with it the live policy decides.
	EgressPolicy      string
	HIPAARegulated    bool
	EgressGateway     bool
	ContainerBinding  bool
	CentralizedEgress bool
}

// NewClaims fills in every claim. With an EgressPolicy an allowed_hosts copy above
// MaxAllowedHostsBytes is left out; without one it would change what the token reaches,
// so nothing is left out and Mint refuses a token that gets too long.
func NewClaims(o MintOptions) (Claims, error) {
	if o.TTL < time.Second {
		return Claims{}, fmt.Errorf("%w: ttl %s is below one second", ErrClaims, o.TTL)
	}
	for i, host := range o.AllowedHosts {
		if host == "" || strings.ContainsAny(host, ", \t\r\n") {
			return Claims{}, fmt.Errorf("%w: allowed host %d (%q) must be one host without commas or spaces", ErrClaims, i, clip(host))
		}
	}
	id := o.ID
	if id == "" {
		id = rand.Text()
	}
	notBefore := o.NotBefore
	if notBefore.IsZero() {
		notBefore = o.Now
	}
	hosts := strings.Join(o.AllowedHosts, ",")
	if o.EgressPolicy != "" && len(hosts) > MaxAllowedHostsBytes {
		hosts = ""
	}
	return Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    Issuer,
			Audience:  jwt.ClaimStrings{Audience},
			IssuedAt:  jwt.NewNumericDate(o.Now),
			NotBefore: jwt.NewNumericDate(notBefore),
			ExpiresAt: jwt.NewNumericDate(o.Now.Add(o.TTL)),
			ID:        id,
		},
		ContainerID:              o.ContainerID,
		OrganizationUUID:         o.Organization,
		AllowedHosts:             hosts,
		EgressPolicy:             o.EgressPolicy,
		IsHIPAARegulated:         StringBool(o.HIPAARegulated),
		UseEgressGateway:         StringBool(o.EgressGateway),
		EnforceContainerBinding:  StringBool(o.ContainerBinding),
		EnforceCentralizedEgress: StringBool(o.CentralizedEgress),
	}, nil
}

// Mint signs the claims. Empty iss and aud are filled in; whatever Verify would refuse at
// some point in the token's life (a missing claim, exp not after nbf, more than
// MaxTokenBytes) is an error.
func (k *SigningKey) Mint(c Claims) (string, error) {
	if k == nil || k.Key == nil {
		return "", errors.New("mint: no signing key")
	}
	if c.Issuer == "" {
		c.Issuer = Issuer
	}
	if len(c.Audience) == 0 {
		c.Audience = jwt.ClaimStrings{Audience}
	}
	if err := mintable(&c); err != nil {
		return "", fmt.Errorf("mint: %w", err)
	}
	t := jwt.NewWithClaims(jwt.SigningMethodES256, c)
	t.Header["kid"] = k.KID
	raw, err := t.SignedString(k.Key)
	if err != nil {
		return "", fmt.Errorf("mint: %w", err)
	}
	if len(raw) > MaxTokenBytes {
		return "", fmt.Errorf("mint: %w: %d bytes, at most %d are allowed; allowed_hosts takes %d, shorten it or name a policy",
			ErrTooLarge, len(raw), MaxTokenBytes, len(c.AllowedHosts))
	}
	return raw, nil
}

func mintable(c *Claims) error {
	switch {
	case c.Issuer != Issuer:
		return fmt.Errorf("%w: iss is %q, want %q", ErrIssuer, clip(c.Issuer), Issuer)
	case !slices.Contains(c.Audience, Audience):
		return fmt.Errorf("%w: aud is %q, want %q", ErrAudience, []string(c.Audience), Audience)
	case c.ExpiresAt == nil:
		return fmt.Errorf("%w: exp is missing", ErrClaims)
	case c.ExpiresAt.Unix() <= 0 || c.ExpiresAt.Unix() > maxNumericDate:
		return fmt.Errorf("%w: exp is out of range", ErrClaims)
	case c.NotBefore != nil && !c.NotBefore.Before(c.ExpiresAt.Time):
		return fmt.Errorf("%w: exp is not after nbf", ErrClaims)
	case c.IssuedAt != nil && !c.IssuedAt.Before(c.ExpiresAt.Time):
		return fmt.Errorf("%w: exp is not after iat", ErrClaims)
	}
	return c.Validate()
}
