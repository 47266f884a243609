package reaper

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("os/signal.loop")) }

func start(t testing.TB, opts ...Option) *Reaper {
	t.Helper()
	r := New(opts...)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func sh(script string) func() (int, error) {
	return func() (int, error) {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		defer func() { _ = null.Close() }()
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
	}
}

func wait(t testing.TB, c *Child) Status {
	t.Helper()
	select {
	case <-c.Done():
		return c.Status()
	case <-time.After(20 * time.Second):
		_ = c.SignalGroup(syscall.SIGKILL)
		t.Fatal("the process did not end")
		return Status{}
	}
}

func TestStatus(t *testing.T) {
	r := start(t)
	tests := map[string]struct {
		script string
		want   Status
	}{
		"success": {"exit 0", Status{}},
		"failure": {"exit 7", Status{Code: 7}},
		"killed":  {"kill -9 $$", Status{Signal: syscall.SIGKILL}},
		"term":    {"kill -TERM $$", Status{Signal: syscall.SIGTERM}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := r.Spawn(sh(tt.script))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Release()
			if got := wait(t, c); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestEveryStatusOfManyConcurrentProcessesIsDelivered(t *testing.T) {
	r := start(t, WithOrphans())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				code := (i*25 + j) % 250
				c, err := r.Spawn(sh("exit " + itoa(code)))
				if err != nil {
					t.Error(err)
					return
				}
				if got := wait(t, c); got.Code != code {
					t.Errorf("got %+v, want code %d", got, code)
				}
				c.Release()
			}
		})
	}
	wg.Wait()
	if n := r.Orphans(); n != 0 {
		t.Errorf("%d of our own children were taken for orphans", n)
	}
}

func itoa(n int) string {
	if n >= 10 {
		return itoa(n/10) + string(rune('0'+n%10))
	}
	return string(rune('0' + n))
}

func TestFailedExecReturnsItsErrorAndLeavesNoZombie(t *testing.T) {
	r := start(t, WithOrphans())
	_, err := r.Spawn(func() (int, error) {
		return syscall.ForkExec("/nonexistent", []string{"x"}, &syscall.ProcAttr{})
	})
	if !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("got %v", err)
	}
	if len(r.children) != 0 {
		t.Errorf("registered: %v", r.children)
	}
}

func TestPidIsHeldUntilReleaseAndThenRefused(t *testing.T) {
	r := start(t)
	c, err := r.Spawn(sh("exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	if err := syscall.Kill(c.Pid(), 0); err != nil {
		t.Errorf("the pid was freed before Release: %v", err)
	}
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal to a zombie: %v", err)
	}
	c.Release()
	c.Release()
	if err := c.Signal(syscall.SIGTERM); !errors.Is(err, ErrReleased) {
		t.Errorf("got %v, want ErrReleased", err)
	}
	if err := c.SignalGroup(syscall.SIGTERM); !errors.Is(err, ErrReleased) {
		t.Errorf("got %v, want ErrReleased", err)
	}
}

func TestOrphansAreReapedAlsoWhileAZombieIsHeld(t *testing.T) {
	r := start(t, WithOrphans())
	held, err := r.Spawn(sh("exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, held)
	// A child that the reaper does not know stands for an adopted orphan.
	orphan, err := sh("exit 0")()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(orphan, 0) == nil {
		if time.Now().After(deadline) {
			t.Fatal("the orphan is still a zombie")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := held.Status(); got.Code != 3 {
		t.Errorf("the held status changed: %+v", got)
	}
	held.Release()
	if n := r.Orphans(); n != 1 {
		t.Errorf("%d orphans, want 1", n)
	}
}
