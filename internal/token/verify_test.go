package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// signed makes a correctly signed token from a literal header and payload.
func signed(tb testing.TB, key *SigningKey, header, payload string) string {
	tb.Helper()
	text := b64(header) + "." + b64(payload)
	sig, err := jwt.SigningMethodES256.Sign(text, key.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func hmacSigned(header, payload string, secret []byte) string {
	text := b64(header) + "." + b64(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestMintedTokenCarriesEveryClaim(t *testing.T) {
	key := testKey(t, 1)
	raw := mustMint(t, key, MintOptions{
		Now: epoch, TTL: 4 * time.Hour, ID: "id-1", ContainerID: "sandbox_session_abc123", Organization: "user_123",
		AllowedHosts: []string{"api.example.com", "github.com:443"}, EgressPolicy: "team-a/agents",
		HIPAARegulated: true, ContainerBinding: true,
	})
	parts := strings.Split(raw, ".")
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
	if want := `{"alg":"ES256","kid":"` + key.KID + `","typ":"JWT"}`; string(header) != want {
		t.Errorf("header = %s, want %s", header, want)
	}
	want := `{"iss":"secure-egress-control","aud":"egress-proxy","exp":1772380800,"nbf":1772366400,"iat":1772366400,"jti":"id-1",` +
		`"container_id":"sandbox_session_abc123","organization_uuid":"user_123","allowed_hosts":"api.example.com,github.com:443",` +
		`"egress_policy":"team-a/agents","is_hipaa_regulated":"true","use_egress_gateway":"false",` +
		`"enforce_container_binding":"true","enforce_centralized_egress":"false"}`
	if string(payload) != want {
		t.Errorf("payload =\n%s\nwant\n%s", payload, want)
	}
	c, err := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now)).Verify(raw)
	if err != nil {
		t.Fatal(err)
	}
	if c.KID() != key.KID {
		t.Errorf("KID = %q", c.KID())
	}
	if again, err := json.Marshal(c); err != nil || string(again) != want {
		t.Errorf("claims after Verify = %s (%v)", again, err)
	}
	if got := strings.Join(c.AllowedHostList(), "|"); got != "api.example.com|github.com:443" {
		t.Errorf("AllowedHostList = %s", got)
	}
}

func TestVerifyRefuses(t *testing.T) {
	key, other := testKey(t, 1), testKey(t, 2)
	good := mintFor(t, key, "c1")
	header := `{"alg":"ES256","kid":"` + key.KID + `","typ":"JWT"}`
	payload := `{"iss":"secure-egress-control","aud":"egress-proxy","exp":1772380800,"container_id":"c1"}`
	with := func(old, replacement string) string {
		changed := strings.Replace(payload, old, replacement, 1)
		if changed == payload {
			t.Fatalf("%s is not in the payload", old)
		}
		return changed
	}
	der, err := x509.MarshalPKIXPublicKey(&key.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	parts := strings.Split(good, ".")
	hs256 := strings.Replace(header, "ES256", "HS256", 1)
	none := strings.Replace(header, "ES256", "none", 1)

	for name, tc := range map[string]struct {
		raw  string
		want error
		text string
	}{
		"empty":                             {"", ErrMalformed, "empty"},
		"one part":                          {"abc", ErrMalformed, "three parts"},
		"four parts":                        {good + ".x", ErrMalformed, "three parts"},
		"empty parts":                       {"..", ErrMalformed, "ends too early"},
		"dots by the megabyte":              {strings.Repeat(".", 1<<20), ErrTooLarge, "1048576 bytes"},
		"longer than a token may be":        {good + strings.Repeat("A", MaxTokenBytes), ErrTooLarge, "2048"},
		"line break inside":                 {good[:10] + "\n" + good[10:], ErrMalformed, "base64url"},
		"padding":                           {good + "=", ErrMalformed, "base64url"},
		"standard alphabet":                 {"+" + good[1:], ErrMalformed, "base64url"},
		"leading space":                     {" " + good, ErrMalformed, "base64url"},
		"signature removed":                 {parts[0] + "." + parts[1] + ".", ErrSignature, ""},
		"signature truncated":               {good[:len(good)-2], ErrSignature, ""},
		"signature all zero":                {parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), ErrSignature, ""},
		"signature byte changed":            {flip(good, len(good)-10), ErrSignature, ""},
		"signature's unused bits set":       {good[:len(good)-1] + next(good[len(good)-1]), ErrMalformed, ""},
		"payload of another token":          {parts[0] + "." + strings.Split(mintFor(t, key, "c2"), ".")[1] + "." + parts[2], ErrSignature, ""},
		"signed by another key, our kid":    {signed(t, other, header, payload), ErrSignature, ""},
		"signed by an unknown key":          {mintFor(t, other, "c1"), ErrUnknownKey, other.KID},
		"alg none":                          {b64(none) + "." + b64(payload) + ".", ErrAlgorithm, `"none"`},
		"alg none in capitals":              {b64(strings.Replace(header, "ES256", "NONE", 1)) + "." + b64(payload) + ".", ErrAlgorithm, ""},
		"alg none with the old signature":   {b64(none) + "." + parts[1] + "." + parts[2], ErrAlgorithm, ""},
		"HS256 keyed by the public PEM":     {hmacSigned(hs256, payload, publicPEM), ErrAlgorithm, `"HS256"`},
		"HS256 keyed by the public DER":     {hmacSigned(hs256, payload, der), ErrAlgorithm, ""},
		"ES384":                             {signed(t, key, strings.Replace(header, "ES256", "ES384", 1), payload), ErrAlgorithm, ""},
		"alg in lower case":                 {signed(t, key, strings.Replace(header, "ES256", "es256", 1), payload), ErrAlgorithm, ""},
		"alg is a list":                     {signed(t, key, strings.Replace(header, `"ES256"`, `["ES256"]`, 1), payload), ErrMalformed, "alg must be a string"},
		"alg missing":                       {signed(t, key, `{"kid":"`+key.KID+`"}`, payload), ErrAlgorithm, ""},
		"alg twice":                         {signed(t, key, strings.Replace(header, `{`, `{"alg":"none",`, 1), payload), ErrMalformed, "twice"},
		"alg by case twice":                 {signed(t, key, strings.Replace(header, `{`, `{"ALG":"none",`, 1), payload), ErrMalformed, `"ALG" is not supported`},
		"kid missing":                       {signed(t, key, `{"alg":"ES256"}`, payload), ErrMalformed, "kid is missing"},
		"kid empty":                         {signed(t, key, `{"alg":"ES256","kid":""}`, payload), ErrMalformed, "kid is missing"},
		"kid is a number":                   {signed(t, key, `{"alg":"ES256","kid":1}`, payload), ErrMalformed, "kid must be a string"},
		"kid null":                          {signed(t, key, `{"alg":"ES256","kid":null}`, payload), ErrMalformed, "kid must be a string"},
		"typ of another kind":               {signed(t, key, strings.Replace(header, `"JWT"`, `"at+jwt"`, 1), payload), ErrMalformed, "typ"},
		"typ empty":                         {signed(t, key, strings.Replace(header, `"JWT"`, `""`, 1), payload), ErrMalformed, "typ"},
		"crit":                              {signed(t, key, strings.Replace(header, `{`, `{"crit":["exp"],`, 1), payload), ErrMalformed, `"crit"`},
		"its own key in jwk":                {signed(t, other, strings.Replace(header, `{`, `{"jwk":{"kty":"EC"},`, 1), payload), ErrMalformed, `"jwk"`},
		"header with trailing data":         {signed(t, key, header+`{}`, payload), ErrMalformed, "after the JSON object"},
		"header is a list":                  {signed(t, key, `["ES256"]`, payload), ErrMalformed, "not a JSON object"},
		"payload with trailing data":        {signed(t, key, header, payload+`{}`), ErrMalformed, ""},
		"payload is null":                   {signed(t, key, header, `null`), ErrIssuer, ""},
		"payload not UTF-8":                 {signed(t, key, header, with("c1", "c\xff")), ErrMalformed, ""},
		"exp missing":                       {signed(t, key, header, with(`"exp":1772380800,`, "")), ErrClaims, "exp is missing"},
		"exp null":                          {signed(t, key, header, with("1772380800", "null")), ErrClaims, "exp must be a number"},
		"exp a string":                      {signed(t, key, header, with("1772380800", `"1772380800"`)), ErrClaims, "exp must be a number"},
		"exp negative":                      {signed(t, key, header, with("1772380800", "-1")), ErrClaims, "exp must be a number"},
		"exp beyond int64":                  {signed(t, key, header, with("1772380800", "1e300")), ErrClaims, "exp must be a number"},
		"exp twice":                         {signed(t, key, header, with(`{`, `{"exp":1,`)), ErrMalformed, `"exp" twice`},
		"exp twice, once escaped":           {signed(t, key, header, with(`{`, `{"\u0065xp":1,`)), ErrMalformed, `"exp" twice`},
		"container_id twice":                {signed(t, key, header, with(`{`, `{"container_id":"c2",`)), ErrMalformed, "twice"},
		"Container_ID beside container_id":  {signed(t, key, header, with(`{`, `{"Container_ID":"c2",`)), ErrClaims, `must be written "container_id"`},
		"duplicate names further down":      {signed(t, key, header, with(`{`, `{"x":[{"a":1,"a":2}],`)), ErrMalformed, `"a" twice`},
		"nested too deeply":                 {signed(t, key, header, with(`{`, `{"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`)), ErrMalformed, "too deeply"},
		"iss missing":                       {signed(t, key, header, with(`"iss":"secure-egress-control",`, "")), ErrIssuer, ""},
		"iss of someone else":               {signed(t, key, header, with("secure-egress-control", "evil")), ErrIssuer, `"evil"`},
		"aud missing":                       {signed(t, key, header, with(`"aud":"egress-proxy",`, "")), ErrAudience, ""},
		"aud of someone else":               {signed(t, key, header, with(`"egress-proxy"`, `["a","b"]`)), ErrAudience, ""},
		"aud a number":                      {signed(t, key, header, with(`"egress-proxy"`, `1`)), ErrClaims, "aud must be"},
		"aud with a null":                   {signed(t, key, header, with(`"egress-proxy"`, `["egress-proxy",null]`)), ErrClaims, "aud must be"},
		"container_id missing":              {signed(t, key, header, with(`,"container_id":"c1"`, "")), ErrClaims, "container_id is missing"},
		"container_id with a colon":         {signed(t, key, header, with("c1", "c1:x")), ErrClaims, "container_id"},
		"container_id a number":             {signed(t, key, header, with(`"c1"`, "1")), ErrClaims, "container_id must be a string"},
		"container_id too long":             {signed(t, key, header, with("c1", strings.Repeat("c", 129))), ErrClaims, "longer than 128"},
		"organization with a control code":  {signed(t, key, header, with(`{`, `{"organization_uuid":"a\u000ab",`)), ErrClaims, "organization_uuid"},
		"policy that is no namespaced name": {signed(t, key, header, with(`{`, `{"egress_policy":"agents",`)), ErrClaims, "namespace/name"},
		"policy with a path":                {signed(t, key, header, with(`{`, `{"egress_policy":"../a/b",`)), ErrClaims, "namespace/name"},
		"a JSON true":                       {signed(t, key, header, with(`{`, `{"enforce_container_binding":true,`)), ErrClaims, `string "true" or "false"`},
		"a null flag":                       {signed(t, key, header, with(`{`, `{"enforce_container_binding":null,`)), ErrClaims, `string "true" or "false"`},
		"a flag that says no":               {signed(t, key, header, with(`{`, `{"is_hipaa_regulated":"no",`)), ErrClaims, "is_hipaa_regulated"},
		"expired":                           {signed(t, key, header, with("1772380800", "1772366370")), ErrExpired, "2026-03-01T11:59:30Z"},
		"not valid yet":                     {signed(t, key, header, with(`{`, `{"nbf":1772366431,`)), ErrNotYetValid, "2026-03-01T12:00:31Z"},
		"issued in the future":              {signed(t, key, header, with(`{`, `{"iat":1772366431,`)), ErrNotYetValid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now))
			for range 2 { // the second time, where cached, from the cache
				got, err := v.Verify(tc.raw)
				if got != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("Verify = %v, %v; want %v with %q", got, err, tc.want, tc.text)
				}
				if Reason(err) == "" || Reason(err) == "token_invalid" {
					t.Fatalf("Reason = %q", Reason(err))
				}
				for _, e := range []error{ErrTooLarge, ErrMalformed, ErrAlgorithm, ErrUnknownKey, ErrSignature, ErrExpired, ErrNotYetValid, ErrAudience, ErrIssuer, ErrClaims} {
					if !errors.Is(e, tc.want) && errors.Is(err, e) {
						t.Fatalf("%v is %v as well", err, e)
					}
				}
			}
		})
	}
}

