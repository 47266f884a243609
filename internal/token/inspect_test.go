package token

import (
	"errors"
	"strings"
	"testing"
)

func TestInspectShowsWhatVerifyWouldRefuse(t *testing.T) {
	key := testKey(t, 1)
	good := mintFor(t, key, "c1")
	for name, tc := range map[string]struct {
		raw      string
		problems []error
		err      error
	}{
		"good":             {raw: good},
		"alg none":         {raw: b64(`{"alg":"none"}`) + "." + strings.Split(good, ".")[1] + ".", problems: []error{ErrAlgorithm, ErrSignature}},
		"claims missing":   {raw: signed(t, key, `{"alg":"ES256","kid":"k"}`, `{}`), problems: []error{ErrIssuer}},
		"claims malformed": {raw: signed(t, key, `{"alg":"ES256","kid":"k"}`, `{"exp":"x"}`), problems: []error{ErrClaims}},
		"payload a number": {raw: signed(t, key, `{"alg":"ES256","kid":"k"}`, `1`), problems: []error{ErrMalformed}},
		"two parts":        {raw: "a.b", err: ErrMalformed},
		"not base64url":    {raw: "a!.b.c", err: ErrMalformed},
		"half a byte":      {raw: "a.b.c", err: ErrMalformed},
		"not JSON":         {raw: b64("x") + "." + b64("{}") + ".", err: ErrMalformed},
		"too large":        {raw: strings.Repeat("a", 1<<20), err: ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Inspect(tc.raw)
			if !errors.Is(err, tc.err) {
				t.Fatalf("err = %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			if len(got.Problems) != len(tc.problems) {
				t.Fatalf("problems %v, want %v", got.Problems, tc.problems)
			}
			for i, want := range tc.problems {
				if !errors.Is(got.Problems[i], want) {
					t.Errorf("problem %v, want %v", got.Problems[i], want)
				}
			}
		})
	}
}

func TestFromProxyURL(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", "jwt_abc": "abc", " abc\n": "abc",
		ProxyURL("c1", "a.b.c", "10.0.0.1:8443"): "a.b.c",
		"http://10.0.0.1:8443":                   "!", "http://u:p@h:1": "!", "http://user@h": "!",
	} {
		got, err := FromProxyURL(in)
		if (err != nil) != (want == "!") || err == nil && got != want {
			t.Errorf("FromProxyURL(%q) = %q, %v", in, got, err)
		}
	}
}

func FuzzInspect(f *testing.F) {
	key := testKey(f, 1)
	for _, seed := range []string{mintFor(f, key, "c1"), "", "..", "e30.e30.", "bnVsbA.bnVsbA.AA", "e30.W10.AA"} {
		f.Add(seed)
	}
	set := testKeySet(f, key)
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := Inspect(raw)
		c, verr := NewVerifier(set, WithClock((&clock{epoch}).now)).Verify(raw)
		if verr != nil {
			return
		}
		if err != nil || len(got.Problems) > 0 || got.Claims.ContainerID != c.ContainerID {
			t.Fatalf("a good token is shown as bad: %v, %v", err, got)
		}
	})
}
