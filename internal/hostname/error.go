package hostname

import "strconv"

// ParseError says why an input is not a host or an authority.
type ParseError struct {
	Input  string // as given, unbounded: quote it before logging
	Reason string // one clause, without the input
}

// Error quotes the input and cuts it to 80 bytes, so that it is safe in a log
// line and in an HTTP response.
func (e *ParseError) Error() string {
	const shown = 80
	in := e.Input
	cut := ""
	if len(in) > shown {
		in, cut = in[:shown], "..."
	}
	return "invalid host " + strconv.QuoteToASCII(in) + cut + ": " + e.Reason
}
