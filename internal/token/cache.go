package token

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// entry is what is known about one token whatever the time is: its claims, or the error
// that its signature gave, under one key.
type entry struct {
	sum    [sha256.Size]byte
	kid    string
	key    *ecdsa.PublicKey
	claims *Claims
	err    error

	// exp + Leeway, and the later of nbf and iat - Leeway.
	notAfter, notBefore time.Time

	// checked is the key set under which the key was last seen to be current.
	checked atomic.Pointer[KeySet]
	used    atomic.Bool
}

func newEntry(kid string, key *ecdsa.PublicKey, keys *KeySet) *entry {
	e := &entry{kid: kid, key: key}
	e.checked.Store(keys)
	return e
}

func (e *entry) setTimes(c *Claims) {
	e.notAfter = c.ExpiresAt.Add(Leeway)
	if c.NotBefore != nil {
		e.notBefore = c.NotBefore.Add(-Leeway)
	}
	if c.IssuedAt != nil {
		if iat := c.IssuedAt.Add(-Leeway); iat.After(e.notBefore) {
			e.notBefore = iat
		}
	}
}

// validUnder reports whether the key that decided this entry is still the kid's key.
func (e *entry) validUnder(keys *KeySet) bool {
	if e.checked.Load() == keys {
		return keys != nil
	}
	key := keys.Lookup(e.kid)
	if key == nil || !key.Equal(e.key) {
		return false
	}
	e.checked.Store(keys)
	return true
}

// result applies the time checks (RFC 7519 sections 4.1.4 to 4.1.6).
func (e *entry) result(now time.Time) (*Claims, error) {
	switch {
	case e.err != nil:
		return nil, e.err
	case !now.Before(e.notAfter):
		return nil, fmt.Errorf("%w: at %s", ErrExpired, e.claims.ExpiresAt.UTC().Format(time.RFC3339))
	case now.Before(e.notBefore):
		return nil, fmt.Errorf("%w: not before %s", ErrNotYetValid, e.notBefore.Add(Leeway).UTC().Format(time.RFC3339))
	}
	return e.claims, nil
}

func (e *entry) expired(now time.Time) bool {
	return e.err == nil && !now.Before(e.notAfter)
}

// shards keeps writers of unrelated tokens apart; hits take read locks only.
const shards = 16

// cache is a bounded map from token hash to entry with CLOCK (second chance) eviction:
// a hit sets one bit instead of moving a list element under a write lock.
type cache struct {
	shards [shards]shard
}

type shard struct {
	mu      sync.RWMutex
	entries map[[sha256.Size]byte]*entry
	ring    []*entry
	limit   int
	hand    int
}

// newCache bounds the whole cache to at most size entries, rounded up to a multiple of
// the shard count; size <= 0 stores nothing.
func newCache(size int) *cache {
	c := new(cache)
	for i := range c.shards {
		c.shards[i].entries = map[[sha256.Size]byte]*entry{}
		if size > 0 {
			c.shards[i].limit = (size + shards - 1) / shards
		}
	}
	return c
}

func (c *cache) shard(sum [sha256.Size]byte) *shard {
	return &c.shards[sum[0]%shards]
}

func (c *cache) get(sum [sha256.Size]byte) *entry {
	s := c.shard(sum)
	s.mu.RLock()
	e := s.entries[sum]
	s.mu.RUnlock()
	// A store on every hit would bounce the cache line between cores.
	if e != nil && !e.used.Load() {
		e.used.Store(true)
	}
	return e
}

func (c *cache) put(sum [sha256.Size]byte, e *entry, now time.Time) {
	e.sum = sum
	s := c.shard(sum)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit == 0 {
		return
	}
	if old, ok := s.entries[sum]; ok {
		for i := range s.ring {
			if s.ring[i] == old {
				s.ring[i] = e
				break
			}
		}
		s.entries[sum] = e
		return
	}
	if len(s.ring) < s.limit {
		s.ring = append(s.ring, e)
	} else {
		victim := s.victim(now)
		delete(s.entries, s.ring[victim].sum)
		s.ring[victim] = e
	}
	s.entries[sum] = e
}

// victim returns the ring index to overwrite; two rounds clear every bit at most once.
func (s *shard) victim(now time.Time) int {
	for range 2 * len(s.ring) {
		i := s.hand
		s.hand = (s.hand + 1) % len(s.ring)
		if e := s.ring[i]; e.expired(now) || !e.used.Swap(false) {
			return i
		}
	}
	return s.hand
}

func (c *cache) removeIf(drop func(*entry) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		kept := s.ring[:0]
		for _, e := range s.ring {
			if drop(e) {
				delete(s.entries, e.sum)
				continue
			}
			kept = append(kept, e)
		}
		clear(s.ring[len(kept):])
		s.ring, s.hand = kept, 0
		s.mu.Unlock()
	}
}

func (c *cache) len() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}
