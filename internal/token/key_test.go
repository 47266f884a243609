package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
)

func TestThumbprintMatchesAnIndependentComputation(t *testing.T) {
	// The EC key of RFC 7517 appendix A.1; the thumbprint was computed with sha256sum over
	// {"crv":"P-256","kty":"EC","x":"...","y":"..."}.
	set, err := ParseJWKS([]byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"1","use":"sig",
		"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Thumbprint(set.Lookup("1"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"; got != want {
		t.Errorf("thumbprint = %s, want %s", got, want)
	}
}

func TestPrivateKeyPEMRoundTrip(t *testing.T) {
	key, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err := key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParsePrivateKeyPEM(data)
	if err != nil {
		t.Fatal(err)
	}
	if !back.Key.Equal(key.Key) || back.KID != key.KID {
		t.Error("another key came back")
	}
}

func TestParsePrivateKeyPEM(t *testing.T) {
	key := testKey(t, 1)
	pkcs8, err := key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	sec1DER, err := x509.MarshalECPrivateKey(key.Key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384PKCS8, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	p384SEC1, err := x509.MarshalECPrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := x509.MarshalPKCS8PrivateKey(edKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sec1 := block("EC PRIVATE KEY", sec1DER)
	for name, tc := range map[string]struct {
		in   []byte
		want string // "" = accepted
	}{
		"PKCS #8":                {pkcs8, ""},
		"SEC 1":                  {sec1, ""},
		"as openssl writes it":   {append(block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), sec1...), ""},
		"blank lines after":      {append(bytes.Clone(pkcs8), "\n \n"...), ""},
		"empty":                  {nil, "no PEM private key"},
		"no PEM":                 {[]byte("hello"), "no PEM private key"},
		"two keys":               {append(bytes.Clone(pkcs8), sec1...), "more than one"},
		"text after":             {append(bytes.Clone(pkcs8), "x"...), "something else after"},
		"public key":             {block("PUBLIC KEY", public), `"PUBLIC KEY"`},
		"encrypted PKCS #8":      {block("ENCRYPTED PRIVATE KEY", sec1DER), "encrypted"},
		"encrypted SEC 1":        {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: sec1DER}), "encrypted"},
		"P-384 in PKCS #8":       {block("PRIVATE KEY", p384PKCS8), "P-384"},
		"P-384 in SEC 1":         {block("EC PRIVATE KEY", p384SEC1), "P-384"},
		"Ed25519":                {block("PRIVATE KEY", ed), "ed25519"},
		"PKCS #8 under SEC 1":    {block("EC PRIVATE KEY", p384PKCS8), "parse EC PRIVATE KEY"},
		"garbage DER":            {block("PRIVATE KEY", []byte("x")), "parse PRIVATE KEY"},
		"larger than any key is": {bytes.Repeat([]byte("x"), 1<<20), "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParsePrivateKeyPEM(tc.in)
			switch {
			case tc.want == "" && (err != nil || got.KID != key.KID):
				t.Errorf("%v, %v", got, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("err = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNewSigningKeyRefusesOtherCurves(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]*ecdsa.PrivateKey{"P-384": p384, "nil": nil} {
		if _, err := NewSigningKey(key); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}

func TestJWKSRoundTrip(t *testing.T) {
	a, b := testKey(t, 1), testKey(t, 2)
	data, err := testKeySet(t, b, a).MarshalJWKS()
	if err != nil {
		t.Fatal(err)
	}
	same, err := testKeySet(t, a, b).MarshalJWKS()
	if err != nil || !bytes.Equal(data, same) {
		t.Error("the text depends on the order of the keys")
	}
	set, err := ParseJWKS(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*SigningKey{a, b} {
		if !k.Key.PublicKey.Equal(set.Lookup(k.KID)) {
			t.Errorf("kid %s is another key", k.KID)
		}
	}
	if set.Len() != 2 || len(set.KIDs()) != 2 {
		t.Errorf("%d keys", set.Len())
	}
}

// About one key in 128 has a coordinate that begins with a zero byte; RFC 7518 section
// 6.2.1.2 wants it written all the same.
func TestJWKSWritesLeadingZeroBytes(t *testing.T) {
	for i := int64(1); i < 4096; i++ {
		d := make([]byte, coordinateBytes)
		big.NewInt(i).FillBytes(d)
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
		if err != nil {
			t.Fatal(err)
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if point[1] != 0 && point[33] != 0 {
			continue
		}
		x, y, err := coordinates(&key.PublicKey)
		if err != nil || len(x) != 43 || len(y) != 43 {
			t.Fatalf("d=%d: x %q y %q %v", i, x, y, err)
		}
		return
	}
	t.Fatal("no such key found")
}

func TestParseJWKSRefuses(t *testing.T) {
	const x, y = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
	good := `{"kty":"EC","crv":"P-256","kid":"k1","use":"sig","alg":"ES256","x":"` + x + `","y":"` + y + `"}`
	with := func(old, replacement string) string {
		changed := strings.Replace(good, old, replacement, 1)
		if changed == good {
			t.Fatalf("%s is not in the key", old)
		}
		return `{"keys":[` + changed + `]}`
	}
	short := base64.RawURLEncoding.EncodeToString(make([]byte, 31))
	zeros := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for name, tc := range map[string]struct{ in, want string }{
		"good":                      {`{"keys":[` + good + `]}`, ""},
		"use and alg left out":      {with(`"use":"sig","alg":"ES256",`, ""), ""},
		"key_ops verify":            {with(`{`, `{"key_ops":["verify"],`), ""},
		"members of a certificate":  {with(`{`, `{"x5t":"abc","exp":1,`), ""},
		"other members of the set":  {`{"note":"x","keys":[` + good + `]}`, ""},
		"empty":                     {``, "not JSON"},
		"null":                      {`null`, "not a JSON object"},
		"a list":                    {`[]`, "not a JSON object"},
		"no keys":                   {`{}`, `member "keys"`},
		"Keys in capitals":          {`{"KEYS":[` + good + `]}`, `member "keys"`},
		"keys is an object":         {`{"keys":{}}`, `member "keys"`},
		"keys null":                 {`{"keys":null}`, `member "keys"`},
		"keys empty":                {`{"keys":[]}`, "empty"},
		"keys twice":                {`{"keys":[],"keys":[` + good + `]}`, "twice"},
		"trailing data":             {`{"keys":[` + good + `]}x`, "after the JSON object"},
		"a key that is a string":    {`{"keys":["k"]}`, "keys[0]: the key is not a JSON object"},
		"second key bad":            {`{"keys":[` + good + `,{"kty":"RSA","kid":"rsa-1"}]}`, `keys[1]: kid "rsa-1": kty is "RSA"`},
		"kid missing":               {with(`"kid":"k1",`, ""), "kid is missing"},
		"kid a number":              {with(`"k1"`, "1"), "kid must be a string"},
		"kid with control code":     {with(`k1`, `k\u0000`), "printable"},
		"kid twice in the set":      {`{"keys":[` + good + `,` + good + `]}`, `"k1" is used twice`},
		"x twice in the key":        {with(`{`, `{"x":"`+zeros+`",`), "twice"},
		"private d":                 {with(`{`, `{"d":"AAAA",`), `kid "k1": holds the PRIVATE member "d"`},
		"symmetric k":               {with(`{`, `{"k":"AAAA",`), `PRIVATE member "k"`},
		"kty oct":                   {with(`"EC"`, `"oct"`), `kty is "oct"`},
		"kty missing":               {with(`"kty":"EC",`, ""), `kty is ""`},
		"crv P-384":                 {with("P-256", "P-384"), `crv is "P-384"`},
		"use enc":                   {with(`"sig"`, `"enc"`), `use is "enc"`},
		"use empty":                 {with(`"sig"`, `""`), `use is ""`},
		"alg ES384":                 {with("ES256", "ES384"), `alg is "ES384"`},
		"key_ops sign":              {with(`{`, `{"key_ops":["sign"],`), "key_ops"},
		"x missing":                 {with(`"x":"`+x+`",`, ""), "x is 0 bytes"},
		"x of 31 bytes":             {with(x, short), "x is 31 bytes long, want 32"},
		"x with padding":            {with(x, x+"="), "x is not base64url"},
		"x with a line break":       {with(x, x[:5]+`\n`+x[5:]), "x is not base64url"},
		"x with stray bits":         {with(x, x[:42]+"5"), "x is not base64url"},
		"y of another point":        {with(y, x), "no point on P-256"},
		"the point at infinity":     {strings.NewReplacer(x, zeros, y, zeros).Replace(`{"keys":[` + good + `]}`), "no point on P-256"},
		"more keys than we hold":    {`{"keys":[` + strings.Repeat(good+",", 64) + good + `]}`, "at most 64"},
		"larger than a JWKS can be": {strings.Repeat(" ", 1<<17), "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := ParseJWKS([]byte(tc.in))
			switch {
			case tc.want == "" && (err != nil || set.Lookup("k1") == nil):
				t.Errorf("err = %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("err = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNewKeySetRefuses(t *testing.T) {
	a := testKey(t, 1).Public()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]PublicKey{
		"nothing": nil, "no kid": {{Key: a.Key}}, "no key": {{KID: "a"}}, "kid twice": {a, a},
		"another curve": {{KID: "a", Key: &p384.PublicKey}},
	} {
		if _, err := NewKeySet(keys...); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}
