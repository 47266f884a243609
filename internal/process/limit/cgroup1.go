package limit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// idleSlots1 is how many ready slots are kept. One costs a parked thread; making
// one costs a task migration, which waits for an RCU grace period when none was
// made lately (measured: 15 µs warm, 3 to 10 ms cold).
const idleSlots1 = 4

// reusableBytes1: a slot whose cgroup still has more charged (page cache, files
// on tmpfs) is thrown away, so that one tree does not pay for another's.
const reusableBytes1 = 4 << 20

// cgroup1 keeps slots: one cgroup per controller, and a thread of ours inside.
// A process that is forked from that thread starts in the slot's cgroups. Version
// 1 has no CLONE_INTO_CGROUP, and moving the child after the fork would let it
// fork outside of its limits first.
type cgroup1 struct {
	limits Limits
	dirs   map[string]string // controller -> directory of ours
	noCPU  string            // why CPU shares are not enforced

	mu     sync.Mutex
	idle   []*slot1
	closed bool
	gone   sync.WaitGroup
	errs   []error
}

// OpenCgroup1 uses the memory and pids cgroups of this process, and cpu where
// there is one, when it may create children there.
func OpenCgroup1(o Options) (Backend, error) {
	b := &cgroup1{limits: o.Limits, dirs: map[string]string{}}
	name := "sandbox-api-" + randomName()
	for _, c := range []string{"memory", "pids", "cpu"} {
		parent, err := findDir(c, o.CgroupParent)
		if err == nil {
			dir := filepath.Join(parent, name)
			// Controllers that are mounted together share the directory.
			if err = mkdir(dir); err == nil || errors.Is(err, os.ErrExist) {
				b.dirs[c] = dir
				continue
			}
			err = fmt.Errorf("%s is not delegated to this container: %w", parent, err)
		}
		if c == "cpu" {
			b.noCPU = err.Error()
			continue
		}
		return nil, errors.Join(err, b.removeDirs())
	}
	s, err := b.newSlot()
	if err != nil {
		return nil, errors.Join(err, b.removeDirs())
	}
	b.idle = append(b.idle, s)
	return b, nil
}

func (b *cgroup1) Info() Info {
	l := b.limits
	cpu := enforced(l.CPUShares, "cpu.shares", "")
	if b.noCPU != "" {
		cpu = enforced(l.CPUShares, "nothing", b.noCPU)
	}
	return Info{
		Backend: Cgroup1, Kernel: true,
		Kill:   "pids.max 0, then SIGKILL to each process of the cgroup until it is empty",
		Memory: enforced(l.MemoryBytes, "memory.limit_in_bytes", "the kernel kills the largest process of the tree, not all of it"),
		CPU:    cpu,
		PIDs:   enforced(l.PIDs, "pids.max", ""),
	}
}

func (b *cgroup1) New() (Scope, error) {
	b.mu.Lock()
	if n := len(b.idle); n > 0 {
		s := b.idle[n-1]
		b.idle = b.idle[:n-1]
		b.mu.Unlock()
		return &scope1{backend: b, slot: s}, nil
	}
	b.mu.Unlock()
	s, err := b.newSlot()
	if err != nil {
		return nil, err
	}
	return &scope1{backend: b, slot: s}, nil
}

// release takes a slot back: reused when it is as good as new, else removed.
func (b *cgroup1) release(s *slot1) {
	if s.reset() == nil {
		b.mu.Lock()
		if !b.closed && len(b.idle) < idleSlots1 {
			b.idle = append(b.idle, s)
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
	}
	b.gone.Go(func() {
		if err := s.remove(); err != nil {
			b.mu.Lock()
			b.errs = append(b.errs, err)
			b.mu.Unlock()
		}
	})
}

func (b *cgroup1) Close() error {
	b.mu.Lock()
	b.closed = true
	idle := b.idle
	b.idle = nil
	b.mu.Unlock()
	for _, s := range idle {
		b.gone.Go(func() { _ = s.remove() })
	}
	b.gone.Wait()
	return b.removeDirs()
}

func (b *cgroup1) removeDirs() error {
	var errs []error
	for _, dir := range b.dirs {
		errs = append(errs, removeDir(dir))
	}
	return errors.Join(errs...)
}

// slot1 is a set of cgroups and the thread that forks into them.
type slot1 struct {
	limits Limits
	dirs   map[string]string
	jobs   chan func()

	oomBase, pidsBase uint64
}

func (b *cgroup1) newSlot() (*slot1, error) {
	s := &slot1{limits: b.limits, dirs: map[string]string{}, jobs: make(chan func())}
	name := randomName()
	for c, parent := range b.dirs {
		dir := filepath.Join(parent, name)
		if err := mkdir(dir); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(fmt.Errorf("create cgroup: %w", err), s.removeDirs())
		}
		s.dirs[c] = dir
	}
	if err := s.configure(); err != nil {
		return nil, errors.Join(err, s.removeDirs())
	}
	joined := make(chan error)
	go s.run(joined)
	if err := <-joined; err != nil {
		return nil, errors.Join(err, s.removeDirs())
	}
	return s, nil
}

