package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

func TestParseRequest(t *testing.T) {
	tests := map[string]struct {
		body      string
		wantField string // "" for a good request
	}{
		"command":                  {`{"command":"echo hi"}`, ""},
		"args":                     {`{"args":["echo","hi"],"cwd":"/","env":{"A":"b"},"user":"0:0","timeout_ms":5}`, ""},
		"shell":                    {`{"command":"echo","shell":"bash"}`, ""},
		"tty":                      {`{"command":"sh","tty":true,"size":{"columns":80,"rows":24}}`, ""},
		"surrounding blanks":       {" {\"command\":\"x\"}\n ", ""},
		"empty body":               {``, "body"},
		"not JSON":                 {`command=echo`, "-"},
		"array":                    {`[]`, "-"},
		"two values":               {`{"command":"x"}{}`, "body"},
		"garbage after":            {`{"command":"x"}x`, "-"},
		"unknown field":            {`{"command":"x","comand":"y"}`, "-"},
		"neither":                  {`{}`, "command"},
		"both":                     {`{"command":"x","args":["y"]}`, "args"},
		"empty args with command":  {`{"command":"x","args":[]}`, "args"},
		"empty program":            {`{"args":[""]}`, "args[0]"},
		"shell with args":          {`{"args":["x"],"shell":"sh"}`, "shell"},
		"NUL in command":           {`{"command":"x\u0000"}`, "command"},
		"NUL in an argument":       {`{"args":["x","a\u0000b"]}`, "args[1]"},
		"relative cwd":             {`{"command":"x","cwd":"tmp"}`, "cwd"},
		"equals sign in a name":    {`{"command":"x","env":{"A=B":"c"}}`, "env"},
		"empty name":               {`{"command":"x","env":{"":"c"}}`, "env"},
		"NUL in a value":           {`{"command":"x","env":{"A":"\u0000"}}`, "env.A"},
		"wrong type":               {`{"command":5}`, "command"},
		"negative timeout":         {`{"command":"x","timeout_ms":-1}`, "timeout_ms"},
		"timeout beyond range":     {`{"command":"x","timeout_ms":9223372036854775807}`, "timeout_ms"},
		"fractional timeout":       {`{"command":"x","timeout_ms":1.5}`, "timeout_ms"},
		"grace beyond range":       {`{"command":"x","kill_grace_ms":60001}`, "kill_grace_ms"},
		"negative output limit":    {`{"command":"x","max_output_bytes":-1}`, "max_output_bytes"},
		"unknown encoding":         {`{"command":"x","output_encoding":"latin1"}`, "output_encoding"},
		"two kinds of stdin":       {`{"command":"x","stdin":"a","stdin_base64":"YQ=="}`, "stdin_base64"},
		"broken base64":            {`{"command":"x","stdin_base64":"*"}`, "stdin_base64"},
		"size without tty":         {`{"command":"x","size":{"columns":80,"rows":24}}`, "size"},
		"size of nothing":          {`{"command":"x","tty":true,"size":{"columns":0,"rows":24}}`, "size"},
		"argument of 128 KiB":      {`{"args":["x","` + strings.Repeat("a", maxArgLen) + `"]}`, "args[1]"},
		"argument of 128 KiB less": {`{"args":["x","` + strings.Repeat("a", maxArgLen-1) + `"]}`, ""},
		"too many arguments":       {`{"args":["x"` + strings.Repeat(`,"a"`, maxArgs) + `]}`, "args"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			req, err := ParseRequest(strings.NewReader(tt.body))
			if tt.wantField == "" {
				if err != nil || req == nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			var field *FieldError
			if errors.As(asRequestError(err), &field); field == nil {
				t.Fatalf("error %v names no field", err)
			}
			if tt.wantField != "-" && field.Field != tt.wantField {
				t.Errorf("field %q (%v), want %q", field.Field, err, tt.wantField)
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"command":"echo hi"}`, `{"args":["a","b"],"env":{"A":"b"}}`, `{"command":"x","timeout_ms":1e3}`,
		`{"command":"x","stdin_base64":"YQ=="}`, `{"command":"x","tty":true,"size":{"columns":1,"rows":1}}`, `{"command":"x"} x`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := ParseRequest(bytes.NewReader(b))
		if err != nil {
			if req != nil {
				t.Fatal("both a request and an error")
			}
			return
		}
		if (req.Command == "") == (len(req.Args) == 0) {
			t.Fatalf("accepted without one of command and args: %q", b)
		}
		for _, s := range append(append([]string{req.Command, req.Cwd, req.User, req.Shell}, req.Args...), childEnv(nil, os.LookupEnv, account{}, false, req.Env)...) {
			if strings.IndexByte(s, 0) >= 0 {
				t.Fatalf("a NUL byte got through: %q", b)
			}
		}
		if req.TimeoutMS < 0 || req.MaxOutputBytes < 0 {
			t.Fatalf("negative number accepted: %q", b)
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		req.StdinOpen = nil
		if _, err := ParseRequest(bytes.NewReader(again)); err != nil {
			t.Fatalf("%q was accepted, its own encoding %q is not: %v", b, again, err)
		}
	})
}

func FuzzSignalRequest(f *testing.F) {
	for _, s := range []string{`{"signal":"TERM"}`, `{"signal":15}`, `{"signal":"SIGKILL","single":true}`, `{"signal":-1}`, `{"signal":[]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req signalRequest
		if decodeStrict(bytes.NewReader(b), &req) != nil {
			return
		}
		if sig, err := parseSignal(string(req.Signal)); err == nil && (sig < 1 || sig > 31) {
			t.Fatalf("signal %d from %q", sig, b)
		}
	})
}

func TestParseSignal(t *testing.T) {
	good := map[string]int{"TERM": 15, "SIGTERM": 15, "sigint": 2, "9": 9, "31": 31, "WINCH": 28}
	for in, want := range good {
		if got, err := parseSignal(in); err != nil || int(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "32", "64", "-9", "SIG", "SIGRTMIN", "TERMINATE", "9 ", "SIGSIGTERM"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("%q: accepted as %v", in, got)
		}
	}
	if got := signalString(unix.SIGKILL); got != "SIGKILL" {
		t.Errorf("got %q", got)
	}
}

func TestChildEnvHoldsNothingOfTheServersOwn(t *testing.T) {
	own := map[string]string{"SECRET": "s", "HTTP_PROXY": "http://proxy:8443", "PATH": "/evil", "HOME": "/server", "TOKEN": "t"}
	lookup := func(name string) (string, bool) { v, ok := own[name]; return v, ok }
	got := childEnv(DefaultPassEnv, lookup, account{name: "agent", home: "/home/agent"}, true, map[string]string{"A": "b", "TERM": "dumb"})
	want := []string{"A=b", "HOME=/home/agent", "HTTP_PROXY=http://proxy:8443", "LOGNAME=agent", "PATH=" + defaultPath, "TERM=dumb", "USER=agent"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := childEnv(nil, lookup, account{home: "/"}, false, nil); !reflect.DeepEqual(got, []string{"HOME=/", "PATH=" + defaultPath}) {
		t.Errorf("with nothing to pass: %q", got)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"run": 0o755, "data": 0o644} {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct{ name, want string }{
		"in PATH":           {"run", dir + "/run"},
		"relative with dot": {"./run", dir + "/run"},
		"absolute":          {dir + "/run", dir + "/run"},
		"not executable":    {"data", ""},
		"not there":         {"nothing", ""},
		"a directory":       {"/tmp", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := lookPath("args[0]", tt.name, dir, "/nonexistent:"+dir)
			var field *FieldError
			if got != tt.want || (tt.want == "") != errors.As(err, &field) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestResolveUser(t *testing.T) {
	needRoot(t)
	tests := map[string]struct {
		in       string
		uid, gid uint32
		own, bad bool
	}{
		"server's own":   {in: "", own: true},
		"root":           {in: "root", own: true},
		"by number":      {in: "54321", uid: 54321, gid: 54321},
		"uid and gid":    {in: "54321:7", uid: 54321, gid: 7},
		"uid and group":  {in: "54321:daemon", uid: 54321, gid: 1},
		"known name":     {in: "daemon", uid: 1, gid: 1},
		"unknown name":   {in: "nobody-here", bad: true},
		"unknown group":  {in: "0:no-such-group", bad: true},
		"negative":       {in: "-1", bad: true},
		"beyond 31 bits": {in: "4294967295", bad: true},
		"empty group":    {in: "0:", bad: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := resolveUser(tt.in)
			switch {
			case tt.bad:
				if err == nil {
					t.Errorf("accepted as %+v", a)
				}
			case err != nil:
				t.Error(err)
			case tt.own:
				if a.cred != nil {
					t.Errorf("got credentials %+v", a.cred)
				}
			case a.cred == nil || a.cred.Uid != tt.uid || a.cred.Gid != tt.gid:
				t.Errorf("got %+v", a.cred)
			}
		})
	}
}

func TestOutputEventsLoseNothing(t *testing.T) {
	tests := map[string][]byte{
		"text": []byte("hello\n"), "NULs": make([]byte, 300), "quotes": []byte(`a"b\c`), "controls": []byte("\x00\x01\x1b[0m\t\r\n\x7f"),
		"umlauts": []byte("äöü €"), "not UTF-8": {0xff, 0xfe, 'a'}, "cut character": []byte("ab\xe2\x82"), "line separator": []byte("a\u2028b"),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			line := appendOutput(nil, frame.Stderr, data, 42)
			var e struct {
				Type string
				Seq  int64
				Data *string
				B64  []byte `json:"data_base64"`
			}
			decode(t, line, &e)
			got := e.B64
			if e.Data != nil {
				got = []byte(*e.Data)
			}
			if e.Type != "stderr" || e.Seq != 42 || !bytes.Equal(got, data) || (e.Data != nil) != (utf8.Valid(data) && name != "NULs") {
				t.Errorf("got %s", line)
			}
		})
	}
}

func FuzzOutputEvent(f *testing.F) {
	f.Add([]byte("hi\n"))
	f.Add([]byte("\xff\"\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		line := appendOutput(nil, frame.Stdout, data, 1)
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("not one line: %q", line)
		}
		var e struct {
			Data string
			B64  []byte `json:"data_base64"`
		}
		decode(t, line, &e)
		if got := append([]byte(e.Data), e.B64...); !bytes.Equal(got, data) {
			t.Fatalf("got %q, want %q", got, data)
		}
	})
}

func TestPartialRune(t *testing.T) {
	for in, want := range map[string]int{"": 0, "a": 0, "é": 0, "a\xc3": 1, "\xe2\x82": 2, "a\xf0\x9f\x98": 3, "\x80\x80\x80\x80": 0, "\xff": 0, "€": 0} {
		if got := partialRune([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

func TestCaptureKeepsTheBeginningOfEachStream(t *testing.T) {
	c := &capture{limit: 5}
	for _, w := range []struct {
		ch byte
		s  string
	}{{1, "abc"}, {2, "xy"}, {1, "defg"}, {1, "h"}, {2, "z"}} {
		if err := c.Write(w.ch, []byte(w.s)); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprintf("%s %v %s %v", c.stdout.data, c.stdout.truncated, c.stderr.data, c.stderr.truncated); got != "abcde true xyz false" {
		t.Error(got)
	}
}
