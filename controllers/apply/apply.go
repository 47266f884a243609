// Package apply writes owned objects by server-side apply, only when something differs, and
// takes out what others put into them.
package apply

import (
	"context"
	"encoding/json"
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

// Kind says how objects of one kind are compared and repaired.
type Kind[O client.Object, C Config] struct {
	// New returns an empty object to read into.
	New func() O
	// Extract returns what fieldManager owns in an object (the generated Extract function).
	Extract func(o O, fieldManager string) (C, error)
	// Replace reports that live cannot be turned into want by an update, because a field
	// that the API holds immutable differs: it is deleted first. nil means never.
	Replace func(live O, want C) bool
	// SetContent copies the content of want, such as the spec, into live.
	SetContent func(live, want O)
	// Foreign reports that live has content that is not in want. Apply alone does not see
	// it: a field that the operator does not set, such as the egress rules of a policy that
	// denies everything, can be added by anyone. nil means that additions are harmless.
	Foreign func(live, want O) bool
}

// Ensure makes the live object hold what want says, with the operator as owner of every
// field in it and nothing beside it, and reports whether it wrote. Reads come from c,
// usually a cache: a stale read costs a write that changes nothing.
//
// What the operator applied is compared by managedFields: a change by anyone else takes the
// ownership away, so it shows as a difference whatever defaults the API server has set.
func (k Kind[O, C]) Ensure(ctx context.Context, c client.Client, want C) (changed bool, err error) {
	key := client.ObjectKey{Namespace: deref(want.GetNamespace()), Name: deref(want.GetName())}
	target, err := k.typed(want)
	if err != nil {
		return false, err
	}
	live := k.New()
	foreign := false
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
		foreign = k.Foreign != nil && k.Foreign(live, target)
		if !foreign && equality.Semantic.DeepEqual(owned, want) {
			return false, nil
		}
	}
	if err := c.Apply(ctx, want, client.FieldOwner(FieldOwner), client.ForceOwnership); err != nil {
		return false, fmt.Errorf("apply %s: %w", describe(live, key), err)
	}
	if !foreign {
		return true, nil
	}
	// Apply has put the answer of the API server into want.
	applied, err := k.typed(want)
	if err != nil {
		return true, err
	}
	return true, k.purge(ctx, c, key, applied, target)
}

// purge sets the content to exactly that of target.
func (k Kind[O, C]) purge(ctx context.Context, c client.Client, key client.ObjectKey, live, target O) error {
	clean, ok := live.DeepCopyObject().(O)
	if !ok {
		return fmt.Errorf("copy of %s has another type", describe(live, key))
	}
	k.SetContent(clean, target)
	patch := client.MergeFromWithOptions(live, client.MergeFromWithOptimisticLock{})
	if err := c.Patch(ctx, clean, patch, client.FieldOwner(FieldOwner)); err != nil {
		return fmt.Errorf("take foreign content out of %s: %w", describe(live, key), err)
	}
	return nil
}

// typed is the object that an apply configuration describes.
func (k Kind[O, C]) typed(c C) (O, error) {
	out := k.New()
	raw, err := json.Marshal(c)
	if err != nil {
		return out, fmt.Errorf("encode %T: %w", c, err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return out, fmt.Errorf("decode %T: %w", out, err)
	}
	return out, nil
}

// othersWrote reports whether someone else than the operator manages content of o, by its
// managedFields. Metadata and status are not content. Fields that an admission webhook of
// the cluster adds to the operator's own writes are managed in the operator's name and stay:
// taking them out would go on forever.
func othersWrote(o client.Object) bool {
	for _, f := range o.GetManagedFields() {
		if f.Manager != FieldOwner && hasContent(f) {
			return true
		}
	}
	return false
}

func hasContent(f metav1.ManagedFieldsEntry) bool {
	if f.Subresource != "" || f.FieldsV1 == nil {
		return false
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &fields); err != nil {
		return true
	}
	delete(fields, "f:metadata")
	delete(fields, "f:status")
	delete(fields, "f:apiVersion")
	delete(fields, "f:kind")
	return len(fields) > 0
}

// TrimManagedFields keeps the managedFields entries that Ensure looks at: the operator's
// own, and those of others that hold content. The rest is much of an object's size in the
// cache.
func TrimManagedFields(o client.Object) {
	fields := o.GetManagedFields()
	kept := fields[:0]
	for _, f := range fields {
		own := f.Manager == FieldOwner && f.Operation == metav1.ManagedFieldsOperationApply
		if own || f.Manager != FieldOwner && hasContent(f) {
			kept = append(kept, f)
		}
	}
	o.SetManagedFields(kept)
}

func describe(o client.Object, key client.ObjectKey) string {
	return fmt.Sprintf("%T %s", o, key)
}
