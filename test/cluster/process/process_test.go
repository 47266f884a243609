package process

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	tests := map[string]struct {
		stat  string
		state byte
		start uint64
		fails bool
	}{
		"plain":                  {stat: "12 (sh) S" + rest, state: 'S', start: 4242},
		"blanks and parentheses": {stat: "12 (a) Z (b) R" + rest, state: 'R', start: 4242},
		"no command":             {stat: "12 sh S 1 2", fails: true},
		"too short":              {stat: "12 (sh) S 1 2 3", fails: true},
		"start is no number":     {stat: "12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x", fails: true},
		"state is no letter":     {stat: "12 (sh) \x00\x10" + rest, fails: true},
		"state is a word":        {stat: "12 (sh) SR" + rest, fails: true},
		"empty":                  {fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			state, start, err := parseStat([]byte(test.stat))
			if (err != nil) != test.fails || state != test.state || start != test.start {
				t.Errorf("got %q, %d, %v", state, start, err)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	f.Add([]byte(") "))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if state, _, err := parseStat(stat); err == nil && state == 0 {
			t.Errorf("no state and no error for %q", stat)
		}
	})
}

// child starts a process that ignores SIGTERM when stubborn.
func child(t *testing.T, stubborn bool, env ...string) ID {
	t.Helper()
	script := "echo ready; while :; do sleep 0.05; done"
	if stubborn {
		script = "trap '' TERM; " + script
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestStopEndsAProcessAlsoOneThatIgnoresTheRequest(t *testing.T) {
	for name, stubborn := range map[string]bool{"willing": false, "stubborn": true} {
		t.Run(name, func(t *testing.T) {
			id := child(t, stubborn)
			if err := Stop(t.Context(), 300*time.Millisecond, id); err != nil {
				t.Fatal(err)
			}
			if id.Alive() {
				t.Error("still alive")
			}
			if err := Stop(t.Context(), 0, id); err != nil {
				t.Errorf("stopping it again: %v", err)
			}
		})
	}
}

func TestAReusedNumberIsNotSignalled(t *testing.T) {
	id := child(t, false)
	earlier := ID{PID: id.PID, Start: id.Start - 1}
	if earlier.Alive() {
		t.Error("another start time counts as the same process")
	}
	if err := earlier.Signal(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal: %v, want os.ErrProcessDone", err)
	}
	if err := Stop(t.Context(), 0, earlier); err != nil {
		t.Error(err)
	}
	if !id.Alive() {
		t.Error("the process that got the number was killed")
	}
}

func TestWithEnvFindsExactlyTheMarkedProcesses(t *testing.T) {
	marked := child(t, false, "PROCESS_TEST_MARK=/run/a")
	child(t, false, "PROCESS_TEST_MARK=/run/ab")
	child(t, false, "OTHER=PROCESS_TEST_MARK=/run/a")
	ids, err := WithEnv("PROCESS_TEST_MARK=/run/a")
	if err != nil {
		t.Fatal(err)
	}
	// The shell's own children carry the mark too.
	if !slices.Contains(ids, marked) {
		t.Errorf("%v lacks %v", ids, marked)
	}
	for _, id := range ids {
		if id.PID == os.Getpid() {
			t.Error("the caller itself is in the list")
		}
	}
}
