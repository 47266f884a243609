// Package limit bounds what one process tree may use (memory, processes, CPU
// share) and ends the whole tree, with the strongest means the container leaves
// to it: a delegated cgroup v2, a writable cgroup v1, or resource limits plus a
// watchdog that reads /proc.
package limit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Limits of one process tree. 0 means no limit.
type Limits struct {
	MemoryBytes uint64
	CPUShares   uint64 // cgroup v1 scale: 2 to 262144, 1024 is the kernel's default
	PIDs        uint64 // tasks: processes and threads
}

// Enforcement says how one limit is held.
type Enforcement struct {
	Value uint64 `json:"value"`          // 0: no limit asked for
	By    string `json:"enforced_by"`    // the kernel file or call; "nothing" when it is not enforced
	Note  string `json:"note,omitempty"` // what the reader must know
}

// Info describes a Backend.
type Info struct {
	Backend string      `json:"backend"` // cgroup2, cgroup1, rlimits
	Kernel  bool        `json:"kernel"`  // memory and process count are held by the kernel, not by polling
	Memory  Enforcement `json:"memory_bytes"`
	CPU     Enforcement `json:"cpu_shares"`
	PIDs    Enforcement `json:"pids"`
	Kill    string      `json:"kill"`            // how a tree is ended
	Notes   []string    `json:"notes,omitempty"` // why no stronger backend is in use
}

// Verdict says which limit a tree ran into.
type Verdict struct {
	OOM  bool // at least one process was killed for memory
	PIDs bool // at least one fork was refused, or the tree was killed for its size
}

// Usage is what a tree uses now.
type Usage struct {
	MemoryBytes uint64 `json:"memory_bytes"`
	PIDs        uint64 `json:"pids"`
}

// Backend makes scopes. Safe for concurrent use.
type Backend interface {
	Info() Info
	// New prepares the limits for one process tree.
	New() (Scope, error)
	// Close frees what the backend holds, after its scopes are closed.
	Close() error
}

// Scope holds one process tree.
type Scope interface {
	// Fork runs fork, which must start a process with sys, so that the process is
	// inside the scope before its first instruction. Called once.
	Fork(sys *syscall.SysProcAttr, fork func() (int, error)) (int, error)
	Verdict() Verdict
	Usage() (Usage, error)
	// Kill sends SIGKILL to everything in the scope until nothing is left or ctx
	// ends, which is an error.
	Kill(ctx context.Context) error
	// Empty tells whether no live process is left.
	Empty() (bool, error)
	Close() error
}

// Backend names for Options.Backend.
const (
	Auto    = "auto"
	Cgroup2 = "cgroup2"
	Cgroup1 = "cgroup1"
	Rlimits = "rlimits"
)

// ErrUnavailable marks a backend that cannot work here.
var ErrUnavailable = errors.New("not available")

// Options of Select.
type Options struct {
	Limits  Limits
	Backend string // Auto or one of the names
	Require bool   // refuse a backend that holds limits by polling only
	// Inherit lets the rlimits backend limit this process itself, for good, so that
	// children inherit it.
	Inherit bool
	// CgroupParent is a directory below each cgroup mount to create scopes in; by
	// default the cgroup of this process.
	CgroupParent string
}

// Select returns the strongest backend that works. The error names each one
// that was tried and what it lacks.
func Select(o Options) (Backend, error) {
	makers := []struct {
		name string
		open func(Options) (Backend, error)
	}{
		{Cgroup2, func(o Options) (Backend, error) { return OpenCgroup2(o) }},
		{Cgroup1, func(o Options) (Backend, error) { return OpenCgroup1(o) }},
		{Rlimits, func(o Options) (Backend, error) { return OpenRlimits(o) }},
	}
	var notes []string
	known := o.Backend == Auto
	for _, m := range makers {
		if o.Backend != Auto && o.Backend != m.name {
			continue
		}
		known = true
		if m.name == Rlimits && o.Require {
			notes = append(notes, "rlimits: holds limits by polling only, which --require-limits excludes")
			continue
		}
		b, err := m.open(o)
		if err == nil {
			return withNotes{b, notes}, nil
		}
		notes = append(notes, fmt.Sprintf("%s: %v", m.name, err))
	}
	if !known {
		return nil, fmt.Errorf("--limits-backend %q: want auto, cgroup2, cgroup1 or rlimits", o.Backend)
	}
	return nil, fmt.Errorf("no way to enforce limits: %s: %w", strings.Join(notes, "; "), ErrUnavailable)
}

type withNotes struct {
	Backend
	notes []string
}

func (b withNotes) Info() Info {
	i := b.Backend.Info()
	i.Notes = append(append([]string(nil), b.notes...), i.Notes...)
	return i
}

func enforced(value uint64, by, note string) Enforcement {
	if value == 0 {
		return Enforcement{By: "nothing", Note: "no limit is configured"}
	}
	return Enforcement{Value: value, By: by, Note: note}
}

// poll calls done with growing pauses until it reports true or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	pause := 500 * time.Microsecond
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}
