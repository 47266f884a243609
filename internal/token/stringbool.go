package token

import (
	"errors"
	"strconv"
)

// StringBool is a boolean whose JSON form is the string "true" or "false".
// A JSON true, null, "True", "1" or "" is an error.
type StringBool bool

// MarshalJSON writes "true" or "false" with the quotes.
func (b StringBool) MarshalJSON() ([]byte, error) {
	return []byte(strconv.Quote(strconv.FormatBool(bool(b)))), nil
}

// UnmarshalJSON reads the strings "true" and "false" only.
func (b *StringBool) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case `"true"`:
		*b = true
	case `"false"`:
		*b = false
	default:
		return errors.New(`must be the string "true" or "false"`)
	}
	return nil
}
