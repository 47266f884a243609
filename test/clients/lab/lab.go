package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// namePrefix marks the namespaces of this package; the number that follows is the process
// that made them, so that a later run finds what a killed one left behind.
const namePrefix = "sbe-lab-"

// netnsDir is where ip-netns(8) keeps its namespaces.
const netnsDir = "/run/netns"

// Lab is a set of namespaces. Close removes them.
type Lab struct {
	namespaces []*Namespace
	links      int
}

// New needs root and the ip command of iproute2. It removes what runs that were killed left.
func New(ctx context.Context) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run this as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("the ip command is missing: install the Debian package iproute2")
	}
	return &Lab{}, reap(ctx)
}

// reap deletes the namespaces of runs whose process is gone.
func reap(ctx context.Context) error {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namePrefix)
		if !ours {
			continue
		}
		number, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(number)
		if err != nil || alive(pid) {
			continue
		}
		if err := ip(ctx, "netns", "delete", e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func alive(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return err == nil
}

// Namespace adds a network namespace with its loopback up. sysctls are set inside it.
func (l *Lab) Namespace(ctx context.Context, name string, sysctls map[string]string) (*Namespace, error) {
	n := &Namespace{name: namePrefix + strconv.Itoa(os.Getpid()) + "-" + name, binds: map[string]string{}}
	if err := ip(ctx, "netns", "add", n.name); err != nil {
		return nil, err
	}
	l.namespaces = append(l.namespaces, n)
	if err := n.ip(ctx, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return n, n.sysctl(sysctls)
}

// Link joins two namespaces by a veth pair; each end gets its addresses.
func (l *Lab) Link(ctx context.Context, a *Namespace, toA []netip.Prefix, b *Namespace, toB []netip.Prefix) error {
	l.links++
	nameA, nameB := fmt.Sprintf("a%d", l.links), fmt.Sprintf("b%d", l.links)
	err := ip(ctx, "-n", a.name, "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.name)
	if err != nil {
		return err
	}
	return errors.Join(a.up(ctx, nameA, toA), b.up(ctx, nameB, toB))
}

// Close ends what still runs in the namespaces and deletes them.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	for _, n := range slices.Backward(l.namespaces) {
		errs = append(errs, n.endAll(ctx), ip(ctx, "netns", "delete", n.name))
	}
	l.namespaces = nil
	return errors.Join(errs...)
}

func ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
