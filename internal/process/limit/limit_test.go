package limit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func TestWeight(t *testing.T) {
	// The fixed points of the curve, and points between them worked out by hand.
	want := map[uint64]uint64{0: 0, 1: 1, 2: 1, 10: 4, 1024: 100, 2048: 174, 4096: 303, 1 << 18: 10000, 1 << 30: 10000, 100000: 4340}
	for shares, weight := range want {
		got := Weight(shares)
		// Only the fixed points are exact by definition; the others are checked to
		// one unit, for the rounding of Pow.
		diff := int64(got) - int64(weight)
		if exact := shares <= 2 || shares == 1024 || shares >= 1<<18; (exact && diff != 0) || diff < -1 || diff > 1 {
			t.Errorf("%d shares: weight %d, want %d", shares, got, weight)
		}
	}
	last := uint64(0)
	for s := uint64(1); s <= 1<<18; s += 7 {
		w := Weight(s)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("weight %d of %d shares after %d", w, s, last)
		}
		last = w
	}
}

const mountinfo = `25 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate
31 25 0:27 /kubepods/pod1/c1 /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
33 25 0:29 / /mnt/with\040blank rw - cgroup cgroup rw,pids
broken line
34 25 0:30 / /x rw - cgroup
`

func TestFindCgroupDirectories(t *testing.T) {
	mounts, err := parseMounts(strings.NewReader(mountinfo))
	if err != nil {
		t.Fatal(err)
	}
	paths, err := parseMembership(strings.NewReader("4:memory:/kubepods/pod1/c1\n3:cpu,cpuacct:/kubepods/pod1/c1/sub\n2:pids:/a b\n1:name=systemd:/x\n0::/init.scope\nbroken\n"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ controller, parent, want string }{
		"v2":                             {"", "", "/sys/fs/cgroup/unified/init.scope"},
		"v2 with a parent":               {"", "mine/x", "/sys/fs/cgroup/unified/mine/x"},
		"own cgroup is the mount":        {"memory", "", "/sys/fs/cgroup/memory"},
		"below the mount":                {"cpu", "", "/sys/fs/cgroup/cpu,cpuacct/sub"},
		"mount point with a blank":       {"pids", "", "/mnt/with blank/a b"},
		"parent cannot leave the mount":  {"pids", "../../etc", "/mnt/with blank/etc"},
		"controller that is not mounted": {"blkio", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := pickDir(mounts, paths, tt.controller, tt.parent)
			if got != tt.want || (tt.want == "") != errors.Is(err, ErrUnavailable) {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(mountinfo)
	f.Fuzz(func(t *testing.T, s string) {
		mounts, err := parseMounts(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, m := range mounts {
			if d := m.dir("/a/../../b"); !strings.HasPrefix(d, filepath.Clean(m.point)) && filepath.IsAbs(m.point) {
				t.Fatalf("%q leaves %q", d, m.point)
			}
		}
	})
}

func TestParseStat(t *testing.T) {
	line := "4242 (a) b\n(c) S 7 4242 4200 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 3 0 99887 1000 250 18446744073709551615 1"
	got, err := parseStat([]byte(line), 4096)
	want := proc{pid: 4242, ppid: 7, session: 4200, state: 'S', threads: 3, start: 99887, rss: 250 * 4096}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "1", "1 (x", "1 (x) S 1 2 3", "x (x) " + strings.Repeat("1 ", 30), "1 (x) SS " + strings.Repeat("1 ", 30)} {
		if p, err := parseStat([]byte(bad), 4096); err == nil {
			t.Errorf("%q: accepted as %+v", bad, p)
		}
	}
	self, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	p, err := parseStat(self, uint64(os.Getpagesize()))
	if err != nil || p.pid != os.Getpid() || p.ppid != os.Getppid() || p.rss < 1<<20 || p.threads < 1 {
		t.Errorf("this process: %+v, %v", p, err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 3 4 5"))
	f.Add([]byte("1 ()) ) S"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseStat(b, 4096) })
}

// Attribution of descendants, on process tables written by hand. 100 is this
// process, 200 and 300 are roots of trees a and b.
func TestAttribute(t *testing.T) {
	a, b, unforked := &scopeR{forked: true}, &scopeR{forked: true}, &scopeR{}
	table := func(rows ...[3]int) map[int]proc {
		m := map[int]proc{100: {pid: 100, ppid: 1, state: 'S'}, 1: {pid: 1, state: 'S'}, 50: {pid: 50, ppid: 1, session: 200, state: 'S'}}
		for _, r := range rows {
			m[r[0]] = proc{pid: r[0], ppid: r[1], session: r[2], state: 'S', start: uint64(r[0])}
		}
		return m
	}
	tests := map[string]struct {
		table  map[int]proc
		known  map[ident]*scopeR
		marked map[int]*scopeR
		wantA  []int
		wantB  []int
		stray  []int
	}{
		"roots and their children":  {table: table([3]int{200, 100, 200}, [3]int{201, 200, 200}, [3]int{202, 201, 999}, [3]int{300, 100, 300}, [3]int{301, 300, 301}), wantA: []int{200, 201, 202}, wantB: []int{300, 301}},
		"orphan of the session":     {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{210, 100, 200}, [3]int{211, 210, 211}), wantA: []int{200, 210, 211}, wantB: []int{300}},
		"orphan seen before":        {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{310, 100, 310}), known: map[ident]*scopeR{{310, 310}: b}, wantA: []int{200}, wantB: []int{300, 310}},
		"pid used again":            {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{310, 100, 310}), known: map[ident]*scopeR{{310, 999}: b}, wantA: []int{200}, wantB: []int{300}, stray: []int{310}},
		"orphan with a mark":        {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{320, 100, 320}, [3]int{321, 320, 321}), marked: map[int]*scopeR{320: b}, wantA: []int{200}, wantB: []int{300, 320, 321}},
		"orphan of nobody":          {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{400, 100, 400}, [3]int{401, 400, 400}), wantA: []int{200}, wantB: []int{300}, stray: []int{400, 401}},
		"strangers are left alone":  {table: table([3]int{200, 100, 200}, [3]int{300, 100, 300}, [3]int{60, 1, 200}, [3]int{61, 60, 300}), wantA: []int{200}, wantB: []int{300}},
		"loop in a torn table ends": {table: table([3]int{500, 501, 1}, [3]int{501, 500, 1})},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := owned{self: 100, roots: map[int]*scopeR{200: a, 300: b}, known: tt.known}
			live := map[*scopeR]bool{a: true, b: true, unforked: true}
			trees := o.attribute(tt.table, func(pid int) *scopeR { return tt.marked[pid] }, live)
			var strays []proc
			for id := range o.stray {
				strays = append(strays, proc{pid: id.pid})
			}
			for _, c := range []struct {
				name string
				got  []proc
				want []int
			}{{"a", trees[a], tt.wantA}, {"b", trees[b], tt.wantB}, {"strays", strays, tt.stray}} {
				got := map[int]bool{}
				for _, p := range c.got {
					got[p.pid] = true
				}
				want := map[int]bool{}
				for _, p := range c.want {
					want[p] = true
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s: got %v, want %v", c.name, got, want)
				}
			}
			if left := o.abandoned(live); len(left) != 0 {
				t.Errorf("strays that live trees may have made are given up: %v", left)
			}
			if o.mayBe(a) != (len(strays) > 0) || o.mayBe(unforked) {
				t.Error("strays may belong to every tree that was forked, and to no other")
			}
			if left := o.abandoned(nil); len(left) != len(strays) {
				t.Errorf("%d strays, %d given up when no tree lives", len(strays), len(left))
			}
		})
	}
}

