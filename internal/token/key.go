package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

// coordinateBytes is the length of x, y and d on P-256 (RFC 7518 section 6.2.1).
const coordinateBytes = 32

// SigningKey is a P-256 private key and the kid that its tokens carry.
type SigningKey struct {
	KID string
	Key *ecdsa.PrivateKey
}

// PublicKey is a P-256 public key and its kid.
type PublicKey struct {
	KID string
	Key *ecdsa.PublicKey
}

// GenerateKey makes a key whose kid is its RFC 7638 thumbprint. A nil rand means
// crypto/rand.Reader.
func GenerateKey(random io.Reader) (*SigningKey, error) {
	if random == nil {
		random = rand.Reader
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, fmt.Errorf("generate P-256 key: %w", err)
	}
	return NewSigningKey(key)
}

// NewSigningKey wraps a P-256 key; the kid is its RFC 7638 thumbprint.
func NewSigningKey(key *ecdsa.PrivateKey) (*SigningKey, error) {
	if key == nil {
		return nil, errors.New("no private key")
	}
	kid, err := Thumbprint(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &SigningKey{KID: kid, Key: key}, nil
}

// Public returns the verification half.
func (k *SigningKey) Public() PublicKey {
	return PublicKey{KID: k.KID, Key: &k.Key.PublicKey}
}

// Thumbprint is the base64url SHA-256 JWK thumbprint of a P-256 key (RFC 7638 section 3).
func Thumbprint(key *ecdsa.PublicKey) (string, error) {
	x, y, err := coordinates(key)
	if err != nil {
		return "", err
	}
	// The members in lexicographic order and no white space: RFC 7638 section 3.3.
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// coordinates returns x and y in base64url, 32 bytes each (RFC 7518 section 6.2.1.2).
func coordinates(key *ecdsa.PublicKey) (x, y string, err error) {
	if key == nil || key.Curve != elliptic.P256() {
		return "", "", errors.New("the key is not on P-256")
	}
	// The uncompressed point: 4, x, y (SEC 1 section 2.3.3).
	point, err := key.Bytes()
	if err != nil {
		return "", "", fmt.Errorf("the key is no point on P-256: %w", err)
	}
	enc := base64.RawURLEncoding
	return enc.EncodeToString(point[1 : 1+coordinateBytes]), enc.EncodeToString(point[1+coordinateBytes:]), nil
}

// ParsePrivateKeyPEM reads one P-256 private key, PKCS #8 ("PRIVATE KEY", RFC 5958) or
// SEC 1 ("EC PRIVATE KEY", RFC 5915; an "EC PARAMETERS" block before it is skipped).
// Its kid is the RFC 7638 thumbprint.
func ParsePrivateKeyPEM(data []byte) (*SigningKey, error) {
	const most = 16 << 10
	if len(data) > most {
		return nil, fmt.Errorf("private key file is larger than %d bytes", most)
	}
	var found *pem.Block
	rest := data
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type == "EC PARAMETERS":
		case strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "":
			return nil, errors.New("the private key is encrypted: decrypt it first (openssl pkey)")
		case block.Type != "PRIVATE KEY" && block.Type != "EC PRIVATE KEY":
			return nil, fmt.Errorf("PEM block is %q, want PRIVATE KEY or EC PRIVATE KEY", clip(block.Type))
		case found != nil:
			return nil, errors.New("the file holds more than one private key")
		default:
			found = block
		}
	}
	if strings.TrimSpace(string(rest)) != "" && found != nil {
		return nil, errors.New("the file holds something else after the private key")
	}
	if found == nil {
		return nil, errors.New("no PEM private key found")
	}
	key, err := parsePrivateDER(found)
	if err != nil {
		return nil, err
	}
	return NewSigningKey(key)
}

func parsePrivateDER(block *pem.Block) (*ecdsa.PrivateKey, error) {
	if block.Type == "EC PRIVATE KEY" {
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse EC PRIVATE KEY: %w", err)
		}
		return requireP256(key)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse PRIVATE KEY: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the private key is %T, ES256 needs a P-256 key", parsed)
	}
	return requireP256(key)
}

func requireP256(key *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the private key is on %s, ES256 needs P-256", key.Curve.Params().Name)
	}
	return key, nil
}

// MarshalPEM writes the key as PKCS #8.
func (k *SigningKey) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.Key)
	if err != nil {
		return nil, fmt.Errorf("marshal private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