func (s *slot1) configure() error {
	if m := s.limits.MemoryBytes; m > 0 {
		v := strconv.FormatUint(m, 10)
		if err := writeFile(s.dirs["memory"]+"/memory.limit_in_bytes", v); err != nil {
			return fmt.Errorf("set memory.limit_in_bytes to %s: %w", v, err)
		}
		// Absent without swap accounting.
		if err := writeFile(s.dirs["memory"]+"/memory.memsw.limit_in_bytes", v); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set memory.memsw.limit_in_bytes to %s: %w", v, err)
		}
	}
	if err := s.setPids(); err != nil {
		return err
	}
	if dir, ok := s.dirs["cpu"]; ok && s.limits.CPUShares > 0 {
		v := strconv.FormatUint(s.limits.CPUShares, 10)
		if err := writeFile(dir+"/cpu.shares", v); err != nil {
			return fmt.Errorf("set cpu.shares to %s: %w", v, err)
		}
	}
	return nil
}

func (s *slot1) setPids() error {
	v := "max"
	if p := s.limits.PIDs; p > 0 {
		v = strconv.FormatUint(p+1, 10) // one more for the thread of ours
	}
	if err := writeFile(s.dirs["pids"]+"/pids.max", v); err != nil {
		return fmt.Errorf("set pids.max to %s: %w", v, err)
	}
	return nil
}

// run is the thread of the slot. It never unlocks the thread, so that the
// runtime ends it with the goroutine instead of giving it other work inside the
// cgroup.
func (s *slot1) run(joined chan<- error) {
	runtime.LockOSThread()
	tid := unix.Gettid()
	if tid == os.Getpid() {
		// The main thread stands for the whole process in a memory cgroup and
		// cannot end. While it is locked here another goroutine gets another one.
		retry := make(chan error)
		go s.run(retry)
		joined <- <-retry
		runtime.UnlockOSThread()
		return
	}
	for c, dir := range s.dirs {
		if err := writeFile(dir+"/tasks", strconv.Itoa(tid)); err != nil {
			joined <- fmt.Errorf("join %s cgroup: %w", c, err)
			return
		}
	}
	joined <- nil
	for job := range s.jobs {
		job()
	}
}

// reset makes the slot ready for the next tree; an error means it is not.
func (s *slot1) reset() error {
	mem := s.dirs["memory"]
	used, err := readUint(mem + "/memory.usage_in_bytes")
	if err != nil {
		return err
	}
	if used > reusableBytes1 {
		return fmt.Errorf("%d bytes are still charged to %s", used, mem)
	}
	if s.oomBase, err = readCounter(mem+"/memory.oom_control", "oom_kill"); err != nil {
		return err
	}
	if s.pidsBase, err = readCounter(s.dirs["pids"]+"/pids.events", "max"); err != nil {
		return err
	}
	pids, err := readPids(s.dirs["pids"])
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("%d processes are left in %s", len(pids), s.dirs["pids"])
	}
	return s.setPids()
}

func (s *slot1) remove() error {
	close(s.jobs)
	return s.removeDirs()
}

func (s *slot1) removeDirs() error {
	var errs []error
	for _, dir := range s.dirs {
		errs = append(errs, removeDir(dir))
	}
	return errors.Join(errs...)
}

type scope1 struct {
	backend *cgroup1
	slot    *slot1
	once    sync.Once
}

func (s *scope1) Fork(_ *syscall.SysProcAttr, fork func() (int, error)) (pid int, err error) {
	done := make(chan struct{})
	s.slot.jobs <- func() {
		defer close(done)
		pid, err = fork()
	}
	<-done
	return pid, err
}

func (s *scope1) Verdict() Verdict {
	oom, _ := readCounter(s.slot.dirs["memory"]+"/memory.oom_control", "oom_kill")
	pids, _ := readCounter(s.slot.dirs["pids"]+"/pids.events", "max")
	return Verdict{OOM: oom > s.slot.oomBase, PIDs: pids > s.slot.pidsBase}
}

func (s *scope1) Usage() (Usage, error) {
	mem, err := readUint(s.slot.dirs["memory"] + "/memory.usage_in_bytes")
	if err != nil {
		return Usage{}, err
	}
	pids, err := readUint(s.slot.dirs["pids"] + "/pids.current")
	// One of them is the thread of ours.
	return Usage{MemoryBytes: mem, PIDs: max(pids, 1) - 1}, err
}

func (s *scope1) Kill(ctx context.Context) error {
	if empty, err := s.Empty(); empty && err == nil {
		return nil
	}
	// Nothing can fork from here on, so the list of processes only shrinks.
	if err := writeFile(s.slot.dirs["pids"]+"/pids.max", "0"); err != nil {
		return err
	}
	return killPids(ctx, s.slot.dirs["pids"])
}

func (s *scope1) Empty() (bool, error) {
	pids, err := readPids(s.slot.dirs["pids"])
	return len(pids) == 0, err
}

func (s *scope1) Close() error {
	s.once.Do(func() { s.backend.release(s.slot) })
	return nil
}
