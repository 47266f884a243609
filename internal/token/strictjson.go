package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxJSONDepth is far above what a token, a JWKS or a ring needs (3).
const maxJSONDepth = 8

// strictObject reads one JSON object and returns its members undecoded. encoding/json
// alone takes the last of two equal names, matches names without regard to case and
// replaces invalid UTF-8; two parsers could then read two different tokens
// (RFC 7519 section 4, RFC 8259 section 4). All of that is an error here, at every depth.
func strictObject(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	tok, err := dec.Token()
	if err != nil {
		return nil, jsonError(err)
	}
	if tok != json.Delim('{') {
		return nil, errors.New("is not a JSON object")
	}
	members := map[string]json.RawMessage{}
	for dec.More() {
		name, err := memberName(dec)
		if err != nil {
			return nil, err
		}
		if _, dup := members[name]; dup {
			return nil, fmt.Errorf("has the member %q twice", clip(name))
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, jsonError(err)
		}
		if len(raw) > 0 && (raw[0] == '{' || raw[0] == '[') {
			if err := noDuplicates(json.NewDecoder(bytes.NewReader(raw)), 1); err != nil {
				return nil, fmt.Errorf("member %q %w", clip(name), err)
			}
		}
		members[name] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, jsonError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has data after the JSON object")
	}
	return members, nil
}

func memberName(dec *json.Decoder) (string, error) {
	tok, err := dec.Token()
	if err != nil {
		return "", jsonError(err)
	}
	name, ok := tok.(string)
	if !ok {
		return "", errors.New("has a member without a name")
	}
	return name, nil
}

// noDuplicates walks one JSON value.
func noDuplicates(dec *json.Decoder, depth int) error {
	if depth > maxJSONDepth {
		return errors.New("is nested too deeply")
	}
	dec.UseNumber()
	tok, err := dec.Token()
	if err != nil {
		return jsonError(err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]struct{}{}
	for dec.More() {
		if delim == '{' {
			name, err := memberName(dec)
			if err != nil {
				return err
			}
			if _, dup := seen[name]; dup {
				return fmt.Errorf("has the member %q twice", clip(name))
			}
			seen[name] = struct{}{}
		}
		if err := noDuplicates(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return jsonError(err)
}

func jsonError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("is not JSON: it ends too early")
	}
	return fmt.Errorf("is not JSON: %w", err)
}

// stringMember returns "" for an absent member.
func stringMember(members map[string]json.RawMessage, name string) (string, error) {
	raw, ok := members[name]
	if !ok {
		return "", nil
	}
	if len(raw) == 0 || raw[0] != '"' {
		return "", fmt.Errorf("%s must be a string", name)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%s must be a string", name)
	}
	return s, nil
}

// clip keeps hostile input out of logs in full.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
