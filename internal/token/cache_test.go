package token

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestACacheHitReturnsTheSameClaimsWithoutAllocating(t *testing.T) {
	key := testKey(t, 1)
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now))
	raw := mintFor(t, key, "c1")
	first, err := v.Verify(raw)
	if err != nil {
		t.Fatal(err)
	}
	second, err := v.Verify(raw)
	if err != nil || first != second {
		t.Fatalf("second call: %p, first %p, %v", second, first, err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(raw) }); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}

func TestCachedTokenExpiresOnTime(t *testing.T) {
	key := testKey(t, 1)
	c := &clock{epoch}
	v := NewVerifier(testKeySet(t, key), WithClock(c.now))
	raw := mintFor(t, key, "c1") // one hour
	for _, step := range []struct {
		at   time.Duration
		want error
	}{
		{0, nil},
		{time.Hour + Leeway - time.Nanosecond, nil},
		{time.Hour + Leeway, ErrExpired},
		{24 * time.Hour, ErrExpired},
		{time.Minute, nil}, // a clock that was set back makes it good again: expiry is no cached verdict
		{-Leeway, nil},
		{-Leeway - time.Nanosecond, ErrNotYetValid},
	} {
		c.t = epoch.Add(step.at)
		if _, err := v.Verify(raw); !errors.Is(err, step.want) {
			t.Fatalf("at %v: %v, want %v", step.at, err, step.want)
		}
	}
}

func TestTokenFirstSeenTooEarlyBecomesGood(t *testing.T) {
	key := testKey(t, 1)
	c := &clock{epoch.Add(-time.Hour)}
	v := NewVerifier(testKeySet(t, key), WithClock(c.now))
	raw := mintFor(t, key, "c1")
	if _, err := v.Verify(raw); !errors.Is(err, ErrNotYetValid) {
		t.Fatal(err)
	}
	c.t = epoch
	if _, err := v.Verify(raw); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredTokensStayOutOfThePositiveCache(t *testing.T) {
	key := testKey(t, 1)
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch.Add(2 * time.Hour)}).now))
	for i := range 40 {
		if _, err := v.Verify(mintFor(t, key, "c"+strconv.Itoa(i))); !errors.Is(err, ErrExpired) {
			t.Fatal(err)
		}
	}
	if v.positive.len() != 0 || v.negative.len() != 40 {
		t.Errorf("positive %d, negative %d", v.positive.len(), v.negative.len())
	}
}

func TestWrongSignaturesEvictNoGoodToken(t *testing.T) {
	key := testKey(t, 1)
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now), WithCacheSize(16), WithNegativeCacheSize(16))
	raw := mintFor(t, key, "c1")
	if _, err := v.Verify(raw); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := v.Verify(flip(raw, len(raw)-2-i%80)); err == nil {
			t.Fatal("accepted")
		}
	}
	if v.positive.get(sha256.Sum256([]byte(raw))) == nil {
		t.Error("the good token is gone")
	}
	if n := v.negative.len(); n > 16 {
		t.Errorf("the negative cache holds %d entries", n)
	}
}

func TestMalformedAndUnknownKeyTokensAreNotCached(t *testing.T) {
	key, later := testKey(t, 1), testKey(t, 2)
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now))
	raw := mintFor(t, later, "c1")
	for _, bad := range []string{"", "a.b.c", raw} {
		if _, err := v.Verify(bad); err == nil {
			t.Fatal("accepted")
		}
	}
	if v.positive.len()+v.negative.len() != 0 {
		t.Error("something is cached")
	}
	v.SetKeys(testKeySet(t, key, later))
	if _, err := v.Verify(raw); err != nil {
		t.Errorf("after its key arrived: %v", err)
	}
}

