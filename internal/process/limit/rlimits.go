package limit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watchInterval is how often the watchdog looks. A process that touches 2 GB of
// new memory a second overshoots by 100 MB in it; RLIMIT_DATA bounds what it misses.
const watchInterval = 50 * time.Millisecond

// nprocRoom is added to RLIMIT_NPROC. It counts the processes of a user id in the
// whole user namespace, other containers of the node included, so a limit without
// room would refuse every fork where many pods share an id. It is the backstop for
// what a fork bomb does between two looks of the watchdog.
const nprocRoom = 4096

// MarkEnv is the environment variable by which orphans are recognised.
const MarkEnv = "SANDBOX_PROCESS_ID"

// rlimits bounds trees without cgroups: RLIMIT_DATA and RLIMIT_NPROC per
// process, and a watchdog that sums up the tree. This process must be a subreaper
// (or PID 1), or descendants whose parent dies are lost to it.
type rlimits struct {
	limits Limits
	ptrace bool
	// What children inherit from this process, and need not be given each.
	inheritsData, inheritsNproc bool
	prlimit                     func(pid, resource int, v uint64) error
	interval                    time.Duration

	mu      sync.Mutex
	live    map[*scopeR]bool
	owned   owned
	refused error // the last prlimit(2) that failed
	wake    chan struct{}
	stop    chan struct{}
	done    sync.WaitGroup
}

// OpenRlimits needs a readable /proc and makes this process a child subreaper.
func OpenRlimits(o Options) (Backend, error) {
	table, err := readTable()
	if err != nil {
		return nil, fmt.Errorf("the watchdog needs /proc: %w", err)
	}
	if _, ok := table[os.Getpid()]; !ok {
		return nil, fmt.Errorf("/proc does not show this process: %w", ErrUnavailable)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become child subreaper: %w", err)
	}
	b := &rlimits{
		limits: o.Limits, ptrace: ptraceWorks(), prlimit: setRlimit, interval: watchInterval,
		live: map[*scopeR]bool{}, wake: make(chan struct{}, 1), stop: make(chan struct{}),
		owned: owned{self: os.Getpid(), roots: map[int]*scopeR{}},
	}
	if o.Inherit {
		if err := b.inherit(); err != nil {
			return nil, err
		}
	}
	b.done.Go(b.watch)
	return b, nil
}

// inherit sets the limits on this process. That needs no CAP_SYS_RESOURCE for
// children of other users and leaves no moment without limits. RLIMIT_NPROC would
// also stop this process from making threads, which ends a Go program, but for the
// root user of the initial user namespace, to whom it does not apply.
func (b *rlimits) inherit() error {
	if b.limits.MemoryBytes > 0 {
		if err := b.prlimit(0, unix.RLIMIT_DATA, b.dataLimit()); err != nil {
			return fmt.Errorf("set RLIMIT_DATA: %w", err)
		}
		b.inheritsData = true
	}
	if b.limits.PIDs > 0 && os.Getuid() == 0 && initialUserNamespace() {
		if err := b.prlimit(0, unix.RLIMIT_NPROC, b.limits.PIDs+nprocRoom); err != nil {
			return fmt.Errorf("set RLIMIT_NPROC: %w", err)
		}
		b.inheritsNproc = true
	}
	return nil
}

// initialUserNamespace: the initial one maps all ids to themselves,
// user_namespaces(7).
func initialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}

// perChild tells whether a child has to be given limits.
func (b *rlimits) perChild() bool {
	return b.limits.MemoryBytes > 0 && !b.inheritsData || b.limits.PIDs > 0 && !b.inheritsNproc
}

func setRlimit(pid, resource int, v uint64) error {
	return unix.Prlimit(pid, resource, &unix.Rlimit{Cur: v, Max: v}, nil)
}

// ptraceWorks starts this very program stopped at its first instruction and
// kills it there.
func ptraceWorks() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = null.Close() }()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"sandbox-api-probe"}, &syscall.ProcAttr{ //nolint:gosec // this program itself
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return false
	}
	stopped := waitStop(pid)
	_ = unix.Kill(pid, unix.SIGKILL)
	_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	return stopped
}

// waitStop waits until the traced child has stopped after its exec; false when it
// ended instead. The exit status stays with the reaper.
func waitStop(pid int) bool {
	for {
		var si unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &si, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		const cldTrapped, cldStopped = 4, 5
		return err == nil && (si.Code == cldTrapped || si.Code == cldStopped)
	}
}

