package proxy

import (
	"crypto/ecdsa"
	"encoding/base64"
	"strings"
	"sync"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// Authenticator verifies tokens; *token.Verifier is one.
type Authenticator interface {
	// Verify returns the claims of a good token. The same token gives the same pointer
	// while it is cached, with its KID. The error wraps one of package token's.
	Verify(raw string) (*token.Claims, error)
	// SetKeys puts other keys in force for every later Verify.
	SetKeys(*token.KeySet)
}

// identity is who a token speaks for, with what is worked out of the claims once.
type identity struct {
	claims *token.Claims
	kid    string
	key    *ecdsa.PublicKey
	exp    time.Time
	// hosts is compiled from allowed_hosts; nil when the claim is empty, which allows
	// nothing where the claim decides.
	hosts *allowlist.Matcher
}

// authenticate reads the credentials of r. Browsers, git and the JVM send them only after
// a 407 that asks for Basic (RFC 7617).
func (s *Server) authenticate(r *request, st *policy.State) (*identity, *refusal) {
	switch {
	case r.authFields == 0:
		return nil, unauthenticated(ReasonAuthRequired, "no Proxy-Authorization was sent; this proxy needs the sandbox's token")
	case r.authFields > 1:
		return nil, malformed(ReasonBadHeader, "there is more than one Proxy-Authorization header")
	}
	user, raw, ok := parseBasic(r.proxyAuth)
	if !ok {
		return nil, unauthenticated(ReasonAuthMalformed, "Proxy-Authorization is not Basic with container_<container_id>:jwt_<token>")
	}
	claims, err := s.auth.Verify(raw)
	if err != nil {
		return nil, unauthenticated(Reason(token.Reason(err)), err.Error())
	}
	if user != claims.ContainerID {
		return nil, unauthenticated(ReasonUserMismatch, "the proxy user name is not container_ followed by the token's container_id")
	}
	id, err := s.identities.of(claims, st.Keys())
	if err != nil {
		return nil, unauthenticated(Reason(token.Reason(err)), err.Error())
	}
	return id, nil
}

// parseBasic splits `Basic base64(container_<id>:jwt_<token>)`. The decoding is strict: one
// set of credentials has one spelling.
func parseBasic(value string) (user, raw string, ok bool) {
	scheme, encoded, found := strings.Cut(value, " ")
	if !found || !strings.EqualFold(scheme, "Basic") || len(encoded) > maxCredentials {
		return "", "", false
	}
	// The decoder would skip line breaks.
	if strings.IndexByte(encoded, '\r') >= 0 || strings.IndexByte(encoded, '\n') >= 0 {
		return "", "", false
	}
	var buf [maxCredentials]byte
	n, err := base64.StdEncoding.Strict().Decode(buf[:], []byte(encoded))
	if err != nil {
		return "", "", false
	}
	user, pass, found := strings.Cut(string(buf[:n]), ":")
	if !found {
		return "", "", false
	}
	user, ok1 := strings.CutPrefix(user, "container_")
	raw, ok2 := strings.CutPrefix(pass, "jwt_")
	return user, raw, ok1 && ok2 && user != ""
}

// A token has at most token.MaxTokenBytes, a user name 138; base64 makes 4 of 3.
const maxCredentials = (token.MaxTokenBytes + 256) * 4 / 3

// identities keeps one identity per verified token, so that every tunnel of a sandbox
// shares it.
type identities struct {
	mu sync.RWMutex
	m  map[*token.Claims]*identity
}

const maxIdentities = 16384

func (c *identities) of(claims *token.Claims, keys *token.KeySet) (*identity, error) {
	c.mu.RLock()
	id := c.m[claims]
	c.mu.RUnlock()
	// The claims outlive a change of keys in the verifier's cache; the key must be the one
	// that is in force now.
	if id != nil && id.keyInForce(keys) {
		return id, nil
	}
	id, err := newIdentity(claims, keys)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxIdentities {
		c.m = make(map[*token.Claims]*identity)
	}
	c.m[claims] = id
	return id, nil
}

// forget drops identities whose token has expired.
func (c *identities) forget(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, id := range c.m {
		if now.After(id.exp.Add(token.Leeway)) {
			delete(c.m, k)
		}
	}
}

func newIdentity(claims *token.Claims, keys *token.KeySet) (*identity, error) {
	kid := claims.KID()
	key := keys.Lookup(kid)
	if key == nil {
		return nil, token.ErrUnknownKey
	}
	id := &identity{claims: claims, kid: kid, key: key, exp: claims.ExpiresAt.Time}
	if hosts := claims.AllowedHostList(); len(hosts) > 0 {
		// A claim that cannot be compiled allows nothing: m stays nil.
		if m, err := allowlist.Compile(allowlist.Spec{AllowedHosts: hosts}); err == nil {
			id.hosts = m
		}
	}
	return id, nil
}

func (id *identity) keyInForce(keys *token.KeySet) bool {
	k := keys.Lookup(id.kid)
	return k != nil && (k == id.key || k.Equal(id.key))
}
