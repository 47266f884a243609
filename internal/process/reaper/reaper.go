// Package reaper waits for child processes from one place.
//
// A process that is PID 1, or a child subreaper (prctl(2)
// PR_SET_CHILD_SUBREAPER), inherits every orphan of its tree and has to reap
// it. A bare wait4(-1) loop would also swallow the exit status of the children
// that the program started itself and still wants to know about. The Reaper
// therefore only looks (waitid(2) with WNOWAIT), keeps the children it started
// as zombies until their owner has read the status and let go of the pid, and
// reaps everything else at once.
//
// Keeping the zombie has a second use: as long as it exists neither its pid nor
// its process group number can be given to another process, so a late
// kill(-pgid) never hits a stranger.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrReleased is returned by the signal methods of a Child whose pid was given
// back to the kernel.
var ErrReleased = errors.New("process has been reaped")

// sweepInterval is the safety net for a SIGCHLD that the runtime dropped: os/signal
// does not block when its channel is full.
const sweepInterval = time.Second

// hiddenScanInterval bounds how often the process table is read when a zombie
// that an owner still holds hides orphans from waitid(P_ALL).
const hiddenScanInterval = 100 * time.Millisecond

// Status is how a process ended.
type Status struct {
	Code   int            // exit code; 0 when Signal is set
	Signal syscall.Signal // 0 when the process exited by itself
	Core   bool           // the kernel wrote a core dump
}

// Child is one process that Spawn started.
type Child struct {
	reaper *Reaper
	pid    int
	done   chan struct{}

	// Guarded by reaper.mu.
	exited   bool
	released bool
	status   Status
}

// Reaper is safe for concurrent use. The zero value is not usable: call New.
type Reaper struct {
	orphans bool
	kick    chan struct{}

	// forks is held for reading while a fork is under way and for writing while
	// zombies are looked at: between fork and registration a child must not be
	// mistaken for an orphan, and a failed exec is waited for by the runtime.
	forks sync.RWMutex

	mu       sync.Mutex
	children map[int]*Child
	reaped   uint64
	lastScan time.Time
}

// Option changes how a Reaper works.
type Option func(*Reaper)

// WithOrphans makes the Reaper collect zombies that it did not start. A program
// that starts processes by other means (os/exec) must not set it.
func WithOrphans() Option { return func(r *Reaper) { r.orphans = true } }

// New returns a Reaper; nothing is reaped before Run is called.
func New(opts ...Option) *Reaper {
	r := &Reaper{kick: make(chan struct{}, 1), children: map[int]*Child{}}
	for _, o := range opts {
		o(r)
	}
	return r
}

// Run handles SIGCHLD until ctx ends. It must run for Child.Done to be closed.
func (r *Reaper) Run(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		again := r.sweep()
		var retry <-chan time.Time
		if again {
			retry = time.After(hiddenScanInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-sigs:
		case <-r.kick:
		case <-tick.C:
		case <-retry:
		}
	}
}

// Orphans returns how many processes that it had not started the Reaper reaped.
func (r *Reaper) Orphans() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reaped
}

// Spawn calls fork, which starts a process and returns its pid, and registers
// the process. The error is fork's own.
func (r *Reaper) Spawn(fork func() (int, error)) (*Child, error) {
	r.forks.RLock()
	pid, err := fork()
	if err != nil {
		r.forks.RUnlock()
		return nil, err
	}
	c := &Child{reaper: r, pid: pid, done: make(chan struct{})}
	r.mu.Lock()
	r.children[pid] = c
	r.mu.Unlock()
	r.forks.RUnlock()
	// The SIGCHLD of a very short process may have been handled already.
	r.wake()
	return c, nil
}

func (r *Reaper) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// sweep marks the registered children that ended and reaps orphans. It reports
// whether orphans may be left, so that the caller comes back soon.
func (r *Reaper) sweep() bool {
	r.forks.Lock()
	defer r.forks.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, c := range r.children {
		if c.exited {
			continue
		}
		if st, ok := peek(pid); ok {
			c.status, c.exited = st, true
			close(c.done)
		}
	}
	if !r.orphans {
		return false
	}
	for {
		pid, ok := peekAny()
		if !ok {
			return false
		}
		if _, held := r.children[pid]; held {
			return r.reapHidden()
		}
		r.reap(pid)
	}
}

// reapHidden finds orphaned zombies by reading /proc: waitid(P_ALL, WNOWAIT)
// always returns the same first zombie, and that one is held by its owner.
func (r *Reaper) reapHidden() bool {
	if time.Since(r.lastScan) < hiddenScanInterval {
		return true
	}
	r.lastScan = time.Now()
	for _, pid := range zombieChildren(os.Getpid()) {
		if _, held := r.children[pid]; !held {
			r.reap(pid)
		}
	}
	return true
}

func (r *Reaper) reap(pid int) {
	var ws unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG|unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && got == pid {
			r.reaped++
		}
		return
	}
}

// Pid is valid for signalling only through the methods of Child.
func (c *Child) Pid() int { return c.pid }

// Done is closed once the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status is meaningful after Done is closed.
func (c *Child) Status() Status {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	return c.status
}

// Signal sends sig to the process; no error when it has ended but is not
// released. ErrReleased after Release.
func (c *Child) Signal(sig syscall.Signal) error { return c.kill(c.pid, sig) }

// SignalGroup sends sig to the process group that the process leads. The caller
// must have started it as a group leader. A group that is empty is no error.
func (c *Child) SignalGroup(sig syscall.Signal) error { return c.kill(-c.pid, sig) }

func (c *Child) kill(target int, sig syscall.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.released {
		return ErrReleased
	}
	if err := unix.Kill(target, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %v to %d: %w", sig, target, err)
	}
	return nil
}

// Release reaps the zombie and frees its pid. It must follow Done; calling it
// again does nothing.
func (c *Child) Release() {
	r := c.reaper
	r.forks.RLock()
	r.mu.Lock()
	if c.exited && !c.released {
		c.released = true
		delete(r.children, c.pid)
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(c.pid, &ws, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	r.mu.Unlock()
	r.forks.RUnlock()
	if r.orphans {
		r.wake()
	}
}
