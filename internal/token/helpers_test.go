package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// testKey is the same key for the same number on every run.
func testKey(tb testing.TB, n byte) *SigningKey {
	tb.Helper()
	seed := sha256.Sum256([]byte{'k', n})
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		tb.Fatal(err)
	}
	out, err := NewSigningKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func testKeySet(tb testing.TB, keys ...*SigningKey) *KeySet {
	tb.Helper()
	public := make([]PublicKey, 0, len(keys))
	for _, k := range keys {
		public = append(public, k.Public())
	}
	set, err := NewKeySet(public...)
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

func mustMint(tb testing.TB, key *SigningKey, o MintOptions) string {
	tb.Helper()
	c, err := NewClaims(o)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := key.Mint(c)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// mintFor is a token for one container, good from epoch for an hour.
func mintFor(tb testing.TB, key *SigningKey, id string) string {
	tb.Helper()
	return mustMint(tb, key, MintOptions{Now: epoch, TTL: time.Hour, ID: "id-" + id, ContainerID: id, ContainerBinding: true})
}

// flip changes one character of the base64url text to another one.
func flip(raw string, i int) string {
	b := []byte(raw)
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// clock is a settable time source.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }
