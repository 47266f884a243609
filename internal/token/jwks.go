package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

const (
	maxJWKSBytes = 64 << 10
	maxKeys      = 64
	maxKIDBytes  = 128
)

// privateMembers are the JWK members that hold secret key material (RFC 7518 sections
// 6.2.2, 6.3.2, 6.4.1). None of them has a place in a file that proxies read.
var privateMembers = [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// KeySet maps kid to verification key. It is immutable; a nil *KeySet holds no key.
type KeySet struct {
	keys map[string]*ecdsa.PublicKey
}

// NewKeySet needs at least one key; kids must be unique and keys on P-256.
func NewKeySet(keys ...PublicKey) (*KeySet, error) {
	if len(keys) == 0 {
		return nil, errors.New("the key set is empty")
	}
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("the key set holds %d keys, at most %d are allowed", len(keys), maxKeys)
	}
	set := &KeySet{keys: make(map[string]*ecdsa.PublicKey, len(keys))}
	for _, key := range keys {
		if err := validateKID(key.KID); err != nil {
			return nil, err
		}
		if _, dup := set.keys[key.KID]; dup {
			return nil, fmt.Errorf("kid %q is used twice", clip(key.KID))
		}
		if _, _, err := coordinates(key.Key); err != nil {
			return nil, fmt.Errorf("kid %q: %w", clip(key.KID), err)
		}
		set.keys[key.KID] = key.Key
	}
	return set, nil
}

func validateKID(kid string) error {
	if kid == "" {
		return errors.New("kid is missing")
	}
	if err := validateText(kid, maxKIDBytes); err != nil {
		return fmt.Errorf("kid %q %w", clip(kid), err)
	}
	return nil
}

// Lookup returns the key of a kid, or nil.
func (s *KeySet) Lookup(kid string) *ecdsa.PublicKey {
	if s == nil {
		return nil
	}
	return s.keys[kid]
}

// Len is the number of keys.
func (s *KeySet) Len() int {
	if s == nil {
		return 0
	}
	return len(s.keys)
}

// KIDs returns the kids, sorted.
func (s *KeySet) KIDs() []string {
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.keys))
}

type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	KeyID     string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	X         string `json:"x"`
	Y         string `json:"y"`
}

func toJWK(kid string, key *ecdsa.PublicKey) (jwk, error) {
	x, y, err := coordinates(key)
	if err != nil {
		return jwk{}, fmt.Errorf("kid %q: %w", clip(kid), err)
	}
	return jwk{KeyType: "EC", Curve: "P-256", KeyID: kid, Use: "sig", Algorithm: "ES256", X: x, Y: y}, nil
}

// MarshalJWKS writes the set as an RFC 7517 section 5 JWK Set, ordered by kid.
func (s *KeySet) MarshalJWKS() ([]byte, error) {
	out := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, kid := range s.KIDs() {
		key, err := toJWK(kid, s.keys[kid])
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, key)
	}
	return json.MarshalIndent(out, "", "  ")
}

// ParseJWKS reads an RFC 7517 JWK Set of P-256 signature keys. One key that cannot be
// used refuses the whole set and is named: skipping it would turn a publishing mistake
// into refused tokens that nobody can explain.
func ParseJWKS(data []byte) (*KeySet, error) {
	if len(data) > maxJWKSBytes {
		return nil, fmt.Errorf("JWKS is larger than %d bytes", maxJWKSBytes)
	}
	members, err := strictObject(data)
	if err != nil {
		return nil, fmt.Errorf("JWKS %w", err)
	}
	var raws []json.RawMessage
	if raw := members["keys"]; len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &raws) != nil {
		return nil, errors.New(`JWKS must have a member "keys" that is a list`)
	}
	if len(raws) > maxKeys {
		return nil, fmt.Errorf("JWKS holds %d keys, at most %d are allowed", len(raws), maxKeys)
	}
	keys := make([]PublicKey, 0, len(raws))
	for i, raw := range raws {
		key, err := parseJWK(raw)
		if err != nil {
			return nil, fmt.Errorf("JWKS keys[%d]: %w", i, err)
		}
		keys = append(keys, key)
	}
	set, err := NewKeySet(keys...)
	if err != nil {
		return nil, fmt.Errorf("JWKS: %w", err)
	}
	return set, nil
}

func parseJWK(raw json.RawMessage) (PublicKey, error) {
	members, err := strictObject(raw)
	if err != nil {
		return PublicKey{}, fmt.Errorf("the key %w", err)
	}
	kid, err := stringMember(members, "kid")
	if err != nil {
		return PublicKey{}, err
	}
	if err := validateKID(kid); err != nil {
		return PublicKey{}, err
	}
	key, err := parseECMembers(members)
	if err != nil {
		return PublicKey{}, fmt.Errorf("kid %q: %w", clip(kid), err)
	}
	return PublicKey{KID: kid, Key: key}, nil
}

func parseECMembers(members map[string]json.RawMessage) (*ecdsa.PublicKey, error) {
	for _, name := range privateMembers {
		if _, ok := members[name]; ok {
			return nil, fmt.Errorf("holds the PRIVATE member %q: publish public keys only, and replace this key, it must count as leaked", name)
		}
	}
	for _, want := range []struct {
		name, value string
		required    bool
	}{{"kty", "EC", true}, {"crv", "P-256", true}, {"use", "sig", false}, {"alg", "ES256", false}} {
		got, err := stringMember(members, want.name)
		if err != nil {
			return nil, err
		}
		if _, present := members[want.name]; (present || want.required) && got != want.value {
			return nil, fmt.Errorf("%s is %q, want %q", want.name, clip(got), want.value)
		}
	}
	if raw, ok := members["key_ops"]; ok {
		var ops []string
		if json.Unmarshal(raw, &ops) != nil || !slices.Contains(ops, "verify") {
			return nil, errors.New(`key_ops must be a list with "verify"`)
		}
	}
	point := []byte{4}
	for _, name := range []string{"x", "y"} {
		text, err := stringMember(members, name)
		if err != nil {
			return nil, err
		}
		if !isBase64URL(text) {
			return nil, fmt.Errorf("%s is not base64url", name)
		}
		coordinate, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("%s is not base64url", name)
		}
		if len(coordinate) != coordinateBytes {
			return nil, fmt.Errorf("%s is %d bytes long, want %d", name, len(coordinate), coordinateBytes)
		}
		point = append(point, coordinate...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("x and y are no point on P-256")
	}
	return key, nil
}

// isBase64URL refuses what encoding/base64 skips silently: CR and LF.
func isBase64URL(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}