// /proc shows no environment in the middle of an execve(2).
func TestStrayIsRecognisedOnceItsMarkShows(t *testing.T) {
	a, b := &scopeR{forked: true}, &scopeR{forked: true}
	live := map[*scopeR]bool{a: true, b: true}
	table := map[int]proc{100: {pid: 100, ppid: 1, state: 'S'}, 400: {pid: 400, ppid: 100, session: 400, state: 'S', start: 4}}
	o := owned{self: 100, roots: map[int]*scopeR{200: a, 300: b}}
	if trees := o.attribute(table, func(int) *scopeR { return nil }, live); len(trees) != 0 || !o.mayBe(b) {
		t.Fatalf("without a mark: %v, may be b's: %v", trees, o.mayBe(b))
	}
	trees := o.attribute(table, func(int) *scopeR { return b }, live)
	if len(trees[b]) != 1 || len(o.stray) != 0 {
		t.Errorf("with a mark: %v, strays %v", trees, o.stray)
	}
}

func TestOrphanIsOfTheOnlyTreeThatCanHaveMadeIt(t *testing.T) {
	a, b, unforked := &scopeR{forked: true}, &scopeR{forked: true}, &scopeR{}
	orphan := proc{pid: 400, ppid: 100, session: 400, state: 'S', start: 4}
	table := map[int]proc{100: {pid: 100, ppid: 1, state: 'S'}, 400: orphan}
	none := func(int) *scopeR { return nil }
	o := owned{self: 100, roots: map[int]*scopeR{200: a}}
	if trees := o.attribute(table, none, map[*scopeR]bool{a: true, unforked: true}); len(trees[a]) != 1 || len(o.stray) != 0 {
		t.Errorf("one tree: %v, strays %v", trees, o.stray)
	}
	// Two may have made it: the end of one does not make it the other's.
	o = owned{self: 100, roots: map[int]*scopeR{200: a, 300: b}}
	o.attribute(table, none, map[*scopeR]bool{a: true, b: true})
	if trees := o.attribute(table, none, map[*scopeR]bool{a: true}); len(trees) != 0 || len(o.stray) != 1 {
		t.Errorf("two trees: %v, strays %v", trees, o.stray)
	}
}

