package allowlist

import (
	"strconv"
	"strings"
)

// FieldError is one thing wrong with a Spec or a pattern.
type FieldError struct {
	Field  string // path in the Spec, "allowedHosts[2]" or "rules[1].hosts[0]"; "" from ParsePattern
	Value  string // as given
	Reason string // what is wrong and what to write instead
}

// Error gives the field, the quoted value (cut to 80 bytes) and the reason.
func (e *FieldError) Error() string {
	const shown = 80
	var b strings.Builder
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	v, cut := e.Value, ""
	if len(v) > shown {
		v, cut = v[:shown], "..."
	}
	b.WriteString(strconv.QuoteToGraphic(v))
	b.WriteString(cut)
	b.WriteString(": ")
	b.WriteString(e.Reason)
	return b.String()
}

// FieldErrors is everything wrong with a Spec, in the order of its fields.
type FieldErrors []*FieldError

// Error joins the messages with "; ".
func (es FieldErrors) Error() string {
	parts := make([]string, len(es))
	for i, e := range es {
		parts[i] = e.Error()
	}
	return strings.Join(parts, "; ")
}

// Unwrap lets errors.As find each *FieldError.
func (es FieldErrors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}
