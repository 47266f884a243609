package allowlist

import (
	"strings"
	"unicode/utf8"
)

// pathPattern is an exact path, or with prefix everything that starts with text
// (which then ends in a slash).
type pathPattern struct {
	text   string
	prefix bool
}

const notCanonical = "the path is not canonical: remove empty, . and .. segments, backslashes and control characters"

// parsePathPattern accepts only canonical, decoded paths, so that a pattern means
// one thing.
func parsePathPattern(s string) (pathPattern, string) {
	p := pathPattern{text: s}
	if cut, ok := strings.CutSuffix(s, "/*"); ok {
		p = pathPattern{text: cut + "/", prefix: true}
	}
	switch {
	case !strings.HasPrefix(s, "/"):
		return pathPattern{}, "a path starts with a slash: write /v1/items, or /v1/* for everything below /v1/"
	case strings.Contains(p.text, "*"):
		return pathPattern{}, "* is only accepted as the whole last segment: write /v1/* for everything below /v1/"
	case strings.ContainsAny(s, "?#"):
		return pathPattern{}, "a path has no query and no fragment: remove ? or # and what follows"
	case strings.Contains(s, "%"):
		return pathPattern{}, "write the path decoded: requests are percent-decoded once before they are compared"
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == 0x7f || c == '\\' {
			return pathPattern{}, notCanonical
		}
	}
	if c, ok := cleanPath(p.text); !ok || c != p.text {
		return pathPattern{}, notCanonical
	}
	return p, ""
}

func (p pathPattern) matches(path string) bool {
	if p.prefix {
		return strings.HasPrefix(path, p.text)
	}
	return path == p.text
}

// pathCache keeps the canonical path of one request: several rules may need it.
type pathCache struct {
	done, ok bool
	path     string
}

func (c *pathCache) matches(raw string, patterns []pathPattern) bool {
	if !c.done {
		c.path, c.ok = canonicalPath(raw)
		c.done = true
	}
	if !c.ok {
		return false
	}
	for _, p := range patterns {
		if p.matches(c.path) {
			return true
		}
	}
	return false
}

// canonicalPath percent-decodes a raw path exactly once, drops "." segments and
// doubled slashes, and reports false for a path that the origin may read as
// another one: ".." in any spelling, an encoded slash or backslash, a NUL or other
// control byte, a second layer of encoding of one of these, bytes that are not
// UTF-8 (overlong forms of dot and slash), and a leading "//", which some URL
// parsers take for an authority (RFC 3986 section 3.3). "" is "/".
//
// It allocates only when there is something to decode or drop.
func canonicalPath(raw string) (string, bool) {
	if raw == "" {
		return "/", true
	}
	if raw[0] != '/' {
		return "", false
	}
	path, ok := decodeOnce(raw)
	if !ok {
		return "", false
	}
	return cleanPath(path)
}

// cleanPath resolves a decoded path.
func cleanPath(path string) (string, bool) {
	if !utf8.ValidString(path) {
		return "", false
	}
	clean, named := true, false
	for i := 1; i <= len(path); {
		end := strings.IndexByte(path[i:], '/')
		last := end < 0
		if last {
			end = len(path) - i
		}
		segment := path[i : i+end]
		// Servlet containers cut ";parameters" off before they resolve "..".
		bare, _, _ := strings.Cut(segment, ";")
		switch {
		case bare == "..", bare == "." && bare != segment:
			return "", false
		case segment == "" && !last && !named:
			return "", false
		case segment == ".", segment == "" && !last:
			clean = false
		case segment != "":
			named = true
		}
		i += end + 1
	}
	if !clean {
		path = dropEmpty(path)
	}
	return path, true
}

// dropEmpty removes "." and empty segments; a path that ends in one keeps its
// trailing slash (RFC 3986 section 5.2.4).
func dropEmpty(path string) string {
	out := make([]byte, 0, len(path))
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		if s == "" || s == "." {
			if last {
				out = append(out, '/')
			}
			continue
		}
		out = append(out, '/')
		out = append(out, s...)
	}
	if len(out) == 0 {
		return "/"
	}
	return string(out)
}

func decodeOnce(raw string) (string, bool) {
	escaped := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '%':
			escaped = true
		case !plainByte(c):
			return "", false
		}
	}
	if !escaped {
		return raw, true
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			var ok bool
			if c, ok = unescape(raw[i:]); !ok || c == '/' || c < 0x20 || c == 0x7f || c == '\\' {
				return "", false
			}
			i += 2
		}
		out = append(out, c)
	}
	if doublyEncoded(out) {
		return "", false
	}
	return string(out), true
}

// plainByte reports whether c may stand unescaped in a raw path here.
func plainByte(c byte) bool {
	return c > 0x20 && c != 0x7f && c != '\\' && c != '?' && c != '#'
}

// doublyEncoded reports whether a second decoding would make a dot, slash,
// backslash, percent sign or control byte.
func doublyEncoded(b []byte) bool {
	s := string(b)
	for i := strings.IndexByte(s, '%'); i >= 0 && i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		c, ok := unescape(s[i:])
		if ok && (c == '.' || c == '/' || c == '\\' || c == '%' || c < 0x20 || c == 0x7f) {
			return true
		}
	}
	return false
}

// unescape decodes the %XX that s starts with.
func unescape(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	hi, ok1 := unhex(s[1])
	lo, ok2 := unhex(s[2])
	return hi<<4 | lo, ok1 && ok2
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
