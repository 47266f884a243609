package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
	"github.com/sandbox-egress/sandbox-egress/internal/process/reaper"
	"github.com/sandbox-egress/sandbox-egress/internal/process/ring"
)

// Why the server ended a process.
const (
	killTimeout    = "timeout"
	killCaller     = "caller"
	killDisconnect = "disconnect"
	killShutdown   = "shutdown"
	killMemory     = "memory_limit"
	killPIDs       = "pids_limit"
)

// Kinds of process.
const (
	kindExecute = "execute"
	kindProcess = "process"
)

// killPatience bounds one attempt to empty a scope; attempts repeat while the
// process lives (a task in uninterruptible sleep cannot be killed at once).
const killPatience = 5 * time.Second

// Result is how a process ended.
type Result struct {
	ExitCode   int    `json:"exit_code"` // 128 + number when a signal ended it
	Signal     string `json:"signal"`
	TimedOut   bool   `json:"timed_out"`
	OOMKilled  bool   `json:"oom_killed"`
	KillReason string `json:"kill_reason,omitempty"` // timeout, caller, disconnect, shutdown, memory_limit, pids_limit
	DurationMS int64  `json:"duration_ms"`
}

// spec is a checked request with everything resolved.
type spec struct {
	path    string
	argv    []string
	env     []string
	dir     string
	account account
	stdin   []byte
	open    bool // stdin stays open
	tty     bool
	size    Size
	timeout time.Duration // 0: none
	grace   time.Duration
	keep    bool
}

// Process is one process tree under a Manager.
type Process struct {
	id      string
	kind    string
	spec    spec
	created time.Time

	child *reaper.Child
	scope limit.Scope
	log   *ring.Log // nil for kindExecute
	out   sink
	in    *input   // nil without stdin
	pty   *os.File // nil without a terminal
	pumps []*pump

	kills chan killOrder
	done  chan struct{} // closed when result is final and the output complete

	mu     sync.Mutex
	reason string
	result *Result
	ended  time.Time
}

type killOrder struct {
	reason string
	grace  time.Duration
}

// Done is closed once the process has ended and its output is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Result is nil before Done is closed.
func (p *Process) Result() *Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

// Kill asks for the end of the process: TERM to its group, KILL after grace, then
// everything in its scope. The first reason is the one reported; a later call can
// shorten the grace. It does not wait for the end.
func (p *Process) Kill(reason string, grace time.Duration) {
	select {
	case p.kills <- killOrder{reason, grace}:
	case <-p.done:
	}
}

// Signal sends a signal to the process group, or to the process alone.
func (p *Process) Signal(sig syscall.Signal, single bool) error {
	select {
	case <-p.child.Done():
		return reaper.ErrReleased
	default:
	}
	if single {
		return p.child.Signal(sig)
	}
	return p.child.SignalGroup(sig)
}

// Resize sets the size of the terminal; the kernel tells the foreground group by
// SIGWINCH.
func (p *Process) Resize(s Size) error {
	if p.pty == nil {
		return errNoTTY
	}
	return setSize(p.pty, s)
}

var errNoTTY = errors.New("the process has no terminal: start it with tty")

// marker is what a Scope that recognises orphans by their environment wants.
type marker interface{ SetMark(entry string) }

// launch forks the process. On error nothing is left behind, and the scope is
// still the caller's.
func (p *Process) launch(r *reaper.Reaper, drain time.Duration, count func(byte, int)) error {
	sys := &syscall.SysProcAttr{Setsid: true, Credential: p.spec.account.cred}
	mark := limit.MarkEnv + "=" + p.id
	if m, ok := p.scope.(marker); ok {
		m.SetMark(mark)
	}
	attr := &syscall.ProcAttr{Dir: p.spec.dir, Env: append(p.spec.env, mark), Sys: sys}

	io, err := p.openIO(attr, drain, count)
	if err != nil {
		return fmt.Errorf("open the process' streams: %w", err)
	}
	defer io.closeChild()
	p.child, err = r.Spawn(func() (int, error) {
		return p.scope.Fork(sys, func() (int, error) {
			return syscall.ForkExec(p.spec.path, p.spec.argv, attr) //nolint:gosec // to run what callers ask for is the purpose
		})
	})
	if err != nil {
		io.closeParent()
		return startError(err, p.spec)
	}
	preferForOOM(p.child.Pid())
	return nil
}