func TestSetKeys(t *testing.T) {
	a, b := testKey(t, 1), testKey(t, 2)
	// The same kid, another key: what a mistaken or hostile JWKS edit looks like.
	impostor, err := NewKeySet(PublicKey{KID: a.KID, Key: &b.Key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		keys   *KeySet
		want   error
		cached int
	}{
		"same key parsed again keeps the result": {testKeySet(t, testKey(t, 1)), nil, 1},
		"key added keeps the result":             {testKeySet(t, a, b), nil, 1},
		"kid gone drops the result":              {testKeySet(t, b), ErrUnknownKey, 0},
		"kid now names another key":              {impostor, ErrSignature, 0},
		"no keys at all":                         {nil, ErrUnknownKey, 0},
	} {
		t.Run(name, func(t *testing.T) {
			v := NewVerifier(testKeySet(t, a), WithClock((&clock{epoch}).now))
			raw := mintFor(t, a, "c1")
			if _, err := v.Verify(raw); err != nil {
				t.Fatal(err)
			}
			v.SetKeys(tc.keys)
			if n := v.positive.len(); n != tc.cached {
				t.Errorf("%d results cached, want %d", n, tc.cached)
			}
			if _, err := v.Verify(raw); !errors.Is(err, tc.want) {
				t.Errorf("err = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSetKeysForgetsWrongSignaturesOfAReplacedKey(t *testing.T) {
	a, b := testKey(t, 1), testKey(t, 2)
	wrong, err := NewKeySet(PublicKey{KID: a.KID, Key: &b.Key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(wrong, WithClock((&clock{epoch}).now))
	raw := mintFor(t, a, "c1")
	if _, err := v.Verify(raw); !errors.Is(err, ErrSignature) {
		t.Fatal(err)
	}
	v.SetKeys(testKeySet(t, a))
	if _, err := v.Verify(raw); err != nil {
		t.Errorf("the right key arrived, still refused: %v", err)
	}
}

// A Verify that started under the old keys may store its result after SetKeys has swept.
func TestAResultStoredLateUnderOldKeysIsNotUsed(t *testing.T) {
	a, b := testKey(t, 1), testKey(t, 2)
	old := testKeySet(t, a)
	v := NewVerifier(old, WithClock((&clock{epoch}).now))
	raw := mintFor(t, a, "c1")
	v.SetKeys(testKeySet(t, b))
	if _, err := v.verifyUncached(raw, hash(raw), old, epoch); err != nil {
		t.Fatal(err)
	}
	if v.positive.len() != 1 {
		t.Fatal("the test stored nothing")
	}
	if _, err := v.Verify(raw); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("err = %v", err)
	}
}

func entryNamed(i int, notAfter time.Time) ([sha256.Size]byte, *entry) {
	// One shard, so that eviction order is exact.
	sum := sha256.Sum256([]byte(strconv.Itoa(i)))
	sum[0] = 0
	return sum, &entry{claims: &Claims{}, notAfter: notAfter}
}

func TestCacheEvictsExpiredThenUnusedEntries(t *testing.T) {
	c := newCache(4 * shards)
	sums := map[int][sha256.Size]byte{}
	put := func(i int, notAfter time.Time) {
		sum, e := entryNamed(i, notAfter)
		sums[i] = sum
		c.put(sum, e, epoch)
	}
	for i := range 4 {
		put(i, epoch.Add(time.Hour))
	}
	present := func() string {
		s := ""
		for i := range 10 {
			if sum, ok := sums[i]; ok && c.shards[0].entries[sum] != nil {
				s += strconv.Itoa(i)
			}
		}
		return s
	}
	for _, i := range []int{0, 2} { // in use
		c.get(sums[i])
	}
	put(4, epoch.Add(time.Hour))
	if got := present(); got != "0234" {
		t.Errorf("after one more: %s, want the unused 1 gone", got)
	}
	c.shards[0].entries[sums[2]].notAfter = epoch.Add(-time.Second)
	c.get(sums[2])
	put(5, epoch.Add(time.Hour))
	if got := present(); got != "0345" {
		t.Errorf("with 2 expired but used: %s", got)
	}
	for i := 6; i < 10; i++ {
		put(i, epoch.Add(time.Hour))
	}
	if c.len() != 4 || len(c.shards[0].ring) != 4 {
		t.Errorf("%d entries, ring %d", c.len(), len(c.shards[0].ring))
	}
}

func TestCacheReplacesAnEntryInPlace(t *testing.T) {
	c := newCache(2 * shards)
	sum, first := entryNamed(1, epoch)
	_, second := entryNamed(1, epoch.Add(time.Hour))
	c.put(sum, first, epoch)
	c.put(sum, second, epoch)
	if c.get(sum) != second || len(c.shards[0].ring) != 1 || c.shards[0].ring[0] != second {
		t.Error("the ring and the map differ")
	}
}

func TestCacheOfSizeZeroStoresNothing(t *testing.T) {
	key := testKey(t, 1)
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now), WithCacheSize(0), WithNegativeCacheSize(0))
	raw := mintFor(t, key, "c1")
	for range 2 {
		if _, err := v.Verify(raw); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(flip(raw, len(raw)-9)); !errors.Is(err, ErrSignature) {
			t.Fatal(err)
		}
	}
	if v.positive.len()+v.negative.len() != 0 {
		t.Error("something is cached")
	}
}

func TestCacheStaysWithinItsBound(t *testing.T) {
	c := newCache(64)
	for i := range 1000 {
		sum := sha256.Sum256([]byte(strconv.Itoa(i)))
		c.put(sum, &entry{claims: &Claims{}, notAfter: epoch.Add(time.Hour)}, epoch)
		c.get(sum)
	}
	if n := c.len(); n > 64 {
		t.Errorf("%d entries", n)
	}
}

func TestVerifierUnderConcurrentRotation(t *testing.T) {
	a, b := testKey(t, 1), testKey(t, 2)
	both, onlyB := testKeySet(t, a, b), testKeySet(t, b)
	v := NewVerifier(both, WithClock((&clock{epoch}).now), WithCacheSize(32), WithNegativeCacheSize(32))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			tokenB := mintFor(t, b, fmt.Sprintf("b%d", g))
			tokenA := mintFor(t, a, fmt.Sprintf("a%d", g))
			for range 300 {
				if _, err := v.Verify(tokenB); err != nil {
					t.Errorf("key b never left: %v", err)
				}
				if _, err := v.Verify(tokenA); err != nil && !errors.Is(err, ErrUnknownKey) {
					t.Errorf("key a: %v", err)
				}
				if _, err := v.Verify(flip(tokenB, len(tokenB)-9)); !errors.Is(err, ErrSignature) {
					t.Errorf("wrong signature: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 200 {
			if i%2 == 0 {
				v.SetKeys(onlyB)
			} else {
				v.SetKeys(both)
			}
		}
		v.SetKeys(onlyB)
	})
	wg.Wait()
	if _, err := v.Verify(mintFor(t, a, "a0")); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("after the last swap: %v", err)
	}
}
