package limit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroup2 makes one child cgroup per process tree, cgroup-v2.rst of the kernel.
type cgroup2 struct {
	dir         string // the delegated cgroup
	server      string // leaf that this process was moved to, "" when it was not
	limits      Limits
	controllers []string
	mkdir       func(string) error
	hasKill     bool
}

var controllers2 = []string{"memory", "pids", "cpu"}

// OpenCgroup2 uses the cgroup of this process when it may create children there
// and give them the memory, pids and cpu controllers. The error wraps
// ErrUnavailable or says what failed.
func OpenCgroup2(o Options) (Backend, error) {
	dir, err := findDir("", o.CgroupParent)
	if err != nil {
		return nil, err
	}
	b := &cgroup2{dir: dir, limits: o.Limits, controllers: controllers2, mkdir: mkdir}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

func mkdir(dir string) error {
	return os.Mkdir(dir, 0o755) //nolint:gosec // as container runtimes do; what may be read there is in /proc too
}

func (b *cgroup2) open() error {
	have, err := os.ReadFile(filepath.Join(b.dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range b.controllers {
		if !contains(strings.Fields(string(have)), c) {
			return fmt.Errorf("controller %s is not available in %s: %w", c, b.dir, ErrUnavailable)
		}
	}
	probe := filepath.Join(b.dir, "sandbox-api-"+randomName())
	if err := b.mkdir(probe); err != nil {
		return fmt.Errorf("%s is not delegated to this container: %w", b.dir, err)
	}
	if err := b.enable(probe); err != nil {
		b.leave()
		return errors.Join(err, removeDir(probe))
	}
	if b.server == "" {
		if err := removeDir(probe); err != nil {
			return err
		}
	}
	// cgroup.kill came with Linux 5.14; the root cgroup has none, so a child tells.
	s, err := b.New()
	if err != nil {
		b.leave()
		return err
	}
	_, err = os.Stat(filepath.Join(s.(*scope2).dir, "cgroup.kill"))
	b.hasKill = err == nil
	return s.Close()
}

// enable turns the controllers on for children. A cgroup with processes in it
// may not do that (the "no internal processes" rule), so they are moved to the
// leaf first.
func (b *cgroup2) enable(leaf string) error {
	if len(b.controllers) == 0 {
		return nil
	}
	control := filepath.Join(b.dir, "cgroup.subtree_control")
	want := "+" + strings.Join(b.controllers, " +")
	err := writeFile(control, want)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("enable controllers: %w", err)
	}
	b.server = leaf
	pids, err := os.ReadFile(filepath.Join(b.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(pids)) {
		if err := writeFile(filepath.Join(leaf, "cgroup.procs"), pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to %s: %w", pid, leaf, err)
		}
	}
	if err := writeFile(control, want); err != nil {
		return fmt.Errorf("enable controllers: %w", err)
	}
	return nil
}

// leave undoes enable: controllers off, so that the cgroup may hold this process
// again.
func (b *cgroup2) leave() {
	if b.server == "" {
		return
	}
	_ = writeFile(filepath.Join(b.dir, "cgroup.subtree_control"), "-"+strings.Join(b.controllers, " -"))
	_ = writeFile(filepath.Join(b.dir, "cgroup.procs"), strconv.Itoa(os.Getpid()))
}

func (b *cgroup2) Info() Info {
	kill := "SIGKILL to each process of the cgroup until it is empty"
	if b.hasKill {
		kill = "cgroup.kill"
	}
	l := b.limits
	return Info{
		Backend: Cgroup2, Kernel: true, Kill: kill,
		Memory: enforced(l.MemoryBytes, "memory.max", "swap is off; on OOM the whole tree is killed (memory.oom.group)"),
		CPU:    enforced(l.CPUShares, "cpu.weight", fmt.Sprintf("%d shares are weight %d", l.CPUShares, Weight(l.CPUShares))),
		PIDs:   enforced(l.PIDs, "pids.max", ""),
	}
}

func (b *cgroup2) New() (Scope, error) {
	dir := filepath.Join(b.dir, "sandbox-process-"+randomName())
	if err := b.mkdir(dir); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	s := &scope2{dir: dir, kill: b.hasKill}
	if err := b.configure(dir); err != nil {
		return nil, errors.Join(err, removeDir(dir))
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, removeDir(dir))
	}
	s.fd = f
	return s, nil
}

func (b *cgroup2) configure(dir string) error {
	type setting struct {
		controller, file, value string
		optional                bool
	}
	var set []setting
	if m := b.limits.MemoryBytes; m > 0 {
		set = append(set,
			setting{"memory", "memory.max", strconv.FormatUint(m, 10), false},
			// Absent without CONFIG_SWAP; with it, swap would double the limit.
			setting{"memory", "memory.swap.max", "0", true},
			setting{"memory", "memory.oom.group", "1", true})
	}
	if p := b.limits.PIDs; p > 0 {
		set = append(set, setting{"pids", "pids.max", strconv.FormatUint(p, 10), false})
	}
	if w := Weight(b.limits.CPUShares); w > 0 {
		set = append(set, setting{"cpu", "cpu.weight", strconv.FormatUint(w, 10), false})
	}
	for _, s := range set {
		if !contains(b.controllers, s.controller) {
			continue
		}
		err := writeFile(filepath.Join(dir, s.file), s.value)
		if err != nil && (!s.optional || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("set %s to %s: %w", s.file, s.value, err)
		}
	}
	return nil
}

func (b *cgroup2) Close() error {
	if b.server == "" {
		return nil
	}
	b.leave()
	return removeDir(b.server)
}

type scope2 struct {
	dir  string
	kill bool

	mu sync.Mutex
	fd *os.File // nil once closed
}

func (s *scope2) Fork(sys *syscall.SysProcAttr, fork func() (int, error)) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// clone3(2) CLONE_INTO_CGROUP: the child never runs outside.
	sys.UseCgroupFD, sys.CgroupFD = true, int(s.fd.Fd())
	return fork()
}

func (s *scope2) Verdict() Verdict {
	oom, _ := readCounter(filepath.Join(s.dir, "memory.events"), "oom_kill")
	pids, _ := readCounter(filepath.Join(s.dir, "pids.events"), "max")
	return Verdict{OOM: oom > 0, PIDs: pids > 0}
}

func (s *scope2) Usage() (Usage, error) {
	mem, err := readUint(filepath.Join(s.dir, "memory.current"))
	if err != nil {
		return Usage{}, err
	}
	pids, err := readUint(filepath.Join(s.dir, "pids.current"))
	return Usage{MemoryBytes: mem, PIDs: pids}, err
}

func (s *scope2) Kill(ctx context.Context) error {
	if empty, err := s.Empty(); empty && err == nil {
		return nil
	}
	if !s.kill {
		return killPids(ctx, s.dir)
	}
	if err := writeFile(filepath.Join(s.dir, "cgroup.kill"), "1"); err != nil {
		return err
	}
	if err := poll(ctx, s.Empty); err != nil {
		return fmt.Errorf("processes left in %s after cgroup.kill: %w", s.dir, err)
	}
	return nil
}

func (s *scope2) Empty() (bool, error) {
	n, err := readCounter(filepath.Join(s.dir, "cgroup.events"), "populated")
	return n == 0, err
}

func (s *scope2) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd == nil {
		return nil
	}
	err := s.fd.Close()
	s.fd = nil
	return errors.Join(err, removeDir(s.dir))
}
