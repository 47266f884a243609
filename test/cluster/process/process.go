// Package process starts, finds and stops the processes of a test cluster, so
// that a process identifier that the kernel has given to another process is
// never signalled.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// ID identifies a process beyond the reuse of its number.
type ID struct {
	PID int `json:"pid"`
	// Start is the start time in clock ticks since boot (proc_pid_stat(5),
	// field 22).
	Start uint64 `json:"start"`
}

// Find returns the identity of the living process pid.
func Find(pid int) (ID, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ID{}, err
	}
	state, start, err := parseStat(stat)
	if err != nil {
		return ID{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if state == 'Z' || state == 'X' {
		return ID{}, fmt.Errorf("process %d has ended: %w", pid, os.ErrProcessDone)
	}
	return ID{PID: pid, Start: start}, nil
}

// parseStat reads the state and the start time. The command in parentheses may
// itself hold spaces and parentheses, so fields count from the last one.
func parseStat(stat []byte) (state byte, start uint64, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, 0, errors.New("stat has no command")
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("stat has %d fields after the command, want 20 or more", len(fields))
	}
	if len(fields[0]) != 1 || !unicode.IsLetter(rune(fields[0][0])) {
		return 0, 0, fmt.Errorf("state is %q, want one letter", fields[0])
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time: %w", err)
	}
	return fields[0][0], start, nil
}

// Alive says whether this very process still runs.
func (id ID) Alive() bool {
	now, err := Find(id.PID)
	return err == nil && now == id
}

// Signal sends sig to this very process; os.ErrProcessDone when it has ended.
func (id ID) Signal(sig unix.Signal) error {
	// The descriptor pins the process, so nothing can take its number between
	// the check and the signal.
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", id.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !id.Alive() {
		return os.ErrProcessDone
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %v to %d: %w", sig, id.PID, err)
	}
	return nil
}

// Stop ends the processes: SIGTERM, SIGKILL after grace (0: at once), and
// returns when they are gone.
func Stop(ctx context.Context, grace time.Duration, ids ...ID) error {
	first := unix.SIGTERM
	if grace == 0 {
		first = unix.SIGKILL
	}
	if err := signalAll(ids, first); err != nil {
		return err
	}
	if grace > 0 {
		if left := wait(ctx, grace, ids); len(left) == 0 {
			return nil
		}
		if err := signalAll(ids, unix.SIGKILL); err != nil {
			return err
		}
	}
	// A killed process can hang in the kernel for a moment, not for long.
	if left := wait(ctx, 10*time.Second, ids); len(left) > 0 {
		return fmt.Errorf("processes %v did not end after SIGKILL", left)
	}
	return nil
}

func signalAll(ids []ID, sig unix.Signal) error {
	var errs []error
	for _, id := range ids {
		if err := id.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func wait(ctx context.Context, limit time.Duration, ids []ID) []ID {
	ids = slices.Clone(ids)
	deadline := time.Now().Add(limit)
	for {
		ids = slices.DeleteFunc(ids, func(id ID) bool { return !id.Alive() })
		if len(ids) == 0 || ctx.Err() != nil || time.Now().After(deadline) {
			return ids
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WithEnv returns the living processes whose environment at start held the
// assignment kv, except the caller itself.
func WithEnv(kv string) ([]ID, error) {
	return matching("environ", func(content []byte) bool {
		return slices.ContainsFunc(bytes.Split(content, []byte{0}), func(entry []byte) bool {
			return string(entry) == kv
		})
	})
}

func matching(file string, match func([]byte) bool) ([]ID, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var ids []ID
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, err := Find(pid)
		if err != nil {
			continue
		}
		// Read after the identity, so that the contents belong to it or to a
		// successor that the identity check before the signal tells apart.
		content, err := os.ReadFile(filepath.Join("/proc", entry.Name(), file))
		if err == nil && match(content) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