// preferForOOM makes a child a likelier victim than this server when the
// container as a whole is out of memory. Best effort: the limits of the child
// itself do not depend on it.
func preferForOOM(pid int) {
	f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString("1000")
	_ = f.Close()
}

// startError tells a request that cannot work from a machine that is full.
func startError(err error, s spec) error {
	field := "args[0]"
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EPERM) && s.account.cred != nil:
		return fieldErrorf("user", "cannot become uid %d: %v", s.account.uid, err)
	case errors.Is(err, unix.ENOENT):
		return fieldErrorf(field, "%.200q: its interpreter or cwd does not exist", s.path)
	case errors.Is(err, unix.E2BIG):
		return fieldErrorf("args", "arguments and environment are too long for execve(2)")
	default:
		return fieldErrorf(field, "%.200q: %v", s.path, err)
	}
}

// childIO is both ends of the streams while a process is started.
type childIO struct{ child, parent []*os.File }

func (c *childIO) closeChild()  { closeAll(c.child) }
func (c *childIO) closeParent() { closeAll(c.parent) }

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// supervise runs until the process has ended, and hands over to finish.
func (p *Process) supervise(ctx context.Context) {
	var timeout, grace <-chan time.Time
	if p.spec.timeout > 0 {
		t := time.NewTimer(p.spec.timeout)
		defer t.Stop()
		timeout = t.C
	}
	begun := false
	begin := func(o killOrder) {
		p.mu.Lock()
		if p.reason == "" {
			p.reason = o.reason
		}
		p.mu.Unlock()
		if !begun {
			begun = true
			// CONT: a stopped process handles TERM only when it runs.
			_ = p.child.SignalGroup(unix.SIGTERM)
			_ = p.child.SignalGroup(unix.SIGCONT)
		}
		grace = time.After(o.grace)
	}
	for {
		select {
		case <-p.child.Done():
			return
		case <-timeout:
			timeout = nil
			begin(killOrder{killTimeout, p.spec.grace})
		case o := <-p.kills:
			begin(o)
		case <-grace:
			p.killAll(ctx)
			grace = time.After(time.Second)
		}
	}
}

func (p *Process) killAll(ctx context.Context) bool {
	_ = p.child.SignalGroup(unix.SIGKILL)
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	return p.scope.Kill(ctx) == nil
}

// finish collects the end of a process whose main process has ended. It reports
// whether the scope is empty.
func (p *Process) finish(ctx context.Context, now time.Time, pumps *sync.WaitGroup) (empty bool) {
	if p.spec.keep {
		e, err := p.scope.Empty()
		empty = err == nil && e
	} else {
		empty = p.killAll(ctx)
	}
	for _, pump := range p.pumps {
		pump.end()
	}
	pumps.Wait()
	if p.in != nil {
		p.in.Close()
	}
	st, verdict := p.child.Status(), p.scope.Verdict()
	r := &Result{ExitCode: st.Code, Signal: signalString(st.Signal), DurationMS: now.Sub(p.created).Milliseconds()}
	if st.Signal != 0 {
		r.ExitCode = 128 + int(st.Signal)
	}
	p.mu.Lock()
	r.KillReason = p.reason
	r.TimedOut = p.reason == killTimeout
	r.OOMKilled = verdict.OOM
	if r.KillReason == "" && st.Signal == unix.SIGKILL {
		switch {
		case verdict.OOM:
			r.KillReason = killMemory
		case verdict.PIDs:
			r.KillReason = killPIDs
		}
	}
	p.result, p.ended = r, now
	p.mu.Unlock()
	p.out.Close()
	return empty
}
