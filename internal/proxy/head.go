package proxy

import (
	"bytes"
	"strings"
)

// Head is a message head as it came in, line by line, checked for form only. Its strings
// share one allocation.
type head struct {
	// start is the request line or status line without CRLF.
	start  string
	fields []field
}

type field struct{ name, value string }

const (
	maxHead     = 64 << 10
	maxFields   = 256
	usualFields = 8
)

// headEnd looks for the end of a head in buf, from the offset from on, which an earlier
// call returned as next. end is 0 while more bytes are needed. A line that does not end in
// CRLF is refused at once (RFC 9112 section 2.2: a bare LF is where parsers differ).
func headEnd(buf []byte, from int) (end, next int, err *refusal) {
	for {
		i := bytes.IndexByte(buf[from:], '\n')
		if i < 0 {
			return 0, from, nil
		}
		i += from
		if i == 0 || buf[i-1] != '\r' {
			return 0, from, malformed(ReasonBadHeader, "a line ends in a bare LF; lines end in CRLF (RFC 9112 section 2.2)")
		}
		if i >= 3 && buf[i-2] == '\n' {
			return i + 1, i + 1, nil
		}
		from = i + 1
	}
}

// parseHead reads a head that headEnd has delimited. fields is reused.
func parseHead(buf []byte, fields []field) (head, *refusal) {
	text := string(buf[:len(buf)-2]) // without the empty line
	line, rest := cutLine(text)
	if line == "" {
		return head{}, malformed(ReasonBadRequestLine, "the first line is empty")
	}
	if i := invalidText(line); i >= 0 {
		return head{}, malformed(ReasonBadRequestLine, "the first line contains a control character")
	}
	if cap(fields) == 0 {
		fields = make([]field, 0, usualFields)
	}
	h := head{start: line, fields: fields[:0]}
	for rest != "" {
		line, rest = cutLine(rest)
		if line == "" || line[0] == ' ' || line[0] == '\t' {
			return head{}, malformed(ReasonBadHeader, "a header line starts with white space; folded lines are obsolete (RFC 9112 section 5.2)")
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) {
			return head{}, malformed(ReasonBadHeader, "a header line is not \"name: value\"; no white space may stand before the colon (RFC 9112 section 5.1)")
		}
		value = strings.Trim(value, " \t")
		if i := invalidText(value); i >= 0 {
			return head{}, malformed(ReasonBadHeader, "a header value contains a control character (RFC 9110 section 5.5)")
		}
		if len(h.fields) == maxFields {
			return head{}, malformed(ReasonHeaderTooLarge, "there are more than 256 header lines")
		}
		h.fields = append(h.fields, field{name, value})
	}
	return h, nil
}

// cutLine splits at the first CRLF. Every line is known to end in one and to be non-empty
// but for the first.
func cutLine(s string) (line, rest string) {
	line, rest, _ = strings.Cut(s, "\r\n")
	return line, rest
}

// invalidText returns the index of a byte that must not stand in a header value or start
// line, or -1. A bare CR is among them. Bytes from 0x80 on are opaque (obs-text).
func invalidText(s string) int {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return i
		}
	}
	return -1
}

// isToken reports whether s is an RFC 9110 section 5.6.2 token.
func isToken(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !tokenByte[s[i]] {
			return false
		}
	}
	return true
}

var tokenByte = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// get returns the value of the only field with the name. n is how often it is there.
func (h *head) get(name string) (value string, n int) {
	for i := range h.fields {
		if strings.EqualFold(h.fields[i].name, name) {
			value = h.fields[i].value
			n++
		}
	}
	return value, n
}

// hasToken reports whether a comma-separated list contains word (case-insensitive).
func hasToken(list, word string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(item, " \t"), word) {
			return true
		}
	}
	return false
}
