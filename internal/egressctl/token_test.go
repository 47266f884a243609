package egressctl

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// keyPair makes a key with the command itself.
func keyPair(t *testing.T) (key, jwks string) {
	t.Helper()
	dir := t.TempDir()
	key, jwks = filepath.Join(dir, "k.pem"), filepath.Join(dir, "jwks.json")
	ok(t, "keygen", "--key", key, "--jwks", jwks)
	return key, jwks
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestKeygenWritesAPrivateKeyForItsOwnerOnly(t *testing.T) {
	key, jwks := keyPair(t)
	for name, want := range map[string]fs.FileMode{key: 0o600, jwks: 0o644} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	signing, err := token.ParsePrivateKeyPEM(readFile(t, key))
	if err != nil {
		t.Fatal(err)
	}
	set, err := token.ParseJWKS(readFile(t, jwks))
	if err != nil {
		t.Fatal(err)
	}
	if !signing.Key.PublicKey.Equal(set.Lookup(signing.KID)) {
		t.Error("the JWKS holds another key")
	}
	if bytes.Contains(readFile(t, jwks), []byte(`"d"`)) {
		t.Error("the JWKS holds the private key")
	}
}

func TestKeygenNeverOverwritesWithoutForce(t *testing.T) {
	key, jwks := keyPair(t)
	before := [][]byte{readFile(t, key), readFile(t, jwks)}
	dir := filepath.Dir(key)
	dangling := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"both exist":         {[]string{"--key", key, "--jwks", jwks}, "--key"},
		"key exists":         {[]string{"--key", key, "--jwks", filepath.Join(dir, "new")}, "--key"},
		"JWKS exists":        {[]string{"--key", filepath.Join(dir, "new"), "--jwks", jwks}, "--jwks"},
		"key, with --append": {[]string{"--key", key, "--jwks", jwks, "--append"}, "--key"},
		"dangling link":      {[]string{"--key", dangling, "--jwks", filepath.Join(dir, "new")}, "--key"},
		"no directory":       {[]string{"--key", filepath.Join(dir, "x", "k"), "--jwks", filepath.Join(dir, "new")}, "--key"},
		"no JWKS directory":  {[]string{"--key", filepath.Join(dir, "new"), "--jwks", filepath.Join(dir, "x", "j")}, "--jwks"},
		"append to nothing":  {[]string{"--key", filepath.Join(dir, "new"), "--jwks", filepath.Join(dir, "newj"), "--append"}, "--append"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "", append([]string{"keygen"}, tc.args...)...).want(t, ExitError, tc.want)
			if !bytes.Equal(before[0], readFile(t, key)) || !bytes.Equal(before[1], readFile(t, jwks)) {
				t.Fatal("a file was changed")
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 3 {
				t.Errorf("files are left behind: %v", entries)
			}
		})
	}
}

