package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The entries of a ring's Secret.
const (
	RingActiveKey = "active.pem" // PKCS #8
	RingNextKey   = "next.pem"   // PKCS #8, only while a key is published but does not sign
	RingStateKey  = "ring.json"  // times, and the public keys that only verify

	ringVersion    = 1
	maxRingEntries = maxKeys - 2
)

type ringState struct {
	Version int              `json:"version"`
	Active  ringKeyState     `json:"active"`
	Next    *ringKeyState    `json:"next,omitempty"`
	Retired []retiredKeyJSON `json:"retired,omitempty"`
}

type ringKeyState struct {
	KID         string     `json:"kid"`
	Since       time.Time  `json:"since"`
	RetainUntil *time.Time `json:"retainUntil,omitempty"`
}

type retiredKeyJSON struct {
	Key   json.RawMessage `json:"key"`
	Until time.Time       `json:"until"`
}

// Marshal writes the ring as Secret data.
func (r *Ring) Marshal() (map[string][]byte, error) {
	if len(r.retired) > maxRingEntries {
		return nil, fmt.Errorf("ring holds %d retired keys, at most %d are allowed: the rotation interval is too short for the token life", len(r.retired), maxRingEntries)
	}
	data := map[string][]byte{}
	state := ringState{Version: ringVersion, Active: r.active.state()}
	var err error
	if data[RingActiveKey], err = r.active.key.MarshalPEM(); err != nil {
		return nil, err
	}
	if r.next != nil {
		next := r.next.state()
		state.Next = &next
		if data[RingNextKey], err = r.next.key.MarshalPEM(); err != nil {
			return nil, err
		}
	}
	for _, k := range r.retired {
		public, err := toJWK(k.key.KID, k.key.Key)
		if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(public)
		if err != nil {
			return nil, fmt.Errorf("marshal ring: %w", err)
		}
		state.Retired = append(state.Retired, retiredKeyJSON{Key: raw, Until: k.until})
	}
	if data[RingStateKey], err = json.MarshalIndent(state, "", "  "); err != nil {
		return nil, fmt.Errorf("marshal ring: %w", err)
	}
	return data, nil
}

func (k *ringKey) state() ringKeyState {
	s := ringKeyState{KID: k.key.KID, Since: k.since}
	if !k.retainUntil.IsZero() {
		until := k.retainUntil
		s.RetainUntil = &until
	}
	return s
}

// ParseRing reads what Marshal wrote. Anything missing, unknown or inconsistent is an
// error that names the Secret's entry: a ring that is guessed at could sign with a key
// that no proxy knows.
func ParseRing(data map[string][]byte) (*Ring, error) {
	for name := range data {
		if name != RingActiveKey && name != RingNextKey && name != RingStateKey {
			return nil, fmt.Errorf("ring: unexpected entry %q", clip(name))
		}
	}
	state, err := parseRingState(data[RingStateKey])
	if err != nil {
		return nil, fmt.Errorf("ring: %s: %w", RingStateKey, err)
	}
	r := new(Ring)
	if r.active, err = parseRingKey(data[RingActiveKey], state.Active); err != nil {
		return nil, fmt.Errorf("ring: %s: %w", RingActiveKey, err)
	}
	_, hasNext := data[RingNextKey]
	if hasNext != (state.Next != nil) {
		return nil, fmt.Errorf("ring: %s and %s disagree on whether there is a next key", RingNextKey, RingStateKey)
	}
	if hasNext {
		next, err := parseRingKey(data[RingNextKey], *state.Next)
		if err != nil {
			return nil, fmt.Errorf("ring: %s: %w", RingNextKey, err)
		}
		r.next = &next
	}
	for i, k := range state.Retired {
		key, err := parseJWK(k.Key)
		if err != nil {
			return nil, fmt.Errorf("ring: %s: retired[%d]: %w", RingStateKey, i, err)
		}
		if k.Until.IsZero() {
			return nil, fmt.Errorf("ring: %s: retired[%d]: until is missing", RingStateKey, i)
		}
		r.retired = append(r.retired, retiredKey{key: key, until: k.Until.UTC()})
	}
	if got, want := r.KeySet().Len(), len(r.retired)+1+boolInt(hasNext); got != want {
		return nil, errors.New("ring: the same key appears twice")
	}
	return r, nil
}

func parseRingState(data []byte) (*ringState, error) {
	if len(data) == 0 {
		return nil, errors.New("is missing")
	}
	if len(data) > maxJWKSBytes {
		return nil, fmt.Errorf("is larger than %d bytes", maxJWKSBytes)
	}
	members, err := strictObject(data)
	if err != nil {
		return nil, err
	}
	if _, ok := members["version"]; !ok {
		return nil, errors.New("version is missing")
	}
	state := new(ringState)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(state); err != nil {
		return nil, err
	}
	if state.Version != ringVersion {
		return nil, fmt.Errorf("version is %d, this program reads version %d", state.Version, ringVersion)
	}
	if len(state.Retired) > maxRingEntries {
		return nil, fmt.Errorf("holds %d retired keys, at most %d are allowed", len(state.Retired), maxRingEntries)
	}
	return state, nil
}

func parseRingKey(pemData []byte, state ringKeyState) (ringKey, error) {
	if len(pemData) == 0 {
		return ringKey{}, errors.New("is missing")
	}
	key, err := ParsePrivateKeyPEM(pemData)
	if err != nil {
		return ringKey{}, err
	}
	if key.KID != state.KID {
		return ringKey{}, fmt.Errorf("holds key %q, %s says %q", key.KID, RingStateKey, clip(state.KID))
	}
	if state.Since.IsZero() {
		return ringKey{}, fmt.Errorf("%s has no time for it", RingStateKey)
	}
	out := ringKey{key: key, since: state.Since.UTC()}
	if state.RetainUntil != nil {
		out.retainUntil = state.RetainUntil.UTC()
	}
	return out, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
