package token

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var policy = RingPolicy{Interval: 30 * 24 * time.Hour, Propagation: 10 * time.Minute, MaxTokenTTL: 24 * time.Hour}

func newRing(t *testing.T) *Ring {
	t.Helper()
	r, err := NewRing(epoch, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func rotate(t *testing.T, r *Ring, at time.Time, wantChanged bool) *Ring {
	t.Helper()
	if got := r.NeedsRotation(at, policy); got != wantChanged {
		t.Fatalf("NeedsRotation(%v) = %v, want %v", at, got, wantChanged)
	}
	out, changed, err := r.Rotate(at, nil, policy)
	if err != nil || changed != wantChanged {
		t.Fatalf("Rotate(%v) changed %v (%v), want %v", at, changed, err, wantChanged)
	}
	if again, changed, err := out.Rotate(at, nil, policy); err != nil || changed || again != out {
		t.Fatalf("Rotate at the same time changed the ring again (%v)", err)
	}
	return out
}

func TestRingRotatesInThreeSteps(t *testing.T) {
	r := newRing(t)
	first := r.Active().KID
	publish := epoch.Add(policy.Interval - policy.Propagation)
	if got := r.NextRotation(policy); !got.Equal(publish) {
		t.Fatalf("NextRotation = %v", got)
	}
	r = rotate(t, r, publish.Add(-time.Second), false)

	r = rotate(t, r, publish, true)
	if r.Active().KID != first || r.KeySet().Len() != 2 {
		t.Fatal("the new key must be published and not sign yet")
	}
	r = rotate(t, r, publish.Add(policy.Propagation-time.Second), false)

	promote := publish.Add(policy.Propagation)
	r = rotate(t, r, promote, true)
	if r.Active().KID == first || r.KeySet().Lookup(first) == nil {
		t.Fatal("the new key must sign and the old one still verify")
	}
	if !r.ActiveSince().Equal(promote) {
		t.Errorf("ActiveSince = %v", r.ActiveSince())
	}

	gone := r.NextRotation(policy)
	if last := promote.Add(policy.Propagation + policy.MaxTokenTTL + Leeway); gone.Before(last) {
		t.Fatalf("the old key would go at %v, its last token is accepted until %v", gone, last)
	}
	r = rotate(t, r, gone.Add(-time.Second), false)
	r = rotate(t, r, gone, true)
	if r.KeySet().Lookup(first) != nil || r.KeySet().Len() != 1 {
		t.Fatal("the old key must be gone")
	}
}

// A controller that slept for a year still publishes a key before it signs with it.
func TestRingPublishesBeforeItSignsHoweverLateItIs(t *testing.T) {
	r := newRing(t)
	late := epoch.Add(365 * 24 * time.Hour)
	first := r.Active().KID
	r = rotate(t, r, late, true)
	if r.Active().KID != first {
		t.Fatal("an unpublished key signs")
	}
	r = rotate(t, r, late.Add(policy.Propagation-time.Second), false)
	r = rotate(t, r, late.Add(policy.Propagation), true)
	if r.Active().KID == first {
		t.Fatal("the new key does not sign")
	}
}

func TestRingDoesNothingWhenTheClockGoesBack(t *testing.T) {
	rotate(t, newRing(t), epoch.Add(-100*24*time.Hour), false)
}

func TestRotateLeavesTheOldRingAsItWas(t *testing.T) {
	r := newRing(t)
	before, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	at := epoch
	for range 6 {
		at = at.Add(policy.Interval)
		if _, _, err := r.Rotate(at, nil, policy); err != nil {
			t.Fatal(err)
		}
	}
	after, err := r.Marshal()
	if err != nil || !maps.EqualFunc(before, after, bytes.Equal) {
		t.Error("Rotate changed its receiver")
	}
}

func TestRetainKeepsAKeyForALongToken(t *testing.T) {
	r := newRing(t)
	first := r.Active().KID
	long := epoch.Add(90 * 24 * time.Hour)
	r, changed, err := r.Retain(first, long)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if _, changed, _ := r.Retain(first, long.Add(-time.Hour)); changed {
		t.Error("a shorter token changed the ring")
	}
	data, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if r, err = ParseRing(data); err != nil {
		t.Fatal(err)
	}
	publish := epoch.Add(policy.Interval - policy.Propagation)
	r = rotate(t, r, publish, true)
	r = rotate(t, r, publish.Add(policy.Propagation), true)
	// Long after MaxTokenTTL the key is still there ...
	r, _, err = r.Rotate(long.Add(Leeway), nil, policy)
	if err != nil || r.KeySet().Lookup(first) == nil {
		t.Fatalf("gone before its token (%v)", err)
	}
	// ... and can be kept longer when it is retired already ...
	longer := long.Add(time.Hour)
	r, changed, err = r.Retain(first, longer)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if _, changed, _ := r.Retain(first, long); changed {
		t.Error("a shorter token changed the ring")
	}
	r, _, err = r.Rotate(longer.Add(Leeway), nil, policy)
	if err != nil || r.KeySet().Lookup(first) == nil {
		t.Fatalf("gone before its token (%v)", err)
	}
	// ... but not for ever.
	r, _, err = r.Rotate(longer.Add(time.Hour), nil, policy)
	if err != nil || r.KeySet().Lookup(first) != nil {
		t.Fatalf("still there (%v)", err)
	}
	if _, _, err := r.Retain(first, longer); err == nil {
		t.Error("a key that is not in the ring was retained")
	}
}

func TestRevokeTakesAKeyOutAtOnce(t *testing.T) {
	r := newRing(t)
	first := r.Active().KID
	alone, err := r.Revoke(epoch, nil, first)
	if err != nil || alone.KeySet().Lookup(first) != nil || alone.KeySet().Len() != 1 {
		t.Fatalf("revoking the only key: %v", err)
	}
	publish := epoch.Add(policy.Interval - policy.Propagation)
	r = rotate(t, r, publish, true)
	second := r.next.key.KID
	replaced, err := r.Revoke(publish, nil, first)
	if err != nil || replaced.Active().KID != second || replaced.KeySet().Len() != 1 {
		t.Fatalf("revoking the active key with a next one: %v", err)
	}
	dropped, err := r.Revoke(publish, nil, second)
	if err != nil || dropped.Active().KID != first || dropped.KeySet().Len() != 1 {
		t.Fatalf("revoking the next key: %v", err)
	}
	r = rotate(t, r, publish.Add(policy.Propagation), true)
	old, err := r.Revoke(publish, nil, first)
	if err != nil || old.KeySet().Lookup(first) != nil || old.Active().KID != second {
		t.Fatalf("revoking a retired key: %v", err)
	}
	if _, err := r.Revoke(publish, nil, "nobody"); err == nil {
		t.Error("revoked a key that is not there")
	}
}

func TestRotateRefusesAPolicyThatCannotWork(t *testing.T) {
	for name, p := range map[string]RingPolicy{
		"Interval":    {Propagation: time.Minute, MaxTokenTTL: time.Hour},
		"Propagation": {Interval: time.Minute, Propagation: time.Minute, MaxTokenTTL: time.Hour},
		"MaxTokenTTL": {Interval: time.Hour, Propagation: time.Minute},
	} {
		r := newRing(t)
		same, changed, err := r.Rotate(epoch.Add(time.Hour), nil, p)
		if err == nil || !strings.Contains(err.Error(), name) || changed || same != r {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRingMarshalRoundTrip(t *testing.T) {
	r := newRing(t)
	publish := epoch.Add(policy.Interval - policy.Propagation)
	states := map[string]*Ring{"new": r}
	r = rotate(t, r, publish, true)
	states["published"] = r
	r = rotate(t, r, publish.Add(policy.Propagation), true)
	states["promoted"] = r
	for name, r := range states {
		t.Run(name, func(t *testing.T) {
			data, err := r.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			back, err := ParseRing(data)
			if err != nil {
				t.Fatal(err)
			}
			again, err := back.Marshal()
			if err != nil || !maps.EqualFunc(data, again, bytes.Equal) {
				t.Errorf("not the same after a round trip: %v", err)
			}
			if back.Active().KID != r.Active().KID || !slices.Equal(back.KeySet().KIDs(), r.KeySet().KIDs()) {
				t.Error("other keys")
			}
			if !back.NextRotation(policy).Equal(r.NextRotation(policy)) {
				t.Error("another schedule")
			}
		})
	}
	data, err := states["promoted"].Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := data[RingNextKey]; ok || bytes.Count(data[RingStateKey], []byte(`"d"`)) != 0 {
		t.Error("a private half of a key that does not sign is kept")
	}
}

func TestParseRingRefuses(t *testing.T) {
	r := rotate(t, newRing(t), epoch.Add(policy.Interval), true)
	r = rotate(t, r, epoch.Add(policy.Interval+policy.Propagation), true)
	// Due again before the retired key is gone, so that all three kinds are in the file.
	short := RingPolicy{Interval: 12 * time.Hour, Propagation: time.Minute, MaxTokenTTL: policy.MaxTokenTTL}
	r, _, err := r.Rotate(epoch.Add(policy.Interval+policy.Propagation+12*time.Hour), nil, short)
	if err != nil {
		t.Fatal(err)
	}
	good, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	otherPEM, err := testKey(t, 9).MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, replacement string) func(map[string][]byte) {
		return func(d map[string][]byte) {
			changed := bytes.Replace(d[RingStateKey], []byte(old), []byte(replacement), 1)
			if bytes.Equal(changed, d[RingStateKey]) {
				t.Fatalf("%s is not in %s", old, d[RingStateKey])
			}
			d[RingStateKey] = changed
		}
	}
	for name, tc := range map[string]struct {
		change func(map[string][]byte)
		want   string
	}{
		"as written":          {func(map[string][]byte) {}, ""},
		"empty Secret":        {func(d map[string][]byte) { clear(d) }, "ring.json: is missing"},
		"no state":            {func(d map[string][]byte) { delete(d, RingStateKey) }, "ring.json: is missing"},
		"no active key":       {func(d map[string][]byte) { delete(d, RingActiveKey) }, "active.pem: is missing"},
		"empty active key":    {func(d map[string][]byte) { d[RingActiveKey] = nil }, "active.pem: is missing"},
		"another active key":  {func(d map[string][]byte) { d[RingActiveKey] = otherPEM }, "active.pem: holds key"},
		"another next key":    {func(d map[string][]byte) { d[RingNextKey] = otherPEM }, "next.pem: holds key"},
		"next key missing":    {func(d map[string][]byte) { delete(d, RingNextKey) }, "next.pem and ring.json disagree"},
		"garbage in the PEM":  {func(d map[string][]byte) { d[RingActiveKey] = []byte("x") }, "active.pem: no PEM"},
		"an entry too many":   {func(d map[string][]byte) { d["tls.key"] = otherPEM }, `unexpected entry "tls.key"`},
		"state is no JSON":    {func(d map[string][]byte) { d[RingStateKey] = []byte("x") }, "ring.json: is not JSON"},
		"state is huge":       {func(d map[string][]byte) { d[RingStateKey] = make([]byte, 1<<20) }, "larger"},
		"another version":     {edit(`"version": 1`, `"version": 2`), "version is 2"},
		"no version":          {edit(`"version": 1,`, ``), "version is missing"},
		"unknown member":      {edit(`"version": 1`, `"version": 1, "x": 1`), "unknown field"},
		"a member twice":      {edit(`"version": 1`, `"version": 1, "version": 1`), "twice"},
		"no time":             {edit(`"since"`, `"sinc"`), "unknown field"},
		"a time that is none": {edit(`"since": "2026`, `"since": "x`), "parsing time"},
		"retired key private": {edit(`"kty"`, `"d": "AA", "kty"`), `retired[0]: kid`},
		"retired for ever":    {edit(`"until": "2026`, `"unti": "2026`), "unknown field"},
		"retired is active": {func(d map[string][]byte) {
			fresh := newRing(t)
			fresh.retired = []retiredKey{{key: fresh.active.key.Public(), until: epoch}}
			again, err := fresh.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			clear(d)
			maps.Copy(d, again)
		}, "appears twice"},
	} {
		t.Run(name, func(t *testing.T) {
			data := maps.Clone(good)
			tc.change(data)
			_, err := ParseRing(data)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("err = %v, want %q", err, tc.want)
			}
		})
	}
}

// Whatever the times at which a controller runs and the Secret is reloaded: a token that
// was signed by the active key, by a proxy whose JWKS is at most Propagation old, verifies
// until it expires.
func TestRingNeverRefusesALiveToken(t *testing.T) {
	p := RingPolicy{Interval: 3 * time.Hour, Propagation: 10 * time.Minute, MaxTokenTTL: 4 * time.Hour}
	rapid.Check(t, func(rt *rapid.T) {
		type live struct {
			kid string
			exp time.Time
		}
		type publication struct {
			at  time.Time
			set *KeySet
		}
		now := epoch
		ring, err := NewRing(now, nil)
		if err != nil {
			rt.Fatal(err)
		}
		published := []publication{{now.Add(-p.Propagation), ring.KeySet()}}
		var tokens []live
		for range rapid.IntRange(5, 40).Draw(rt, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 120).Draw(rt, "minutes")) * time.Minute)
			next, changed, err := ring.Rotate(now, nil, p)
			if err != nil {
				rt.Fatal(err)
			}
			if changed {
				ring = next
				published = append(published, publication{now, ring.KeySet()})
			}
			if rapid.Bool().Draw(rt, "reload") {
				data, err := ring.Marshal()
				if err != nil {
					rt.Fatal(err)
				}
				if ring, err = ParseRing(data); err != nil {
					rt.Fatal(err)
				}
			}
			ttl := time.Duration(rapid.IntRange(1, 240).Draw(rt, "ttl")) * time.Minute
			tokens = append(tokens, live{ring.Active().KID, now.Add(ttl)})
			// The oldest key set a proxy may still work with.
			seen := published[0].set
			for _, pub := range published {
				if !pub.at.After(now.Add(-p.Propagation)) {
					seen = pub.set
				}
			}
			for _, tok := range tokens {
				if !now.Before(tok.exp.Add(Leeway)) {
					continue
				}
				if ring.KeySet().Lookup(tok.kid) == nil || seen.Lookup(tok.kid) == nil {
					rt.Fatalf("a live token of kid %s is refused at %v", tok.kid, now)
				}
			}
		}
	})
}

func TestRotateReportsAFailingRandomSource(t *testing.T) {
	// Go 1.26 ignores the reader of ecdsa.GenerateKey unless cryptocustomrand=1 is set.
	t.Setenv("GODEBUG", "cryptocustomrand=1")
	want := errors.New("no entropy")
	fail := readerFunc(func([]byte) (int, error) { return 0, want })
	if _, err := NewRing(epoch, fail); !errors.Is(err, want) {
		t.Errorf("NewRing: %v", err)
	}
	r := newRing(t)
	same, changed, err := r.Rotate(epoch.Add(policy.Interval), fail, policy)
	if !errors.Is(err, want) || changed || same != r {
		t.Errorf("Rotate: %v", err)
	}
	if _, err := r.Revoke(epoch, fail, r.Active().KID); !errors.Is(err, want) {
		t.Errorf("Revoke: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
