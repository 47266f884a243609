// Package effective finds the spec of a SandboxEgress that is in force: the current one, or
// the last valid one while the current one is invalid.
package effective

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/lastgood"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
)

// cached bounds the compiled policies that are kept. With 5,000 hosts one takes
// milliseconds to compile, and 500 pods that start at once all ask for the same.
const cached = 256

// Policy is what is in force for one SandboxEgress.
type Policy struct {
	// Object has the spec that is in force. It must not be changed.
	Object *v1alpha1.SandboxEgress
	// Compiled is nil when nothing valid is known: then the sandboxes have no egress.
	Compiled *policy.Policy
	// Invalid says why the current spec is not in force; nil when it is.
	Invalid error
}

// Current reports whether the current spec is in force.
func (p Policy) Current() bool { return p.Invalid == nil }

// Resolver compiles policies and remembers the results.
type Resolver struct {
	reader client.Reader
	seen   *lru.Cache
}

// NewResolver reads last good specs from reader.
func NewResolver(reader client.Reader) *Resolver {
	return &Resolver{reader: reader, seen: lru.New(cached)}
}

type key struct {
	uid        types.UID
	generation int64
}

type result struct {
	compiled *policy.Policy
	err      error
}

func (r *Resolver) compile(s *v1alpha1.SandboxEgress, k key) (*policy.Policy, error) {
	if hit, ok := r.seen.Get(k); ok {
		res := hit.(result)
		return res.compiled, res.err
	}
	p, err := manifest.Compile(s)
	r.seen.Add(k, result{p, err})
	return p, err
}

// Resolve returns what is in force for s.
func (r *Resolver) Resolve(ctx context.Context, s *v1alpha1.SandboxEgress) (Policy, error) {
	compiled, invalid := r.compile(s, key{s.UID, s.Generation})
	if invalid == nil {
		return Policy{Object: s, Compiled: compiled}, nil
	}
	var cm corev1.ConfigMap
	err := r.reader.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: v1alpha1.JWKSName(s.Name)}, &cm)
	if client.IgnoreNotFound(err) != nil {
		return Policy{}, fmt.Errorf("read the last good spec: %w", err)
	}
	old, err := lastgood.Decode(cm.Data[lastgood.ConfigMapKey], s)
	if old == nil {
		// Nothing that can be used: the sandboxes stay closed in.
		return Policy{Object: s, Invalid: errors.Join(invalid, err)}, nil
	}
	// Not cached: the entry can change without the generation in it.
	if compiled, err = manifest.Compile(old); err == nil {
		return Policy{Object: old, Compiled: compiled, Invalid: invalid}, nil
	}
	return Policy{Object: s, Invalid: fmt.Errorf("%w; the last valid spec is not valid any more: %w", invalid, err)}, nil
}
