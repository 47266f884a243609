// Package namespaces runs code and opens sockets inside the namespaces of
// another process.
package namespaces

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Of names the namespaces of a process.
type Of struct {
	PID int
	// Net and Mount say which of its namespaces Do enters.
	Net, Mount bool
}

// Do runs fn on an OS thread of its own that has entered the namespaces.
// Processes that fn starts inherit them; goroutines that fn starts do not.
func (o Of) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread outlives its goroutine, and what it has entered shows
			// as the whole process's in /proc/self. Keep it busy meanwhile.
			err := o.Do(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the thread cannot be given back to the scheduler, and
		// ends together with the goroutine.
		err := o.enter()
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

func (o Of) enter() error {
	if o.Net {
		if err := o.set("net", unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	if !o.Mount {
		return nil
	}
	// setns(2): a thread that shares its root and working directory with others
	// cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare(CLONE_FS): %w", err)
	}
	return o.set("mnt", unix.CLONE_NEWNS)
}

func (o Of) set(kind string, flag int) error {
	path := filepath.Join("/proc", strconv.Itoa(o.PID), "ns", kind)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s namespace: %w", kind, err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), flag); err != nil {
		return fmt.Errorf("entering %s (root is needed): %w", path, err)
	}
	return nil
}

// Dial connects from inside the network namespace. The address must be an IP
// and a port, since name resolution would happen on other threads.
func (o Of) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialling inside a namespace wants IP:port: %w", err)
	}
	var conn net.Conn
	err := Of{PID: o.PID, Net: true}.Do(func() (err error) {
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a TCP listener inside the network namespace; the address must
// be an IP and a port.
func (o Of) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listening inside a namespace wants IP:port: %w", err)
	}
	var listener net.Listener
	err := Of{PID: o.PID, Net: true}.Do(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return listener, err
}