func (b *rlimits) Info() Info {
	l := b.limits
	i := Info{
		Backend: Rlimits,
		Kill:    "descendants are stopped, then killed, until none is left",
		Memory: enforced(l.MemoryBytes, "watchdog",
			fmt.Sprintf("resident memory of the tree, looked at every %v; RLIMIT_DATA holds each process at %d bytes", b.interval, b.dataLimit())),
		CPU: enforced(l.CPUShares, "nothing", "CPU shares need a cgroup"),
		PIDs: enforced(l.PIDs, "watchdog",
			fmt.Sprintf("tasks of the tree, looked at every %v, an eighth over is let pass; RLIMIT_NPROC holds each user but root at %d, other containers included", b.interval, b.limits.PIDs+nprocRoom)),
	}
	if b.perChild() && !b.ptrace {
		i.Notes = append(i.Notes, "ptrace(2) is not allowed here: resource limits apply a moment after a process has started")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused != nil {
		i.Notes = append(i.Notes, fmt.Sprintf("resource limits could not be set (%v), only the watchdog holds: run as the user of the processes or add CAP_SYS_RESOURCE", b.refused))
	}
	return i
}

// dataLimit leaves room above the limit, so that the watchdog sees the tree
// cross it and can report an OOM, instead of malloc failing first.
func (b *rlimits) dataLimit() uint64 {
	return b.limits.MemoryBytes + max(b.limits.MemoryBytes/4, 256<<20)
}

func (b *rlimits) New() (Scope, error) {
	s := &scopeR{backend: b}
	b.mu.Lock()
	b.live[s] = true
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return s, nil
}

// Close ends what is left of every tree.
func (b *rlimits) Close() error {
	close(b.stop)
	b.done.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	_, err := b.scan()
	return err
}

// watch looks at the trees while there are any, and sleeps otherwise.
func (b *rlimits) watch() {
	tick := time.NewTicker(b.interval)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
		b.mu.Lock()
		n := len(b.live) + len(b.owned.stray)
		if n > 0 {
			b.look()
		}
		b.mu.Unlock()
		if n > 0 {
			continue
		}
		select {
		case <-b.stop:
			return
		case <-b.wake:
		}
	}
}

// look judges every tree. b.mu is held.
func (b *rlimits) look() {
	trees, err := b.scan()
	if err != nil {
		return
	}
	for s, procs := range trees {
		var rss, tasks uint64
		for _, p := range procs {
			rss += p.rss
			tasks += p.threads
		}
		if m := b.limits.MemoryBytes; m > 0 && rss > m && resident(procs) > m {
			s.verdict.OOM = true
		}
		// A table that is read while processes come and go counts some twice, so an
		// eighth is let pass.
		if p := b.limits.PIDs; p > 0 && tasks > p+p/8 {
			s.verdict.PIDs = true
		}
		if s.verdict.OOM || s.verdict.PIDs {
			// What is left is found again at the next look.
			_, _ = b.stopAndKill(s)
		}
	}
}

// resident sums up a tree with shared pages counted once. It is read only when the
// cheap sum is over the limit: smaps_rollup walks the page tables.
func resident(procs []proc) uint64 {
	var sum uint64
	for _, p := range procs {
		pss, err := proportional(p.pid)
		if err != nil {
			pss = p.rss
		}
		sum += pss
	}
	return sum
}

// scan attributes all descendants and ends those that belong to no live tree.
// b.mu is held.
func (b *rlimits) scan() (map[*scopeR][]proc, error) {
	table, err := readTable()
	if err != nil {
		return nil, err
	}
	trees := b.owned.attribute(table, b.marked, b.live)
	for _, pid := range b.owned.abandoned(b.live) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return trees, nil
}

// marked returns the live tree whose mark the process carries. b.mu is held.
func (b *rlimits) marked(pid int) *scopeR {
	for _, mark := range environ(pid, MarkEnv) {
		for s := range b.live {
			if s.mark == mark {
				return s
			}
		}
	}
	return nil
}

