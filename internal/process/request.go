package process

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a request that flags do not change.
const (
	maxArgs    = 4096
	maxEnv     = 1024
	maxEnvName = 256
	maxTTYSide = 4096
	// MAX_ARG_STRLEN of the kernel (include/uapi/linux/binfmts.h): 32 pages.
	maxArgLen = 128 << 10
)

// FieldError names the field of a request that cannot be used and says why.
type FieldError struct {
	Field  string
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

func fieldErrorf(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// Request is the body of POST /execute and POST /v1/processes.
type Request struct {
	Command string            `json:"command"` // run by Shell -c
	Args    []string          `json:"args"`    // run as they are; excludes Command
	Shell   string            `json:"shell"`   // default /bin/sh; only with Command
	Cwd     string            `json:"cwd"`
	Env     map[string]string `json:"env"`
	User    string            `json:"user"` // name, uid, name:group or uid:gid

	Stdin       string `json:"stdin"`
	StdinBase64 string `json:"stdin_base64"` // excludes Stdin
	// StdinOpen keeps stdin open after the text above; only POST /v1/processes.
	StdinOpen *bool `json:"stdin_open"`

	TimeoutMS      int64  `json:"timeout_ms"`
	KillGraceMS    *int64 `json:"kill_grace_ms"`
	MaxOutputBytes int64  `json:"max_output_bytes"` // per stream; only POST /execute
	OutputEncoding string `json:"output_encoding"`  // "" or "utf-8", "base64"; only POST /execute

	TTY  bool  `json:"tty"` // only POST /v1/processes
	Size *Size `json:"size"`

	// KeepDescendants lets what the process left in the background live on.
	KeepDescendants bool `json:"keep_descendants"`
}

// Size is a terminal size in character cells.
type Size struct {
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}

func (s Size) validate(field string) error {
	if s.Columns < 1 || s.Columns > maxTTYSide || s.Rows < 1 || s.Rows > maxTTYSide {
		return fieldErrorf(field, "columns and rows are 1 to %d", maxTTYSide)
	}
	return nil
}

// decodeStrict reads one JSON value into v: unknown fields, a second value and
// trailing bytes are errors.
func decodeStrict(r io.Reader, v any) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) && typeErr.Field != "" {
			return fieldErrorf(typeErr.Field, "is a %s, want %s", typeErr.Value, typeErr.Type)
		}
		if errors.Is(err, io.EOF) {
			return fieldErrorf("body", "is empty, want a JSON object")
		}
		return fmt.Errorf("body: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err != nil {
			return fmt.Errorf("body: after the JSON object: %w", err)
		}
		return fieldErrorf("body", "has more after the JSON object")
	}
	return nil
}

// ParseRequest reads and checks a Request. The error is a *FieldError, or one of
// the JSON decoder or the reader.
func ParseRequest(r io.Reader) (*Request, error) {
	var req Request
	if err := decodeStrict(r, &req); err != nil {
		return nil, err
	}
	if err := req.validate(); err != nil {
		return nil, err
	}
	return &req, nil
}

func (r *Request) validate() error {
	switch {
	case r.Command == "" && len(r.Args) == 0:
		return fieldErrorf("command", "give command (a line for the shell) or args (a list)")
	case r.Command != "" && r.Args != nil:
		return fieldErrorf("args", "command and args exclude each other")
	case r.Command == "" && r.Shell != "":
		return fieldErrorf("shell", "goes with command, not with args")
	case len(r.Args) > maxArgs:
		return fieldErrorf("args", "has %d entries, at most %d are allowed", len(r.Args), maxArgs)
	case len(r.Args) > 0 && r.Args[0] == "":
		return fieldErrorf("args[0]", "is empty, want a program")
	}
	for _, f := range []struct{ name, value string }{
		{"command", r.Command}, {"shell", r.Shell}, {"cwd", r.Cwd}, {"user", r.User},
	} {
		if err := checkArg(f.name, f.value); err != nil {
			return err
		}
	}
	for i, a := range r.Args {
		if err := checkArg(fmt.Sprintf("args[%d]", i), a); err != nil {
			return err
		}
	}
	if r.Cwd != "" && !path.IsAbs(r.Cwd) {
		return fieldErrorf("cwd", "%q is not an absolute path", r.Cwd)
	}
	if err := r.validateEnv(); err != nil {
		return err
	}
	if r.Stdin != "" && r.StdinBase64 != "" {
		return fieldErrorf("stdin_base64", "stdin and stdin_base64 exclude each other")
	}
	if _, err := base64.StdEncoding.DecodeString(r.StdinBase64); err != nil {
		return fieldErrorf("stdin_base64", "is not standard base64: %v", err)
	}
	return r.validateNumbers()
}

