// Package signingkey keeps the operator's token signing keys in a Secret of its namespace,
// rotates them with overlap, and never loses the only key it has.
package signingkey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// RevokeAnnotation on the Secret holds the kid of a leaked key, which is taken out at once.
const RevokeAnnotation = v1alpha1.Group + "/revoke-key"

// retainStep rounds retention up, so that a thousand long-lived sandboxes cost one write of
// the Secret a day and not a thousand.
const retainStep = 24 * time.Hour

// ErrUnreadable means that the Secret exists but holds no usable ring, and that this
// process does not remember one: writing a new ring could destroy the only key.
var ErrUnreadable = errors.New("the signing key Secret cannot be read and is left as it is")

// Keeper owns the ring. Its methods are safe for concurrent use.
type Keeper struct {
	// Client writes the Secret. Reader reads it uncached: the cache holds metadata only.
	Client client.Client
	Reader client.Reader
	// Secret is where the ring is kept.
	Secret types.NamespacedName
	Clock  clock.PassiveClock
	// Policy times the rotation.
	Policy token.RingPolicy
	// Random is the source of keys; nil means crypto/rand.
	Random io.Reader
	// Changed is called, if set, after another ring has come into force.
	Changed func()

	mu   sync.Mutex
	ring atomic.Pointer[token.Ring]
}

// Ring is the ring in force, or nil before the first Sync.
func (k *Keeper) Ring() *token.Ring { return k.ring.Load() }

// Sync reads the Secret, does what is due, saves it, and only then puts it in force. It
// returns when to come back.
//
// A Secret that was deleted or damaged is restored from memory. Without a ring in memory,
// a missing or empty Secret gets a new one; a damaged one is ErrUnreadable.
func (k *Keeper) Sync(ctx context.Context) (next time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	secret, ring, err := k.load(ctx)
	if err != nil {
		return time.Time{}, err
	}
	now := k.Clock.Now()
	// Without its label the Secret drops out of the cache, and no change to it is seen.
	dirty := secret.Labels[v1alpha1.ComponentLabel] != v1alpha1.ComponentSigningKey
	if ring == nil {
		if ring = k.ring.Load(); ring == nil {
			if ring, err = token.NewRing(now, k.Random); err != nil {
				return time.Time{}, fmt.Errorf("make a signing key: %w", err)
			}
		}
		dirty = true
	}
	if kid := secret.Annotations[RevokeAnnotation]; kid != "" {
		// A kid that is no longer there has been dealt with; only the annotation is left.
		if revoked, err := ring.Revoke(now, k.Random, kid); err == nil {
			ring = revoked
		}
		delete(secret.Annotations, RevokeAnnotation)
		dirty = true
	}
	ring, changed, err := ring.Rotate(now, k.Random, k.Policy)
	if err != nil {
		return time.Time{}, fmt.Errorf("rotate the signing key: %w", err)
	}
	if dirty || changed {
		if err := k.save(ctx, secret, ring); err != nil {
			return time.Time{}, err
		}
	}
	k.use(ring)
	return ring.NextRotation(k.Policy), nil
}

// Retain keeps the key kid published until exp at least, for a token that outlives
// Policy.MaxTokenTTL. The Secret is saved before it returns.
func (k *Keeper) Retain(ctx context.Context, kid string, exp time.Time) error {
	exp = exp.Truncate(retainStep).Add(retainStep)
	k.mu.Lock()
	defer k.mu.Unlock()
	if ring := k.ring.Load(); ring == nil {
		return errors.New("the signing keys are not loaded yet")
	} else if _, changed, err := ring.Retain(kid, exp); err != nil || !changed {
		return err
	}
	secret, ring, err := k.load(ctx)
	if err != nil {
		return err
	}
	if ring == nil {
		return errors.New("the signing key Secret is missing; it will be restored")
	}
	ring, changed, err := ring.Retain(kid, exp)
	if err != nil {
		return err
	}
	if changed {
		if err := k.save(ctx, secret, ring); err != nil {
			return err
		}
	}
	k.use(ring)
	return nil
}

// load returns the Secret, empty and without a resource version when it does not exist,
// and its ring, nil when there is none or when it has to be restored from memory.
func (k *Keeper) load(ctx context.Context) (*corev1.Secret, *token.Ring, error) {
	secret := new(corev1.Secret)
	err := k.Reader.Get(ctx, k.Secret, secret)
	if apierrors.IsNotFound(err) {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name}}, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the signing key Secret %s: %w", k.Secret, err)
	}
	if len(secret.Data) == 0 {
		return secret, nil, nil
	}
	ring, err := token.ParseRing(secret.Data)
	switch {
	case err == nil:
		return secret, ring, nil
	case k.ring.Load() != nil:
		return secret, nil, nil
	}
	return nil, nil, fmt.Errorf("%w: %s: %w; restore it from a backup, or delete it to start with a new key, which cuts off every running sandbox until its token is renewed", ErrUnreadable, k.Secret, err)
}

// save creates or updates under optimistic locking: of two managers that rotate at the same
// time, one gets a conflict and reads the other's ring.
func (k *Keeper) save(ctx context.Context, secret *corev1.Secret, ring *token.Ring) error {
	data, err := ring.Marshal()
	if err != nil {
		return fmt.Errorf("encode the signing keys: %w", err)
	}
	secret.Data = data
	if secret.Labels == nil {
		secret.Labels = map[string]string{}
	}
	secret.Labels[v1alpha1.ComponentLabel] = v1alpha1.ComponentSigningKey
	secret.Labels["app.kubernetes.io/managed-by"] = "sandbox-egress"
	if secret.ResourceVersion == "" {
		err = k.Client.Create(ctx, secret, client.FieldOwner(apply.FieldOwner))
	} else {
		err = k.Client.Update(ctx, secret, client.FieldOwner(apply.FieldOwner))
	}
	if err != nil {
		return fmt.Errorf("save the signing key Secret %s: %w", k.Secret, err)
	}
	return nil
}

func (k *Keeper) use(ring *token.Ring) {
	old := k.ring.Swap(ring)
	if k.Changed == nil {
		return
	}
	if old == nil || old.Active().KID != ring.Active().KID || !sameKeys(old, ring) {
		k.Changed()
	}
}

func sameKeys(a, b *token.Ring) bool {
	x, y := a.KeySet().KIDs(), b.KeySet().KIDs()
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}
