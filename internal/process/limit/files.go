package limit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// writeFile writes a control file that must exist: os.WriteFile would create it
// in a directory that is no cgroup.
func writeFile(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// readCounter returns the number after key in a "key value" file; 0 without it.
func readCounter(name, key string) (uint64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == key {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, nil
}

func readUint(name string) (uint64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// readPids lists the processes of a cgroup but this one.
func readPids(dir string) ([]int, error) {
	b, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %q is no pid", dir, f)
		}
		// 0 is a process of an outer pid namespace: not ours to signal.
		if pid > 0 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killPids sends SIGKILL to what is in dir until nothing is left.
func killPids(ctx context.Context, dir string) error {
	left := 0
	err := poll(ctx, func() (bool, error) {
		pids, err := readPids(dir)
		if err != nil {
			return false, err
		}
		left = len(pids)
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		return left == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%d processes left in %s: %w", left, dir, err)
	}
	return nil
}

// removeDir removes a cgroup; the kernel answers EBUSY for a moment after the
// last task has gone.
func removeDir(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		last = os.Remove(dir)
		return last == nil || errors.Is(last, os.ErrNotExist), nil
	})
	if err != nil {
		return last
	}
	return nil
}

func randomName() string { return strings.ToLower(rand.Text()[:12]) }