// next is the following base64url character: the same six bits but for the last one.
func next(b byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[(strings.IndexByte(alphabet, b)+1)%64])
}

// Every single changed character of a token is noticed, whichever part it is in.
func TestVerifyRefusesEveryChangedByte(t *testing.T) {
	key := testKey(t, 1)
	raw := mintFor(t, key, "c1")
	v := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now))
	for i := range len(raw) {
		if raw[i] == '.' {
			continue
		}
		if _, err := v.Verify(flip(raw, i)); err == nil {
			t.Fatalf("byte %d changed, token accepted", i)
		}
	}
	if _, err := v.Verify(raw); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyAccepts(t *testing.T) {
	key := testKey(t, 1)
	header := `{"alg":"ES256","kid":"` + key.KID + `"}`
	payload := `{"iss":"secure-egress-control","aud":"egress-proxy","exp":1772380800,"container_id":"c1"}`
	for name, raw := range map[string]string{
		"no typ":                signed(t, key, header, payload),
		"typ in lower case":     signed(t, key, `{"typ":"jwt",`+header[1:], payload),
		"aud as a list":         signed(t, key, header, strings.Replace(payload, `"egress-proxy"`, `["x","egress-proxy"]`, 1)),
		"a fractional exp":      signed(t, key, header, strings.Replace(payload, "1772380800", "1772380800.75", 1)),
		"a claim we do not use": signed(t, key, header, strings.Replace(payload, "{", `{"roles":["a"],`, 1)),
		"nbf within the leeway": signed(t, key, header, strings.Replace(payload, "{", `{"nbf":1772366430,`, 1)),
		"exp within the leeway": signed(t, key, header, strings.Replace(payload, "1772380800", "1772366371", 1)),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now)).Verify(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !c.EnforceContainerBinding {
				t.Error("a token that does not say whether it is bound must be bound")
			}
			if c.IsHIPAARegulated || c.UseEgressGateway || c.EnforceCentralizedEgress {
				t.Error("flags appeared from nowhere")
			}
		})
	}
}

