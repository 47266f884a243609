package token

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

func FuzzVerify(f *testing.F) {
	key := testKey(f, 1)
	good := mintFor(f, key, "c1")
	for _, seed := range []string{
		good, "", ".", "..", "...", flip(good, 5), flip(good, len(good)/2), flip(good, len(good)-2), good + ".",
		b64(`{"alg":"none"}`) + "." + b64(`{}`) + ".", b64(`{"alg":"ES256","kid":"x"}`) + ".e30.AA",
		signed(f, key, `{"alg":"ES256","kid":"`+key.KID+`"}`, `{"exp":1e999}`),
	} {
		f.Add(seed)
	}
	set := testKeySet(f, key)
	f.Fuzz(func(t *testing.T, raw string) {
		v := NewVerifier(set, WithClock((&clock{epoch}).now))
		c, err := v.Verify(raw)
		again, err2 := v.Verify(raw)
		if (err == nil) != (err2 == nil) || c != again && err == nil {
			t.Fatalf("the cache changed the answer: %v, then %v", err, err2)
		}
		if err != nil {
			if Reason(err) == "token_invalid" || c != nil {
				t.Fatalf("claims %v with unclassified error %v", c, err)
			}
			return
		}
		// Nobody but the key's owner makes a token: the fuzzer can only find the seed, or the
		// seed with the other of the two valid ECDSA signatures.
		if i := strings.LastIndexByte(good, '.'); len(raw) <= i || raw[:i] != good[:i] {
			t.Fatalf("a forged token was accepted: %q", raw)
		}
	})
}

func FuzzClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"exp":1}`, `{"exp":1.5,"aud":["a"],"enforce_container_binding":"false"}`,
		`{"iss":"a","iss":"b"}`, `{"ISS":"a"}`, `{"aud":[null]}`, `{"exp":1e309}`, `{"x":[[[[[[[[[[[]]]]]]]]]]]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Claims
		if json.Unmarshal(data, &c) != nil {
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back Claims
		if err := json.Unmarshal(out, &back); err != nil {
			t.Fatalf("%s does not read back: %v", out, err)
		}
		if again, err := json.Marshal(back); err != nil || !bytes.Equal(out, again) {
			t.Fatalf("%s became %s", out, again)
		}
	})
}

func FuzzStringBool(f *testing.F) {
	for _, seed := range []string{`"true"`, `"false"`, `true`, `null`, `"True"`, `""`, `1`, `"\u0074rue"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var b StringBool
		err := b.UnmarshalJSON(data)
		if ok := string(data) == `"true"` || string(data) == `"false"`; ok != (err == nil) {
			t.Fatalf("%s: %v", data, err)
		}
		if err != nil {
			return
		}
		if out, err := b.MarshalJSON(); err != nil || !bytes.Equal(out, data) {
			t.Fatalf("%s became %s", data, out)
		}
	})
}

func FuzzParseJWKS(f *testing.F) {
	good, err := testKeySet(f, testKey(f, 1), testKey(f, 2)).MarshalJWKS()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), `{"keys":[]}`, `{"keys":[{}]}`, `{"keys":[null]}`, `{"keys":[{"kid":"a","kty":"EC","d":"x"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := ParseJWKS(data)
		if err != nil {
			return
		}
		out, err := set.MarshalJWKS()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseJWKS(out)
		if err != nil {
			t.Fatalf("own output refused: %v", err)
		}
		if !maps.EqualFunc(set.keys, back.keys, func(a, b *ecdsa.PublicKey) bool { return a.Equal(b) }) {
			t.Fatal("the keys changed")
		}
	})
}

func FuzzParsePrivateKeyPEM(f *testing.F) {
	good, err := testKey(f, 1).MarshalPEM()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{good, nil, []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), append(bytes.Clone(good), good...)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParsePrivateKeyPEM(data)
		if err != nil {
			return
		}
		out, err := key.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParsePrivateKeyPEM(out)
		if err != nil || back.KID != key.KID {
			t.Fatalf("own output: %v", err)
		}
	})
}

func FuzzParseRing(f *testing.F) {
	r, err := NewRing(epoch, nil)
	if err != nil {
		f.Fatal(err)
	}
	r.retired = []retiredKey{{key: testKey(f, 2).Public(), until: epoch}}
	good, err := r.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[RingActiveKey], good[RingNextKey], good[RingStateKey], false)
	f.Add(good[RingActiveKey], good[RingActiveKey], good[RingStateKey], true)
	f.Add([]byte(nil), []byte(nil), []byte(`{"version":1}`), false)
	f.Fuzz(func(t *testing.T, active, next, state []byte, withNext bool) {
		data := map[string][]byte{RingActiveKey: active, RingStateKey: state}
		if withNext {
			data[RingNextKey] = next
		}
		r, err := ParseRing(data)
		if err != nil {
			return
		}
		out, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRing(out); err != nil {
			t.Fatalf("own output refused: %v", err)
		}
	})
}