func (r *Request) validateNumbers() error {
	// Milliseconds that a time.Duration can hold.
	const maxMS = int64(1<<63-1) / int64(time.Millisecond)
	if r.TimeoutMS < 0 || r.TimeoutMS > maxMS {
		return fieldErrorf("timeout_ms", "%d is out of range", r.TimeoutMS)
	}
	if g := r.KillGraceMS; g != nil && (*g < 0 || *g > 60_000) {
		return fieldErrorf("kill_grace_ms", "%d is out of range, want 0 to 60000", *g)
	}
	if r.MaxOutputBytes < 0 {
		return fieldErrorf("max_output_bytes", "%d is negative", r.MaxOutputBytes)
	}
	switch r.OutputEncoding {
	case "", "utf-8", "base64":
	default:
		return fieldErrorf("output_encoding", `%q is not "utf-8" or "base64"`, r.OutputEncoding)
	}
	if r.Size != nil {
		if !r.TTY {
			return fieldErrorf("size", "goes with tty")
		}
		return r.Size.validate("size")
	}
	return nil
}

func (r *Request) validateEnv() error {
	if len(r.Env) > maxEnv {
		return fieldErrorf("env", "has %d entries, at most %d are allowed", len(r.Env), maxEnv)
	}
	for name, value := range r.Env {
		if name == "" || len(name) > maxEnvName || strings.ContainsAny(name, "=\x00") || !utf8.ValidString(name) {
			return fieldErrorf("env", "%.40q is not a variable name", name)
		}
		if err := checkArg("env."+name, value); err != nil {
			return err
		}
	}
	return nil
}

func checkArg(field, value string) error {
	if strings.IndexByte(value, 0) >= 0 {
		return fieldErrorf(field, "holds a NUL byte")
	}
	if len(value) >= maxArgLen {
		return fieldErrorf(field, "is %d bytes long, Linux takes less than %d", len(value), maxArgLen)
	}
	return nil
}

// stdin returns the text that the process is to read first.
func (r *Request) stdin() []byte {
	if r.StdinBase64 != "" {
		b, err := base64.StdEncoding.DecodeString(r.StdinBase64)
		if err != nil {
			return nil // validate has refused it
		}
		return b
	}
	return []byte(r.Stdin)
}

// keepStdinOpen: without text to start with, a process that is driven later
// wants an open stdin; with text, the end of the text is the end of the input.
func (r *Request) keepStdinOpen() bool {
	if r.StdinOpen != nil {
		return *r.StdinOpen
	}
	return r.Stdin == "" && r.StdinBase64 == ""
}

// executeOnly and processOnly refuse the fields of the other endpoint.
func (r *Request) executeOnly() error {
	switch {
	case r.TTY:
		return fieldErrorf("tty", "needs POST /v1/processes")
	case r.StdinOpen != nil:
		return fieldErrorf("stdin_open", "needs POST /v1/processes")
	}
	return nil
}

func (r *Request) processOnly() error {
	switch {
	case r.MaxOutputBytes != 0:
		return fieldErrorf("max_output_bytes", "is of POST /execute; a process keeps its last --replay-buffer-bytes of output")
	case r.OutputEncoding != "":
		return fieldErrorf("output_encoding", "is of POST /execute")
	}
	return nil
}

// signalRequest is the body of POST /v1/processes/{id}/signal.
type signalRequest struct {
	Signal signalName `json:"signal"`
	// Process alone, instead of its whole group.
	Single bool `json:"single"`
}

// signalName accepts "TERM", "SIGTERM" and 15.
type signalName string

func (s *signalName) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(s))
	}
	*s = signalName(b)
	return nil
}