func TestVerifierWithoutKeysRefusesEverything(t *testing.T) {
	v := NewVerifier(nil, WithClock((&clock{epoch}).now))
	if _, err := v.Verify(mintFor(t, testKey(t, 1), "c1")); !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("err = %v", err)
	}
}

func TestMintRefuses(t *testing.T) {
	key := testKey(t, 1)
	base := MintOptions{Now: epoch, TTL: time.Hour, ContainerID: "c1"}
	for name, tc := range map[string]struct {
		change func(*MintOptions, *Claims)
		want   error
		text   string
	}{
		"no ttl":                 {func(o *MintOptions, _ *Claims) { o.TTL = 0 }, ErrClaims, "ttl"},
		"negative ttl":           {func(o *MintOptions, _ *Claims) { o.TTL = -time.Hour }, ErrClaims, "ttl"},
		"no container":           {func(o *MintOptions, _ *Claims) { o.ContainerID = "" }, ErrClaims, "container_id is missing"},
		"container with a slash": {func(o *MintOptions, _ *Claims) { o.ContainerID = "a/b" }, ErrClaims, "container_id"},
		"host with a comma":      {func(o *MintOptions, _ *Claims) { o.AllowedHosts = []string{"a,b"} }, ErrClaims, "allowed host 0"},
		"empty host":             {func(o *MintOptions, _ *Claims) { o.AllowedHosts = []string{"a", ""} }, ErrClaims, "allowed host 1"},
		"never valid":            {func(o *MintOptions, _ *Claims) { o.NotBefore = epoch.Add(time.Hour) }, ErrClaims, "exp is not after nbf"},
		"policy without a name":  {func(o *MintOptions, _ *Claims) { o.EgressPolicy = "ns/" }, ErrClaims, "egress_policy"},
		"no exp":                 {func(_ *MintOptions, c *Claims) { c.ExpiresAt = nil }, ErrClaims, "exp is missing"},
		"another issuer":         {func(_ *MintOptions, c *Claims) { c.Issuer = "x" }, ErrIssuer, "iss"},
		"another audience":       {func(_ *MintOptions, c *Claims) { c.Audience = jwt.ClaimStrings{"x"} }, ErrAudience, "aud"},
		"exp before iat":         {func(_ *MintOptions, c *Claims) { c.NotBefore = nil; c.IssuedAt = c.ExpiresAt }, ErrClaims, "exp is not after iat"},
		"too many hosts without a policy": {func(o *MintOptions, _ *Claims) {
			o.AllowedHosts = []string{strings.Repeat("a", 1700)}
		}, ErrTooLarge, "allowed_hosts takes 1700"},
	} {
		t.Run(name, func(t *testing.T) {
			o := base
			tc.change(&o, &Claims{})
			c, err := NewClaims(o)
			if err == nil {
				tc.change(&MintOptions{}, &c)
				_, err = key.Mint(c)
			}
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("err = %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	if _, err := (*SigningKey)(nil).Mint(Claims{}); err == nil {
		t.Error("minted without a key")
	}
}

func TestMintFillsInIssuerAudienceAndARandomID(t *testing.T) {
	key := testKey(t, 1)
	c1, err := NewClaims(MintOptions{Now: epoch, TTL: time.Hour, ContainerID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	c2, err := NewClaims(MintOptions{Now: epoch, TTL: time.Hour, ContainerID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(c1.ID) < 20 || c1.ID == c2.ID {
		t.Errorf("jti %q and %q", c1.ID, c2.ID)
	}
	c1.Issuer, c1.Audience = "", nil
	raw, err := key.Mint(c1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewVerifier(testKeySet(t, key), WithClock((&clock{epoch}).now)).Verify(raw); err != nil {
		t.Fatal(err)
	}
}

func TestALongHostListIsLeftOutOnlyWhenAPolicyDecides(t *testing.T) {
	hosts := []string{strings.Repeat("a", MaxAllowedHostsBytes-2), "bb"}
	o := MintOptions{Now: epoch, TTL: time.Hour, ContainerID: "c1", AllowedHosts: hosts}
	without, err := NewClaims(o)
	if err != nil {
		t.Fatal(err)
	}
	o.EgressPolicy = "ns/p"
	with, err := NewClaims(o)
	if err != nil {
		t.Fatal(err)
	}
	if without.AllowedHosts != strings.Join(hosts, ",") {
		t.Error("the list is gone although nothing else decides")
	}
	if with.AllowedHosts != "" {
		t.Error("the list is still there above the limit")
	}
	o.AllowedHosts[1] = "b"
	if with, err = NewClaims(o); err != nil || len(with.AllowedHosts) != MaxAllowedHostsBytes {
		t.Errorf("a list of exactly the limit: %d bytes, %v", len(with.AllowedHosts), err)
	}
}

func TestAllowedHostListSkipsBlanks(t *testing.T) {
	for in, want := range map[string]string{"": "", ",": "", " a , b:1 ,": "a|b:1"} {
		if got := strings.Join((&Claims{AllowedHosts: in}).AllowedHostList(), "|"); got != want {
			t.Errorf("AllowedHostList(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestReasonWords(t *testing.T) {
	for err, want := range map[error]string{
		nil: "", ErrTooLarge: "token_too_large", ErrMalformed: "token_malformed", ErrAlgorithm: "token_algorithm",
		ErrUnknownKey: "token_unknown_key", ErrSignature: "token_signature", ErrExpired: "token_expired",
		ErrNotYetValid: "token_not_yet_valid", ErrAudience: "token_audience", ErrIssuer: "token_issuer",
		ErrClaims: "token_claims", errors.New("x"): "token_invalid",
	} {
		if got := Reason(err); got != want {
			t.Errorf("Reason(%v) = %q, want %q", err, got, want)
		}
	}
}
