package allowlist

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "/",
		"/":                  "/",
		"/v1/items":          "/v1/items",
		"/v1/items/":         "/v1/items/",
		"/v1/%69tems":        "/v1/items",
		"/v1/a%20b":          "/v1/a b",
		"/v1/%C3%BC":         "/v1/ü",
		"/v1/ü":              "/v1/ü",
		"/v1//items":         "/v1/items",
		"/v1/./items":        "/v1/items",
		"/v1/%2e/items":      "/v1/items",
		"/v1/items//":        "/v1/items/",
		"/v1/items/.":        "/v1/items/",
		"/.":                 "/",
		"/v1/...":            "/v1/...",
		"/v1/..a":            "/v1/..a",
		"/v1/a..":            "/v1/a..",
		"/v1/.well-known":    "/v1/.well-known",
		"/v1/100%25":         "/v1/100%",
		"/v1/%25zz":          "/v1/%zz",
		"/v1/%2541":          "/v1/%41", // decoded once, not twice
		"/v1/a;b=c":          "/v1/a;b=c",
		"/v1/@scope":         "/v1/@scope",
		"/v1/a:b&c=d+e,f!~*": "/v1/a:b&c=d+e,f!~*",
	} {
		got, ok := canonicalPath(in)
		if !ok || got != want {
			t.Errorf("canonicalPath(%q) = %q, %v, want %q", in, got, ok, want)
		}
	}
}

var refusedRequestPaths = []string{
	"*", "v1", "http://a.example/v1", "//", "/.//evil.example/", "/%2e//evil.example/", "/././/a", "//evil.example/v1/x", "///v1", "/%2e%2e", "/..", "/../v1", "/v1/..", "/v1/../admin",
	"/v1/..//admin", "/v1/%2e%2e/admin", "/v1/.%2E/admin", "/v1/%2e./admin", "/v1/..;/admin", "/v1/..;x=y/admin", "/v1/%2e%2e;/admin", "/v1/..%3b/admin", "/v1/.;/admin",
	"/v1/%2fadmin", "/v1%2Fadmin", "/v1/..%2fadmin", "/v1/%5c..%5cadmin", `/v1/..\admin`, `/v1\admin`, "/v1/%00", "/v1/a%00b", "/v1/%0a", "/v1/%0d%0aX:y", "/v1/%7f", "/v1/a b", "/v1/a\tb", "/v1/\x00", "/v1/\x7f",
	"/v1/%252e%252e/admin", "/v1/%252fadmin", "/v1/%255cadmin", "/v1/%2500", "/v1/%25252e", "/v1/%25%32%65",
	"/v1/%c0%ae%c0%ae/admin", "/v1/%c0%af", "/v1/%ff", "/v1/\xff", "/v1/%", "/v1/%2", "/v1/%zz", "/v1/%u002e", "/v1/x?y", "/v1/x#y",
}

func TestCanonicalPathRefuses(t *testing.T) {
	for _, in := range refusedRequestPaths {
		if got, ok := canonicalPath(in); ok {
			t.Errorf("canonicalPath(%q) = %q, want a refusal", in, got)
		}
	}
}

