// Package lastgood carries the last valid spec of a SandboxEgress from the operator to the
// proxies, in the policy's ConfigMap. A proxy that starts while the object is invalid, for
// example because the webhook was bypassed, goes on with it instead of refusing everything.
package lastgood

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// ConfigMapKey is the entry of the policy's ConfigMap.
const ConfigMapKey = "last-good.json"

// MaxBytes bounds the entry: a ConfigMap holds 1 MiB in all, and the JWKS needs its part.
const MaxBytes = 900 << 10

type record struct {
	Generation int64                      `json:"generation"`
	Spec       v1alpha1.SandboxEgressSpec `json:"spec"`
}

// Encode writes the spec of s with its generation. ok is false when it is too large to be
// kept; then only the proxies that run remember it.
func Encode(s *v1alpha1.SandboxEgress) (data string, ok bool, err error) {
	raw, err := json.Marshal(record{Generation: s.Generation, Spec: s.Spec})
	if err != nil {
		return "", false, fmt.Errorf("encode the last good spec: %w", err)
	}
	return string(raw), len(raw) <= MaxBytes, nil
}

// Decode returns a copy of s with the recorded spec and generation; nil when data is empty.
// The selector of s stays: it is immutable, and what is isolated must not depend on a
// ConfigMap.
func Decode(data string, s *v1alpha1.SandboxEgress) (*v1alpha1.SandboxEgress, error) {
	if data == "" {
		return nil, nil
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader([]byte(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("entry %s: %w", ConfigMapKey, err)
	}
	out := s.DeepCopy()
	out.Generation, out.Spec = r.Generation, r.Spec
	out.Spec.PodSelector = s.Spec.PodSelector.DeepCopy()
	return out, nil
}

// Hash identifies a spec in status.policyHash: 16 hex digits of SHA-256 over its JSON.
func Hash(spec *v1alpha1.SandboxEgressSpec) (string, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("hash the spec: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}
