package hostname

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

type shape uint8

const (
	canonical shape = iota // lower-case LDH and underscore, no A-label, no trailing dot
	lowerable              // ASCII, no A-label
	needsIDNA              // non-ASCII, or an A-label that has to be validated
)

// lookup is the UTS 46 lookup profile. CheckHyphens is off because names such as
// r3---sn-x.example are in use; STD3 is off because it refuses the underscore of
// lookup names. checkName holds the result to a stricter alphabet than both.
var lookup = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.CheckHyphens(false),
)

func shapeOf(s string) shape {
	sh := canonical
	start := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= utf8.RuneSelf:
			return needsIDNA
		case 'A' <= c && c <= 'Z':
			sh = lowerable
		}
		if start && hasACEPrefix(s[i:]) {
			return needsIDNA
		}
		start = c == '.'
	}
	if s[len(s)-1] == '.' {
		sh = lowerable
	}
	return sh
}

// hasACEPrefix reports whether s starts with "xn--" in any case (RFC 5890 section 2.3.2.1).
func hasACEPrefix(s string) bool {
	return len(s) >= 4 && s[0]|0x20 == 'x' && s[1]|0x20 == 'n' && s[2] == '-' && s[3] == '-'
}

// mapIDNA returns the lower-case ASCII form. The mapping also turns the
// ideographic and full-width full stops (U+3002, U+FF0E, U+FF61) into dots; that
// is safe because the mapped form is the one that is matched, logged and dialled.
func mapIDNA(s string) (mapped, reason string) {
	if !utf8.ValidString(s) {
		return "", "it is not valid UTF-8"
	}
	for label := range strings.FieldsFuncSeq(s, isFullStop) {
		// Punycode takes quadratic time: 5 ms for one label of 1 KiB, before
		// anyone has authenticated. Twice 63 leaves room for decomposed accents.
		if utf8.RuneCountInString(label) > 2*maxLabel {
			return "", "a label is longer than 63 characters (RFC 1035)"
		}
		// UTS 46 section 4 step 4; the library decodes the mixture.
		if hasACEPrefix(label) && !isASCII(label) {
			return "", "it has an xn-- label with characters outside ASCII"
		}
	}
	mapped, err := lookup.ToASCII(s)
	if err != nil {
		return "", "it is not a valid internationalised name (UTS 46)"
	}
	// An "xn--" with nothing behind it maps to an empty label, which at the end
	// would pass for the trailing dot.
	if strings.HasSuffix(mapped, ".") && !endsInFullStop(s) {
		return "", "it has an empty label"
	}
	// A label must be the one A-label of its U-label, or two spellings of a
	// host would stay unequal.
	again, err := lookup.ToASCII(mapped)
	if err != nil || again != mapped {
		return "", "it is not a valid internationalised name (UTS 46)"
	}
	display, err := lookup.ToUnicode(mapped)
	if err != nil {
		return "", "it is not a valid internationalised name (UTS 46)"
	}
	for label := range strings.SplitSeq(display, ".") {
		if hasACEPrefix(label) {
			return "", "it has an xn-- label that does not stand for an internationalised label (RFC 5890)"
		}
	}
	return mapped, ""
}

// isFullStop reports whether UTS 46 section 2.3 takes r for a label separator.
func isFullStop(r rune) bool {
	return r == '.' || r == '\u3002' || r == '\uff0e' || r == '\uff61'
}

func endsInFullStop(s string) bool {
	r, _ := utf8.DecodeLastRuneInString(s)
	return isFullStop(r)
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// checkName checks a lower-case name without trailing dot: lengths of RFC 1035
// section 2.3.4, letters, digits and hyphens of RFC 1123 section 2.1, and the
// underscore that names looked up in DNS may have (RFC 8552).
func checkName(s string) string {
	if len(s) > maxName {
		return "the host is longer than 253 characters (RFC 1035)"
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if !isNameByte(s[i]) {
				return badByte(s[i])
			}
			continue
		}
		switch label := s[start:i]; {
		case label == "":
			return "it has an empty label"
		case len(label) > maxLabel:
			return "a label is longer than 63 characters (RFC 1035)"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a label starts or ends with a hyphen (RFC 1123)"
		}
		start = i + 1
	}
	return ""
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func badByte(c byte) string {
	if c == '*' {
		return "it contains *: wildcards are only accepted in host patterns, as *.example.com"
	}
	return "it contains a character that host names do not have: only letters, digits, hyphen, underscore and dot are accepted"
}
