package token

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// RingPolicy times a rotation.
type RingPolicy struct {
	// Interval is how long a key signs.
	Interval time.Duration
	// Propagation is how long a new key is published in the JWKS before it signs, so that
	// no proxy meets a token whose key it has not read yet.
	Propagation time.Duration
	// MaxTokenTTL is the longest life of a token that a key signed. Longer single tokens
	// are announced with Retain.
	MaxTokenTTL time.Duration
}

// Ring holds the key that signs, the key that will sign next, and the public keys of
// tokens that are still alive. It is immutable: every change returns a new Ring, so a
// caller saves the new one before it signs with it.
//
// A key's life: published (next) -> active -> verification only -> gone.
type Ring struct {
	active  ringKey
	next    *ringKey
	retired []retiredKey
}

type ringKey struct {
	key *SigningKey
	// since is when the key was published (next) or began to sign (active).
	since time.Time
	// retainUntil is the latest exp announced by Retain; zero if none.
	retainUntil time.Time
}

// retiredKey has no private half: a key that signs no more cannot be stolen.
type retiredKey struct {
	key   PublicKey
	until time.Time
}

// NewRing makes a ring with one key that signs at once.
func NewRing(now time.Time, random io.Reader) (*Ring, error) {
	key, err := GenerateKey(random)
	if err != nil {
		return nil, err
	}
	return &Ring{active: ringKey{key: key, since: wholeSecond(now)}}, nil
}

// Active is the key to sign with.
func (r *Ring) Active() *SigningKey { return r.active.key }

// ActiveSince is when the active key began to sign.
func (r *Ring) ActiveSince() time.Time { return r.active.since }

// KeySet is every key that a proxy must accept: next, active and retired ones.
func (r *Ring) KeySet() *KeySet {
	set := &KeySet{keys: map[string]*ecdsa.PublicKey{}}
	for _, k := range r.retired {
		set.keys[k.key.KID] = k.key.Key
	}
	if r.next != nil {
		set.keys[r.next.key.KID] = &r.next.key.Key.PublicKey
	}
	set.keys[r.active.key.KID] = &r.active.key.Key.PublicKey
	return set
}

// NeedsRotation reports whether Rotate would change the ring.
func (r *Ring) NeedsRotation(now time.Time, p RingPolicy) bool {
	return !now.Before(r.NextRotation(p))
}

// NextRotation is the earliest time at which Rotate has something to do.
func (r *Ring) NextRotation(p RingPolicy) time.Time {
	due := r.publishAt(p)
	if r.next != nil {
		due = r.promoteAt(p)
	}
	for _, k := range r.retired {
		if k.until.Before(due) {
			due = k.until
		}
	}
	return due
}

func (r *Ring) publishAt(p RingPolicy) time.Time {
	at := r.active.since.Add(p.Interval - p.Propagation)
	if at.Before(r.active.since) {
		return r.active.since
	}
	return at
}

// promoteAt waits for both the publication delay and the active key's interval.
func (r *Ring) promoteAt(p RingPolicy) time.Time {
	published, worn := r.next.since.Add(p.Propagation), r.active.since.Add(p.Interval)
	if published.After(worn) {
		return published
	}
	return worn
}

// Rotate does what is due at now and nothing else: publish the next key, let a published
// key sign, drop retired keys whose last token has expired. Calling it again at the same
// time changes nothing. The active key is replaced, never removed.
func (r *Ring) Rotate(now time.Time, random io.Reader, p RingPolicy) (rotated *Ring, changed bool, err error) {
	if err := p.validate(); err != nil {
		return r, false, err
	}
	out := r.clone()
	out.retired = slices.DeleteFunc(out.retired, func(k retiredKey) bool { return !now.Before(k.until) })
	changed = len(out.retired) != len(r.retired)
	switch {
	case out.next != nil && !now.Before(out.promoteAt(p)):
		out.promote(now, p)
		changed = true
	case out.next == nil && !now.Before(out.publishAt(p)):
		key, err := GenerateKey(random)
		if err != nil {
			return r, false, err
		}
		out.next = &ringKey{key: key, since: wholeSecond(now)}
		changed = true
	}
	if !changed {
		return r, false, nil
	}
	return out, true, nil
}

// promote lets next sign. A replica that has not seen the change may sign with the old key
// for Propagation more; that token lives for MaxTokenTTL and is accepted for Leeway after,
// and the second Leeway covers a signer whose clock runs ahead.
func (r *Ring) promote(now time.Time, p RingPolicy) {
	until := now.Add(p.Propagation + p.MaxTokenTTL)
	if r.active.retainUntil.After(until) {
		until = r.active.retainUntil
	}
	until = wholeSecond(until.Add(2*Leeway + time.Second))
	r.retired = append(r.retired, retiredKey{key: r.active.key.Public(), until: until})
	next := *r.next
	next.since = wholeSecond(now)
	r.active, r.next = next, nil
}

// Retain keeps the key kid for verification until exp at least, for a token that lives
// longer than RingPolicy.MaxTokenTTL. A kid that is not in the ring is an error.
func (r *Ring) Retain(kid string, exp time.Time) (retained *Ring, changed bool, err error) {
	exp = wholeSecond(exp.Add(time.Second))
	if r.active.key.KID == kid {
		if !exp.After(r.active.retainUntil) {
			return r, false, nil
		}
		out := r.clone()
		out.active.retainUntil = exp
		return out, true, nil
	}
	for i, k := range r.retired {
		if k.key.KID != kid {
			continue
		}
		until := exp.Add(2 * Leeway)
		if !until.After(k.until) {
			return r, false, nil
		}
		out := r.clone()
		out.retired[i].until = until
		return out, true, nil
	}
	return r, false, fmt.Errorf("kid %q is not in the ring", clip(kid))
}

// Revoke takes a leaked key out at once: every token it signed is refused. An active key
// is replaced by the published next one, or by a new one.
func (r *Ring) Revoke(now time.Time, random io.Reader, kid string) (*Ring, error) {
	out := r.clone()
	switch {
	case r.next != nil && r.next.key.KID == kid:
		out.next = nil
		return out, nil
	case r.active.key.KID == kid && r.next != nil:
		out.active, out.next = ringKey{key: r.next.key, since: wholeSecond(now)}, nil
		return out, nil
	case r.active.key.KID == kid:
		fresh, err := NewRing(now, random)
		if err != nil {
			return nil, err
		}
		out.active = fresh.active
		return out, nil
	}
	out.retired = slices.DeleteFunc(out.retired, func(k retiredKey) bool { return k.key.KID == kid })
	if len(out.retired) == len(r.retired) {
		return nil, fmt.Errorf("kid %q is not in the ring", clip(kid))
	}
	return out, nil
}

func (r *Ring) clone() *Ring {
	out := &Ring{active: r.active, retired: slices.Clone(r.retired)}
	if r.next != nil {
		next := *r.next
		out.next = &next
	}
	return out
}

func (p RingPolicy) validate() error {
	switch {
	case p.Interval <= 0:
		return errors.New("ring policy: Interval must be positive")
	case p.Propagation < 0 || p.Propagation >= p.Interval:
		return errors.New("ring policy: Propagation must be at least 0 and below Interval")
	case p.MaxTokenTTL <= 0:
		return errors.New("ring policy: MaxTokenTTL must be positive")
	}
	return nil
}

// wholeSecond makes times equal to what they are after Marshal and ParseRing.
func wholeSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