func TestPlainPathsAreNotCopied(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := canonicalPath("/v1/items/7"); !ok {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPathPatterns(t *testing.T) {
	for pattern, tc := range map[string]struct{ match, miss []string }{
		"/v1/*":    {[]string{"/v1/", "/v1/a", "/v1/a/b", "/v1/%61", "/v1//a"}, []string{"/v1", "/v2/a", "/v11/a", "/V1/a", "/", "/v1/../v1/a"}},
		"/*":       {[]string{"", "/", "/a", "/a/b"}, []string{"*", "//a", "/..", "a"}},
		"/v1/item": {[]string{"/v1/item", "/v1/./item"}, []string{"/v1/item/", "/v1/items", "/v1/item/x", "/v1/Item"}},
		"/":        {[]string{"", "/", "/."}, []string{"/a"}},
		"/a b/ü":   {[]string{"/a%20b/%C3%BC"}, []string{"/a+b/ü", "/a b/ü"}},
	} {
		p, reason := parsePathPattern(pattern)
		if reason != "" {
			t.Errorf("%s: %s", pattern, reason)
			continue
		}
		matches := func(raw string) bool { return (&pathCache{}).matches(raw, []pathPattern{p}) }
		for _, s := range tc.match {
			if !matches(s) {
				t.Errorf("%s does not match %q", pattern, s)
			}
		}
		for _, s := range tc.miss {
			if matches(s) {
				t.Errorf("%s matches %q", pattern, s)
			}
		}
	}
}

var refusedPathPatterns = map[string]string{
	"":                      "a path starts with a slash",
	"*":                     "a path starts with a slash",
	"v1/*":                  "a path starts with a slash",
	"https://a.example/v1/": "a path starts with a slash",
	"/v1*":                  "* is only accepted as the whole last segment",
	"/v1/a*":                "* is only accepted as the whole last segment",
	"/v1/*/x":               "* is only accepted as the whole last segment",
	"/v1/**":                "* is only accepted as the whole last segment",
	"/v1/*/*":               "* is only accepted as the whole last segment",
	"/v1?x=y":               "no query",
	"/v1#x":                 "no fragment",
	"/v1/%69":               "write the path decoded",
	"/v1/../x":              "not canonical",
	"/v1/..":                "not canonical",
	"/v1/./x":               "not canonical",
	"/v1//x":                "not canonical",
	"//v1":                  "not canonical",
	"//*":                   "not canonical",
	`/v1\x`:                 "not canonical",
	"/v1/\x00":              "not canonical",
	"/v1/\xff":              "not canonical",
}

func TestPathPatternsRefuse(t *testing.T) {
	for in, want := range refusedPathPatterns {
		if _, reason := parsePathPattern(in); !strings.Contains(reason, want) {
			t.Errorf("parsePathPattern(%q): %q, want %q in it", in, reason, want)
		}
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range refusedRequestPaths {
		f.Add(s)
	}
	for _, s := range []string{"/v1/items", "/v1/%69tems", "/v1/%2541", "/a//b/./c/.", "/ü;x=y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, ok := canonicalPath(raw)
		if !ok {
			return
		}
		if raw == "" {
			raw = "/"
		}
		// An origin that decodes once and resolves dots gets to the same resource.
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			t.Fatalf("%q is accepted: %v", raw, err)
		}
		want := path.Clean(decoded)
		if got != want && got != want+"/" {
			t.Fatalf("canonicalPath(%q) = %q, path.Clean gives %q", raw, got, want)
		}
		// So does one that decodes twice.
		if twice, err := url.PathUnescape(decoded); err == nil && strings.Contains(decoded, "%") {
			for segment := range strings.SplitSeq(twice, "/") {
				if segment == ".." || strings.Contains(segment, "\\") {
					t.Fatalf("%q decoded twice is %q", raw, twice)
				}
			}
		}
		for segment := range strings.SplitSeq(got, "/") {
			if segment == ".." || segment == "." || strings.ContainsAny(segment, "\\\x00") {
				t.Fatalf("canonicalPath(%q) = %q", raw, got)
			}
		}
	})
}

func FuzzParsePathPattern(f *testing.F) {
	for s := range refusedPathPatterns {
		f.Add(s)
	}
	f.Add("/v1/*")
	f.Add("/*")
	f.Add("/v1/items")
	f.Fuzz(func(t *testing.T, in string) {
		p, reason := parsePathPattern(in)
		if reason != "" {
			return
		}
		escaped := (&url.URL{Path: p.text}).EscapedPath()
		if _, ok := canonicalPath(escaped); ok && !(&pathCache{}).matches(escaped, []pathPattern{p}) {
			t.Fatalf("%q does not match %q", in, escaped)
		}
	})
}