func TestSelectExplainsWhatIsMissing(t *testing.T) {
	if _, err := Select(Options{Backend: "docker"}); err == nil || !strings.Contains(err.Error(), "--limits-backend") {
		t.Errorf("got %v", err)
	}
	_, err := Select(Options{Backend: Rlimits, Require: true})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "--require-limits") {
		t.Errorf("got %v", err)
	}
	_, err = Select(Options{Backend: Auto, Require: true, CgroupParent: "no/such/parent/cgroup"})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "cgroup2") || !strings.Contains(err.Error(), "cgroup1") {
		t.Errorf("got %v", err)
	}
	b, err := Select(Options{Backend: Auto, CgroupParent: "no/such/parent/cgroup", Limits: Limits{MemoryBytes: 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	i := b.Info()
	if i.Backend != Rlimits || i.Kernel || len(i.Notes) < 2 || i.CPU.By != "nothing" {
		t.Errorf("got %+v", i)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// fakeCgroup2 is a directory that looks like a delegated cgroup v2: new children
// get control files, which then hold what was written.
func fakeCgroup2(t *testing.T, controllers string) *cgroup2 {
	t.Helper()
	root := t.TempDir()
	populate := func(dir string) error {
		for name, content := range map[string]string{
			"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.events": "populated 0\nfrozen 0\n",
			"memory.max": "max", "memory.swap.max": "max", "memory.oom.group": "0", "memory.current": "4096", "memory.events": "oom 0\noom_kill 0\n",
			"pids.max": "max", "pids.current": "0", "pids.events": "max 0\n", "cpu.weight": "100", "cgroup.kill": "",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	if err := populate(root); err != nil {
		t.Fatal(err)
	}
	return &cgroup2{
		dir: root, controllers: controllers2, limits: Limits{MemoryBytes: 4294900000, CPUShares: 1024, PIDs: 77},
		mkdir: func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			// rmdir(2) of a cgroup ignores its files; a plain directory does not, so the
			// removal is left to TempDir.
			return populate(dir)
		},
	}
}

func TestCgroup2WritesTheLimitsAndReadsTheVerdict(t *testing.T) {
	b := fakeCgroup2(t, "cpuset cpu io memory pids")
	if err := b.enable(b.dir); err != nil {
		t.Fatal(err)
	}
	read := func(dir, name string) string {
		c, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(c)
	}
	if got := read(b.dir, "cgroup.subtree_control"); got != "+memory +pids +cpu" {
		t.Errorf("subtree_control %q", got)
	}
	sc, err := b.New()
	if err != nil {
		t.Fatal(err)
	}
	s := sc.(*scope2)
	defer func() { _ = s.fd.Close() }()
	for name, want := range map[string]string{"memory.max": "4294900000", "pids.max": "77", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.weight": "100"} {
		// Control files are replaced as a whole; a plain file keeps a longer old text.
		if got := read(s.dir, name); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if v := s.Verdict(); v.OOM || v.PIDs {
		t.Errorf("verdict before: %+v", v)
	}
	for name, content := range map[string]string{"memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n", "pids.events": "max 9\n"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if v := s.Verdict(); !v.OOM || !v.PIDs {
		t.Errorf("verdict after: %+v", v)
	}
	if u, err := s.Usage(); err != nil || u.MemoryBytes != 4096 {
		t.Errorf("usage %+v, %v", u, err)
	}
	i := b.Info()
	if i.Backend != Cgroup2 || !i.Kernel || i.Memory.By != "memory.max" || i.CPU.By != "cpu.weight" || i.PIDs.By != "pids.max" {
		t.Errorf("info %+v", i)
	}
	var sys syscall.SysProcAttr
	if _, err := s.Fork(&sys, func() (int, error) { return 1, nil }); err != nil || !sys.UseCgroupFD || sys.CgroupFD != int(s.fd.Fd()) {
		t.Errorf("the child would start outside: %+v, %v", sys, err)
	}
}

func TestCgroup2NeedsItsControllers(t *testing.T) {
	b := fakeCgroup2(t, "cpu io pids")
	if err := b.open(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("got %v", err)
	}
	if list, _ := filepath.Glob(b.dir + "/sandbox-*"); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
}

// On machines with cgroup v1 the v2 hierarchy has no controllers, but clone3 into
// a cgroup and cgroup.kill work there as everywhere.
func TestCgroup2KernelMechanics(t *testing.T) {
	needRoot(t)
	root, err := findDir("", "/sandbox-api-test-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal("this test needs a cgroup v2 mount: ", err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal("this test needs a writable cgroup v2 mount: ", err)
	}
	t.Cleanup(func() {
		if err := removeDir(root); err != nil {
			t.Error(err)
		}
	})
	b := &cgroup2{dir: root, mkdir: mkdir}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	testScope(t, b)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, to make cgroups: run it as root or leave it out with -skip")
	}
}

func TestCgroup1(t *testing.T) {
	needRoot(t)
	parent := "/sandbox-api-test-" + strconv.Itoa(os.Getpid())
	o := Options{CgroupParent: parent, Limits: Limits{MemoryBytes: 64 << 20, CPUShares: 512, PIDs: 20}}
	var dirs []string
	for _, c := range []string{"memory", "pids", "cpu"} {
		dir, err := findDir(c, parent)
		if err != nil {
			t.Skip("this machine has no cgroup v1, the backend is not used here: ", err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal("this test needs writable cgroups: ", err)
		}
		dirs = append(dirs, dir)
	}
	t.Cleanup(func() {
		for _, dir := range dirs {
			if err := removeDir(dir); err != nil {
				t.Error(err)
			}
		}
	})
	open := func(t *testing.T) Backend {
		b, err := OpenCgroup1(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
	t.Run("kill", func(t *testing.T) { testScope(t, open(t)) })
	t.Run("memory", func(t *testing.T) {
		b := open(t)
		s, pid := run(t, b, "head -c 400000000 /dev/zero | tail | wc -c")
		wait(t, pid)
		if v := s.Verdict(); !v.OOM {
			t.Errorf("verdict %+v", v)
		}
		closeScope(t, s)
		// The slot is used again and must not remember.
		s, pid = run(t, b, "true")
		wait(t, pid)
		if v := s.Verdict(); v.OOM || v.PIDs {
			t.Errorf("the next tree inherits the verdict: %+v", v)
		}
		closeScope(t, s)
	})
	t.Run("pids", func(t *testing.T) {
		s, pid := run(t, open(t), "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; wait")
		deadline := time.Now().Add(10 * time.Second)
		for !s.Verdict().PIDs && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if u, err := s.Usage(); err != nil || u.PIDs > 20 || u.PIDs < 10 {
			t.Errorf("usage %+v, %v", u, err)
		}
		kill(t, s)
		wait(t, pid)
		if !s.Verdict().PIDs {
			t.Error("no verdict")
		}
		closeScope(t, s)
	})
	t.Run("settings", func(t *testing.T) {
		b := open(t).(*cgroup1)
		sc, err := b.New()
		if err != nil {
			t.Fatal(err)
		}
		slot := sc.(*scope1).slot
		for file, want := range map[string]string{
			slot.dirs["memory"] + "/memory.limit_in_bytes": strconv.Itoa(64 << 20), slot.dirs["cpu"] + "/cpu.shares": "512", slot.dirs["pids"] + "/pids.max": "21",
		} {
			if got, err := os.ReadFile(file); strings.TrimSpace(string(got)) != want || err != nil {
				t.Errorf("%s: %q, %v", file, got, err)
			}
		}
		closeScope(t, sc)
	})
	t.Run("concurrent scopes", func(t *testing.T) {
		b := open(t)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				for range 15 {
					s, pid := run(t, b, "exit 0")
					wait(t, pid)
					closeScope(t, s)
				}
			})
		}
		wg.Wait()
	})
}

// testScope runs a tree that does all it can to get away, and ends it.
func testScope(t *testing.T, b Backend) {
	t.Helper()
	s, pid := run(t, b, "trap '' TERM; (setsid sh -c 'sleep 60 & (setsid sleep 60 &) ; sleep 60' &) ; sleep 60 & while :; do sleep 0.01; done")
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if u, err := s.Usage(); err == nil && u.PIDs >= 5 {
			break
		}
		time.Sleep(10 * time.Millisecond)
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
			t.Fatal("the tree is gone")
		}
		if time.Until(deadline) < 9*time.Second && b.Info().Memory.Value == 0 {
			break // no controllers, no usage
		}
	}
	if empty, err := s.Empty(); empty || err != nil {
		t.Errorf("empty %v, %v", empty, err)
	}
	kill(t, s)
	wait(t, pid)
	if empty, err := s.Empty(); !empty || err != nil {
		t.Errorf("empty %v, %v", empty, err)
	}
	closeScope(t, s)
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func run(t testing.TB, b Backend, script string) (Scope, int) {
	t.Helper()
	s, err := b.New()
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	defer func() { _ = null.Close() }()
	sys := &syscall.SysProcAttr{Setsid: true}
	pid, err := s.Fork(sys, func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: sys, Env: []string{"PATH=/usr/bin:/bin"},
		})
	})
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	return s, pid
}

func wait(t testing.TB, pid int) unix.WaitStatus {
	t.Helper()
	var ws unix.WaitStatus
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Error(err)
			return ws
		}
		if got == pid {
			return ws
		}
		time.Sleep(time.Millisecond)
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	t.Errorf("process %d did not end", pid)
	return ws
}

func kill(t testing.TB, s Scope) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Kill(ctx); err != nil {
		t.Error(err)
	}
}

func closeScope(t testing.TB, s Scope) {
	t.Helper()
	if s == nil {
		return
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
