package namespaces_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/namespaces"
)

func TestDialWantsAnAddressThatNeedsNoResolver(t *testing.T) {
	for _, address := range []string{"", "localhost:80", "127.0.0.1", "127.0.0.1:http"} {
		if _, err := (namespaces.Of{PID: os.Getpid()}).Dial(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), "IP:port") {
			t.Errorf("Dial(%q): %v", address, err)
		}
		if _, err := (namespaces.Of{PID: os.Getpid()}).Listen(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), "IP:port") {
			t.Errorf("Listen(%q): %v", address, err)
		}
	}
}

func TestAVanishedProcessIsAnError(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	err := namespaces.Of{PID: cmd.Process.Pid, Net: true}.Do(func() error { return nil })
	if err == nil || !strings.Contains(err.Error(), "net namespace") {
		t.Errorf("got %v", err)
	}
}

// TestDoLeavesNoThreadBehind needs root for the namespaces; without it, that
// entering them is refused with the reason is what is left to test.
func TestDoLeavesNoThreadBehind(t *testing.T) {
	holder := exec.Command("sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		holder.SysProcAttr.Unshareflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	of := namespaces.Of{PID: holder.Process.Pid, Net: true, Mount: true}
	if os.Geteuid() != 0 {
		if err := of.Do(func() error { return nil }); err == nil || !strings.Contains(err.Error(), "root is needed") {
			t.Errorf("without root: %v", err)
		}
		return
	}
	// Often enough that the first thread would be among those that are used.
	for range 50 {
		var inside []net.Interface
		if err := of.Do(func() (err error) { inside, err = net.Interfaces(); return err }); err != nil {
			t.Fatal(err)
		}
		if len(inside) != 1 {
			t.Fatalf("a new network namespace has interfaces %v", inside)
		}
	}
	for _, kind := range []string{"net", "mnt"} {
		theirs, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(holder.Process.Pid), "ns", kind))
		if err != nil {
			t.Fatal(err)
		}
		// A thread ends a moment after its goroutine.
		var left []string
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if left = tasksIn(t, kind, theirs); len(left) == 0 {
				break
			}
		}
		if len(left) > 0 {
			t.Errorf("%v are still in the %s namespace", left, kind)
		}
	}
}

func tasksIn(t *testing.T, kind, namespace string) (tasks []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/task/*/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == namespace {
			tasks = append(tasks, link)
		}
	}
	return tasks
}
