package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is one network namespace and the files that its programs see in place of the
// machine's.
type Namespace struct {
	name  string
	binds map[string]string // path seen -> path it shows
}

// Bind makes programs in the namespace see source at target, a file or a directory that
// exists on the machine.
func (n *Namespace) Bind(source, target string) { n.binds[target] = source }

func (n *Namespace) path() string { return filepath.Join(netnsDir, n.name) }

func (n *Namespace) ip(ctx context.Context, args ...string) error {
	return ip(ctx, append([]string{"-n", n.name}, args...)...)
}

func (n *Namespace) up(ctx context.Context, device string, addresses []netip.Prefix) error {
	for _, a := range addresses {
		if err := n.ip(ctx, "address", "add", a.String(), "dev", device); err != nil {
			return err
		}
	}
	return n.ip(ctx, "link", "set", device, "up")
}

// Route sends prefix through via.
func (n *Namespace) Route(ctx context.Context, prefix netip.Prefix, via netip.Addr) error {
	return n.ip(ctx, "route", "add", prefix.String(), "via", via.String())
}

func (n *Namespace) sysctl(values map[string]string) error {
	return n.Do(func() error {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			file := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
			if err := os.WriteFile(file, []byte(values[key]), 0o644); err != nil {
				return fmt.Errorf("sysctl %s: %w", key, err)
			}
		}
		return nil
	})
}

// Do runs fn on a thread inside the namespace. Sockets that fn opens stay in it;
// goroutines that fn starts do not run in it.
func (n *Namespace) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := n.enter(); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func (n *Namespace) enter() error { return enter(n.path()) }

func enter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering %s: %w", path, err)
	}
	return nil
}

// Listen opens a TCP listener in the namespace; address is IP:port.
func (n *Namespace) Listen(ctx context.Context, address string) (l net.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}

// ListenPacket opens a UDP socket in the namespace; address is IP:port.
func (n *Namespace) ListenPacket(ctx context.Context, address string) (c net.PacketConn, err error) {
	err = n.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
		return err
	})
	return c, err
}

// Dial connects from the namespace; address is IP:port.
func (n *Namespace) Dial(ctx context.Context, address string) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, "tcp", address)
		return err
	})
	return c, err
}

// WaitListening waits until something accepts connections on address.
func (n *Namespace) WaitListening(ctx context.Context, address string) error {
	for {
		c, err := n.Dial(ctx, address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s: %w", address, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// endAll kills the processes that are in the namespace. Only this package's namespaces
// have them, so nothing of anybody else can be hit.
func (n *Namespace) endAll(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "ip", "netns", "pids", n.name).Output()
	if err != nil {
		return fmt.Errorf("ip netns pids %s: %w", n.name, err)
	}
	var errs []error
	for field := range strings.FieldsSeq(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("ip netns pids: %w", err)
		}
		if pid == os.Getpid() {
			continue // a thread of ours that is about to end
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