func TestKeygenForceReplacesAFileThatIsTooOpen(t *testing.T) {
	key, jwks := keyPair(t)
	if err := os.Chmod(key, 0o666); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, key)
	ok(t, "keygen", "--key", key, "--jwks", jwks, "--force")
	info, err := os.Stat(key)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 || bytes.Equal(before, readFile(t, key)) {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestKeygenAppendKeepsOldTokensGood(t *testing.T) {
	key, jwks := keyPair(t)
	old := strings.TrimSpace(ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com"))
	second := filepath.Join(filepath.Dir(key), "k2.pem")
	m := decodeJSON(t, ok(t, "keygen", "--key", second, "--jwks", jwks, "--append", "-o", "json"))
	if m["keys"] != 2.0 {
		t.Errorf("%v", m)
	}
	for _, raw := range []string{old, strings.TrimSpace(ok(t, "token", "mint", "--key", second, "--container-id", "c1", "--allow", "a.example.com"))} {
		ok(t, "token", "verify", "--jwks", jwks, raw)
	}
	if err := os.WriteFile(jwks, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "", "keygen", "--key", second+"x", "--jwks", jwks, "--append").want(t, ExitError, "--append")
}

func TestMintedTokenCarriesEveryClaimOfTheDesign(t *testing.T) {
	key, jwks := keyPair(t)
	raw := strings.TrimSpace(ok(t, "token", "mint", "--container-id", "sandbox_session_abc123", "--organization", "user_123",
		"--allow", "api.example.com,github.com", "--ttl", "4h", "--key", key))
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	m := decodeJSON(t, string(payload))
	id, _ := m["jti"].(string)
	if len(id) < 20 {
		t.Errorf("jti = %v", m["jti"])
	}
	delete(m, "jti")
	want := map[string]any{
		"iss": "secure-egress-control", "aud": "egress-proxy", "iat": 1772366400, "nbf": 1772366400, "exp": 1772380800,
		"container_id": "sandbox_session_abc123", "organization_uuid": "user_123", "allowed_hosts": "api.example.com,github.com",
		"is_hipaa_regulated": "false", "use_egress_gateway": "false", "enforce_container_binding": "true", "enforce_centralized_egress": "false",
	}
	if !jsonEqual(t, m, want) {
		t.Errorf("claims = %v\nwant %v", m, want)
	}
	run(t, "", "token", "verify", "--jwks", jwks, raw).want(t, ExitOK, "valid until 2026-03-01T16:00:00Z", "sandbox_session_abc123", "api.example.com,github.com")
}

func TestMintFlags(t *testing.T) {
	key, _ := keyPair(t)
	for name, tc := range map[string]struct {
		args []string
		want map[string]any
	}{
		"hipaa":                 {[]string{"--hipaa"}, map[string]any{"is_hipaa_regulated": "true"}},
		"gateway":               {[]string{"--gateway"}, map[string]any{"use_egress_gateway": "true"}},
		"centralized":           {[]string{"--centralized"}, map[string]any{"enforce_centralized_egress": "true"}},
		"binding":               {[]string{"--binding"}, map[string]any{"enforce_container_binding": "true"}},
		"no binding":            {[]string{"--no-binding"}, map[string]any{"enforce_container_binding": "false"}},
		"binding=false":         {[]string{"--binding=false"}, map[string]any{"enforce_container_binding": "false"}},
		"policy":                {[]string{"--egress-policy", "ns/p"}, map[string]any{"egress_policy": "ns/p"}},
		"jti":                   {[]string{"--jti", "x1"}, map[string]any{"jti": "x1"}},
		"not before a duration": {[]string{"--not-before", "1h"}, map[string]any{"nbf": 1772370000.0}},
		"not before a time":     {[]string{"--not-before", "2026-03-01T13:00:00Z"}, map[string]any{"nbf": 1772370000.0}},
		"ports and wildcards":   {[]string{"--allow", "a.example.com:22", "--allow", "*.example.org"}, map[string]any{"allowed_hosts": "a.example.com:22,*.example.org"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := ok(t, append([]string{"token", "mint", "--key", key, "--container-id", "c1", "-o", "json"}, tc.args...)...)
			claims := decodeJSON(t, out)["claims"].(map[string]any)
			for k, want := range tc.want {
				if claims[k] != want {
					t.Errorf("%s = %v, want %v", k, claims[k], want)
				}
			}
		})
	}
	run(t, "", "token", "mint", "--key", key, "--container-id", "c1", "--not-before", "tomorrow").want(t, ExitError, "--not-before")
	run(t, "", "token", "mint", "--key", key, "--container-id", "c1", "--not-before", "5h").want(t, ExitError, "exp is not after nbf")
	run(t, "", "token", "mint", "--key", key, "--container-id", "c1").want(t, ExitOK, "warning: without --allow")
}

func TestMintPrintsTheProxyURL(t *testing.T) {
	key, jwks := keyPair(t)
	url := strings.TrimSpace(ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com", "--proxy-url", "10.96.12.7:8443"))
	if !strings.HasPrefix(url, "http://container_c1:jwt_") || !strings.HasSuffix(url, "@10.96.12.7:8443") {
		t.Errorf("url = %s", url)
	}
	ok(t, "token", "verify", "--jwks", jwks, url)
	if out := ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com", "--proxy-url", "[2001:db8::1]:8443"); !strings.Contains(out, "@[2001:db8::1]:8443") {
		t.Errorf("url = %s", out)
	}
}

func TestVerifyRefusesForgedTokens(t *testing.T) {
	key, jwks := keyPair(t)
	raw := strings.TrimSpace(ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com"))
	parts := strings.Split(raw, ".")
	signing, err := token.ParsePrivateKeyPEM(readFile(t, key))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&signing.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	hs256 := func(secret []byte) string {
		text := b64([]byte(`{"alg":"HS256","kid":"`+signing.KID+`","typ":"JWT"}`)) + "." + parts[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return text + "." + b64(mac.Sum(nil))
	}
	altered := []byte(raw)
	// Another letter of base64url, or the token would be malformed.
	if c := &altered[len(altered)-20]; *c == 'A' {
		*c = 'B'
	} else {
		*c = 'A'
	}
	for name, tc := range map[string]struct{ raw, reason string }{
		"one byte changed":         {string(altered), "token_signature"},
		"alg none":                 {b64([]byte(`{"alg":"none","kid":"`+signing.KID+`"}`)) + "." + parts[1] + ".", "token_algorithm"},
		"HS256 by the public PEM":  {hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "token_algorithm"},
		"HS256 by the public DER":  {hs256(der), "token_algorithm"},
		"HS256 by the JWKS itself": {hs256(readFile(t, jwks)), "token_algorithm"},
		"not a token":              {"hello", "token_malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "", "token", "verify", "--jwks", jwks, tc.raw).want(t, ExitDenied, "refused: "+tc.reason)
			r := run(t, tc.raw+"\n", "token", "verify", "--jwks", jwks, "-o", "json")
			r.want(t, ExitDenied)
			if m := decodeJSON(t, r.out); m["valid"] != false || m["reason"] != tc.reason || m["claims"] != nil {
				t.Errorf("json = %s", r.out)
			}
		})
	}
	runAt(t, epoch.Add(5*time.Hour), "", "token", "verify", "--jwks", jwks, raw).want(t, ExitDenied, "refused: token_expired")
	runAt(t, epoch.Add(-time.Hour), "", "token", "verify", "--jwks", jwks, raw).want(t, ExitDenied, "refused: token_not_yet_valid")
	_, other := keyPair(t)
	run(t, "", "token", "verify", "--jwks", other, raw).want(t, ExitDenied, "refused: token_unknown_key")
	run(t, "", "token", "verify", "--jwks", key, raw).want(t, ExitError, "--jwks")
}

func TestVerifyReadsTheTokenFromAnywhere(t *testing.T) {
	key, jwks := keyPair(t)
	raw := ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com")
	file := writeTemp(t, "token", raw)
	for name, tc := range map[string]struct {
		stdin string
		args  []string
	}{
		"argument":         {"", []string{strings.TrimSpace(raw)}},
		"stdin":            {raw, nil},
		"stdin by name":    {raw, []string{"-"}},
		"file":             {"", []string{"--file", file}},
		"jwt_ password":    {"jwt_" + raw, nil},
		"JWKS from stdin":  {string(readFile(t, jwks)), []string{"--jwks", "-", strings.TrimSpace(raw)}},
		"file and no JWKS": {raw, []string{"--file", "-"}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, tc.stdin, append([]string{"token", "verify", "--jwks", jwks}, tc.args...)...).want(t, ExitOK, "valid until")
		})
	}
	run(t, " \n", "token", "verify", "--jwks", jwks).want(t, ExitError, "no token given")
}

func TestInspectShowsWithoutTrusting(t *testing.T) {
	key, _ := keyPair(t)
	raw := strings.TrimSpace(ok(t, "token", "mint", "--key", key, "--container-id", "c1", "--allow", "a.example.com"))
	run(t, "", "token", "inspect", raw).want(t, ExitOK, "NOT VERIFIED", `"container_id":"c1"`, "expires:    2026-03-01T16:00:00Z (in 4h0m0s)")
	r := runAt(t, epoch.Add(5*time.Hour), "", "token", "inspect", "-o", "json", raw)
	r.want(t, ExitOK)
	m := decodeJSON(t, r.out)
	if m["verified"] != false || m["expired"] != true || len(m["problems"].([]any)) != 0 {
		t.Errorf("json = %s", r.out)
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1,"x":"\u001b[31m`+"\u202e"+`"}`)) + "."
	r = run(t, "", "token", "inspect", none)
	r.want(t, ExitOK, "problem:  token algorithm is not ES256", "issued:     missing", "ago)")
	if strings.ContainsAny(r.out, "\x1b\u202e") {
		t.Errorf("the token drives the terminal: %q", r.out)
	}
}

func FuzzTokenInspectCommand(f *testing.F) {
	for _, seed := range []string{"", "x", "e30.e30.", "jwt_e30.W10.AA", "http://u:jwt_e30.e30.@h"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := run(t, raw, "token", "inspect", "-o", "json")
		switch r.code {
		case ExitOK:
			if !json.Valid([]byte(r.out)) {
				t.Fatalf("output is not JSON: %s", r.out)
			}
		case ExitError:
			if r.out != "" {
				t.Fatalf("an error with output: %s", r.out)
			}
		default:
			t.Fatalf("exit %d", r.code)
		}
	})
}
