// Package apply writes owned objects by server-side apply, and only when something differs.
package apply

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldOwner is the one field manager of the operator. With two, a field that one of them
// stops applying would stay behind.
const FieldOwner = "sandbox-egress-manager"

// Config is a generated apply configuration of a named object.
type Config interface {
	runtime.ApplyConfiguration
	GetName() *string
	GetNamespace() *string
}

// Kind says how objects of one kind are compared.
type Kind[O client.Object, C Config] struct {
	// New returns an empty object to read into.
	New func() O
	// Extract returns what fieldManager owns in an object (the generated Extract function).
	Extract func(o O, fieldManager string) (C, error)
	// Replace reports that live cannot be turned into want by an update, because a field
	// that the API holds immutable differs: it is deleted first. nil means never.
	Replace func(live O, want C) bool
}

// Ensure makes the live object hold what want says, with the operator as owner of every
// field in it, and reports whether it wrote. Reads come from c, usually a cache: a stale
// read costs a write that changes nothing.
//
// The comparison is of what managedFields say the operator owns. A change by anyone else
// to such a field takes the ownership away, so it shows as a difference.
func (k Kind[O, C]) Ensure(ctx context.Context, c client.Client, want C) (changed bool, err error) {
	key := client.ObjectKey{Namespace: deref(want.GetNamespace()), Name: deref(want.GetName())}
	live := k.New()
	err = c.Get(ctx, key, live)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return false, fmt.Errorf("read %s: %w", describe(live, key), err)
	case k.Replace != nil && k.Replace(live, want):
		if err := c.Delete(ctx, live, client.Preconditions{UID: uid(live)}); client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("replace %s: %w", describe(live, key), err)
		}
	default:
		owned, err := k.Extract(live, FieldOwner)
		if err != nil {
			return false, fmt.Errorf("read managed fields of %s: %w", describe(live, key), err)
		}
		if equality.Semantic.DeepEqual(owned, want) {
			return false, nil
		}
	}
	if err := c.Apply(ctx, want, client.FieldOwner(FieldOwner), client.ForceOwnership); err != nil {
		return false, fmt.Errorf("apply %s: %w", describe(live, key), err)
	}
	return true, nil
}

// OwnManagedFields drops the managedFields entries of everyone but the operator: Ensure
// needs no others, and they are most of an object's size in the cache.
func OwnManagedFields(o client.Object) {
	fields := o.GetManagedFields()
	kept := fields[:0]
	for _, f := range fields {
		if f.Manager == FieldOwner && f.Operation == metav1.ManagedFieldsOperationApply {
			kept = append(kept, f)
		}
	}
	o.SetManagedFields(kept)
}

func describe(o client.Object, key client.ObjectKey) string {
	return fmt.Sprintf("%T %s", o, key)
}