// stopAndKill ends a tree: everything is stopped until a scan finds nothing new,
// so that no fork escapes, and then killed. b.mu is held. It returns how many
// live processes the last scan found.
func (b *rlimits) stopAndKill(s *scopeR) (int, error) {
	stopped := map[ident]bool{}
	var procs []proc
	// A bomb doubles at most while a scan runs; each round stops what it finds.
	for range 64 {
		trees, err := b.scan()
		if err != nil {
			return 0, err
		}
		procs = trees[s]
		fresh := false
		for _, p := range procs {
			id := ident{p.pid, p.start}
			if !stopped[id] {
				stopped[id], fresh = true, true
				_ = unix.Kill(p.pid, unix.SIGSTOP)
			}
		}
		if !fresh {
			break
		}
	}
	for _, p := range procs {
		if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return len(procs), fmt.Errorf("kill %d: %w", p.pid, err)
		}
	}
	return len(procs), nil
}

// scopeR is guarded by backend.mu.
type scopeR struct {
	backend *rlimits
	forked  bool // or about to: it may have descendants
	root    int
	mark    string
	verdict Verdict
}

// SetMark gives the environment entry that the tree was started with.
func (s *scopeR) SetMark(entry string) {
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	s.mark = entry
}

func (s *scopeR) Fork(sys *syscall.SysProcAttr, fork func() (int, error)) (int, error) {
	b := s.backend
	b.mu.Lock()
	s.forked = true
	b.mu.Unlock()
	stop := b.ptrace && b.perChild()
	if stop {
		// Stopped at the first instruction until the limits are in place. The tracer
		// is the thread that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		sys.Ptrace = true
	}
	pid, err := fork()
	if err != nil {
		return 0, err
	}
	alive := !stop || waitStop(pid)
	b.mu.Lock()
	s.root = pid
	b.owned.roots[pid] = s
	if alive {
		b.restrict(pid)
	}
	b.mu.Unlock()
	if stop && alive {
		if err := unix.PtraceDetach(pid); err != nil && !errors.Is(err, unix.ESRCH) {
			// It cannot run any further; its exit is reported like any other.
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return pid, nil
}

func (b *rlimits) restrict(pid int) {
	set := func(resource int, v uint64) {
		if err := b.prlimit(pid, resource, v); err != nil && !errors.Is(err, unix.ESRCH) {
			b.refused = err
		}
	}
	if b.limits.MemoryBytes > 0 && !b.inheritsData {
		set(unix.RLIMIT_DATA, b.dataLimit())
	}
	if b.limits.PIDs > 0 && !b.inheritsNproc {
		set(unix.RLIMIT_NPROC, b.limits.PIDs+nprocRoom)
	}
}

func (s *scopeR) Verdict() Verdict {
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	return s.verdict
}

func (s *scopeR) tree() ([]proc, error) {
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	trees, err := s.backend.scan()
	return trees[s], err
}

func (s *scopeR) Usage() (Usage, error) {
	procs, err := s.tree()
	u := Usage{MemoryBytes: resident(procs)}
	for _, p := range procs {
		u.PIDs += p.threads
	}
	return u, err
}

func (s *scopeR) Kill(ctx context.Context) error {
	left := 0
	err := poll(ctx, func() (bool, error) {
		s.backend.mu.Lock()
		defer s.backend.mu.Unlock()
		var err error
		left, err = s.backend.stopAndKill(s)
		return left == 0, err
	})
	if err != nil {
		return fmt.Errorf("%d processes left: %w", left, err)
	}
	return nil
}

// Empty is false also while there are strays that the tree may have made.
func (s *scopeR) Empty() (bool, error) {
	b := s.backend
	b.mu.Lock()
	defer b.mu.Unlock()
	trees, err := b.scan()
	return len(trees[s]) == 0 && !b.owned.mayBe(s), err
}

// strayPatience bounds the wait for killed strays to be gone; the watchdog goes on
// after it.
const strayPatience = time.Second

// Close forgets the tree. Strays that no other tree can have made are killed, and
// are gone when it returns without an error.
func (s *scopeR) Close() error {
	s.forget()
	ctx, cancel := context.WithTimeout(context.Background(), strayPatience)
	defer cancel()
	b, left := s.backend, 0
	err := poll(ctx, func() (bool, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.owned.stray) == 0 {
			return true, nil
		}
		_, err := b.scan()
		left = len(b.owned.abandoned(b.live))
		return left == 0, err
	})
	if err != nil {
		return fmt.Errorf("%d stray processes left: %w", left, err)
	}
	return nil
}

func (s *scopeR) forget() {
	b := s.backend
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.live[s] {
		return
	}
	delete(b.live, s)
	delete(b.owned.roots, s.root)
	for id, owner := range b.owned.known {
		if owner == s {
			delete(b.owned.known, id)
		}
	}
}
