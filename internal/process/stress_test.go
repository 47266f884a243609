package process

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
)

// countZombies counts processes in state Z that the server's /proc shows, by a process
// of the server that is none itself.
const countZombies = `n=0; for f in /proc/[0-9]*/stat; do read -r s < $f || continue; s=${s##*) }; [ "${s%% *}" = Z ] && n=$((n+1)); done 2>/dev/null; echo $n`

func TestAsPID1EveryStatusIsRightAndNoZombieStays(t *testing.T) {
	needRoot(t)
	for _, backend := range []string{limit.Cgroup1, limit.Rlimits} {
		t.Run(backend, func(t *testing.T) {
			if backend == limit.Cgroup1 && !hasCgroup1() {
				backend = limit.Auto
			}
			s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", backend}})
			var i info
			_, b := s.do("GET", "/v1/info", nil)
			decode(t, b, &i)
			if i.PID != 1 {
				t.Fatalf("the server is process %d", i.PID)
			}
			var wg sync.WaitGroup
			for w := range 6 {
				wg.Go(func() {
					for j := range 25 {
						code := (w*25 + j) % 100
						// Grandchildren that end before, with and after the main process, and
						// whose parent is gone by then: they are PID 1's.
						got := s.execute(map[string]any{"command": fmt.Sprintf("(setsid sleep 0.01 &); (true &); (sleep 0 & exit 44); exit %d", code), "keep_descendants": j%2 == 0})
						if got.ExitCode != code || got.Signal != "" {
							t.Errorf("%d.%d: %+v", w, j, got)
						}
					}
				})
			}
			wg.Wait()
			eventually(t, "no zombie is left", func() bool {
				return s.execute(map[string]any{"command": countZombies}).Stdout == "0\n"
			})
		})
	}
}

func hasCgroup1() bool {
	_, err := os.Stat("/sys/fs/cgroup/pids/pids.max")
	_, err2 := os.Stat("/sys/fs/cgroup/pids/cgroup.procs")
	return err == nil || err2 == nil
}

func TestTenThousandShortProcesses(t *testing.T) {
	s := startRemote(t, remoteOptions{binary: builtServer(t)})
	const total = 10_000
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() {
			c := *s.client
			for {
				n := next.Add(1)
				if n > total || t.Failed() {
					return
				}
				code := int(n % 200)
				if got := c.execute(map[string]any{"args": []string{"sh", "-c", "exit " + strconv.Itoa(code)}}); got.ExitCode != code {
					t.Errorf("process %d: %+v", n, got)
				}
			}
		})
	}
	wg.Wait()
	pid := s.cmd.Process.Pid
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) > 60 {
		t.Errorf("%d files are open afterwards", len(fds))
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(threads) > 60 {
		t.Errorf("%d threads are left", len(threads))
	}
	if rss := rssOf(t, pid); rss > 64<<20 {
		t.Errorf("%d MiB resident", rss>>20)
	}
	if children := childrenOf(pid); len(children) != 0 {
		t.Errorf("children are left: %v", children)
	}
	t.Logf("%d MiB resident at most, %d threads, %d files", rssOf(t, pid)>>20, len(threads), len(fds))
}

func childrenOf(pid int) []string {
	var out []string
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		out = append(out, strings.Fields(string(b))...)
	}
	return out
}

const gib = 1 << 30

func TestGibibyteOfOutputIntoAnAnswer(t *testing.T) {
	s := startRemote(t, remoteOptions{binary: builtServer(t)})
	got := s.execute(map[string]any{"command": fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo end >&2", gib)})
	if len(got.Stdout) != 1<<20 || strings.Trim(got.Stdout, "x") != "" || !got.Truncated || got.Stderr != "end\n" || got.ExitCode != 0 {
		t.Errorf("%d bytes, truncated %v, stderr %q, exit code %d", len(got.Stdout), got.Truncated, got.Stderr, got.ExitCode)
	}
	if rss := rssOf(t, s.cmd.Process.Pid); rss > 64<<20 {
		t.Errorf("%d MiB resident", rss>>20)
	}
}

func TestGibibyteOverAWebSocketLosesNothing(t *testing.T) {
	s := startRemote(t, remoteOptions{binary: builtServer(t), args: []string{"-slow-reader-timeout", "30s"}})
	v := s.start(map[string]any{"command": fmt.Sprintf("read x; head -c %d /dev/zero", gib)})
	conn := s.ws(v.ID, "")
	send(t, conn, []byte("\x00\n"))
	begin := time.Now()
	var n int64
	buf := make([]byte, 64<<10)
	for done := false; !done; {
		_, r, err := conn.Reader(t.Context())
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			t.Fatal(err)
		}
		switch buf[0] {
		case frame.Stdout:
			for {
				m, err := r.Read(buf)
				n += int64(m)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		case frame.Marker:
			t.Fatal("a gap")
		case frame.Status:
			done = true
		}
	}
	took := time.Since(begin)
	if n != gib {
		t.Errorf("got %d bytes", n)
	}
	rss := rssOf(t, s.cmd.Process.Pid)
	if rss > 64<<20 {
		t.Errorf("%d MiB resident", rss>>20)
	}
	t.Logf("%.0f MB/s, %d MiB resident at most", float64(n)/took.Seconds()/1e6, rss>>20)
}

// A bomb that holds itself to a fan-out of two per process, as the classic one
// does, contained a second time by a cgroup around the server.
const forkBomb = "exec 2>/dev/null; b() { b | b & }; b; while :; do sleep 1; done"

func TestForkBombIsBounded(t *testing.T) {
	needRoot(t)
	tests := map[string]struct {
		backend string
		user    string
	}{
		"cgroup":                {backend: limit.Auto},
		"cgroup, another user":  {backend: limit.Auto, user: "54321"},
		"rlimits":               {backend: limit.Rlimits},
		"rlimits, another user": {backend: limit.Rlimits, user: "54321"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			guard := guardCgroup(t, 4000)
			s := startRemote(t, remoteOptions{
				pid1: true, guard: guard,
				args: []string{"-limits-backend", tt.backend, "-pids-limit", "100", "-default-user", tt.user, "-default-cwd", "/"},
			})
			begin := time.Now()
			got := s.execute(map[string]any{"command": forkBomb, "timeout_ms": 2000, "kill_grace_ms": 100})
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("took %v", took)
			}
			// Ended by the timeout, for its size, or by itself: a shell gives up (exit code
			// 2) when it cannot fork.
			if got.KillReason != killTimeout && got.KillReason != killPIDs && got.ExitCode != 2 {
				t.Errorf("got %+v", got)
			}
			// The server works, and nothing of the bomb is left.
			if after := s.execute(map[string]any{"command": "echo alive"}); after.Stdout != "alive\n" {
				t.Errorf("afterwards: %+v", after)
			}
			eventually(t, "the tree is gone", func() bool {
				b, err := os.ReadFile(guard + "/cgroup.procs")
				return err == nil && len(strings.Fields(string(b))) <= 1
			})
			b, err := os.ReadFile(guard + "/pids.events")
			if err == nil && strings.TrimSpace(string(b)) != "max 0" && tt.backend == limit.Auto {
				t.Errorf("the bomb reached the outer limit: %s", b)
			}
			t.Logf("%+v after %v", got, time.Since(begin))
		})
	}
}

// Whether the server can set the limits of other users' processes depends on
// CAP_SYS_RESOURCE, unless it is root and lets them inherit its own.
func TestResourceLimitsReachTheProcess(t *testing.T) {
	needRoot(t)
	for name, user := range map[string]string{"same user": "", "another user": "54321"} {
		t.Run(name, func(t *testing.T) {
			s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", limit.Rlimits, "-pids-limit", "100", "-memory-limit-bytes", strconv.Itoa(1 << 30)}})
			got := s.execute(map[string]any{"command": "cat /proc/self/limits", "user": user, "cwd": "/"}).Stdout
			for _, want := range []string{`Max processes +4196 +4196 `, `Max data size +1342177280 +1342177280 `, `Max core file size +0 +0 `} {
				if !regexp.MustCompile(want).MatchString(got) {
					t.Errorf("no %q in %s", want, got)
				}
			}
		})
	}
}

func TestMemoryLimitIsReportedAsOOM(t *testing.T) {
	needRoot(t)
	for _, backend := range []string{limit.Auto, limit.Rlimits} {
		t.Run(backend, func(t *testing.T) {
			s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", backend, "-memory-limit-bytes", strconv.Itoa(64 << 20)}})
			got := s.execute(map[string]any{"command": "head -c 600000000 /dev/zero | tail | wc -c; echo ${PIPESTATUS:-none}", "timeout_ms": 30_000})
			if !got.OOMKilled || got.TimedOut {
				t.Errorf("got %+v", got)
			}
			// A process that stays within it is left alone, and inherits nothing.
			got = s.execute(map[string]any{"command": "head -c 20000000 /dev/zero | tail | wc -c"})
			if got.OOMKilled || got.Stdout != "20000000\n" {
				t.Errorf("within the limit: %+v", got)
			}
		})
	}
}

// countSleeps counts the sleeps that run: a zombie is no daemon, PID 1 reaps it a moment
// later.
const countSleeps = "cat /proc/[0-9]*/stat | grep -c '(sleep) [^Z]'"

func TestDaemonsThatKeepThePipeAreCutOffByEveryBackend(t *testing.T) {
	needRoot(t)
	for _, backend := range []string{limit.Auto, limit.Rlimits} {
		t.Run(backend, func(t *testing.T) {
			s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", backend}})
			daemon := `setsid sh -c 'env -i setsid sh -c "sleep 300 & sleep 300" &' & sleep 0.2; echo done`
			begin := time.Now()
			got := s.execute(map[string]any{"command": daemon})
			if got.Stdout != "done\n" || time.Since(begin) > 10*time.Second {
				t.Errorf("after %v: %+v", time.Since(begin), got)
			}
			if left := s.execute(map[string]any{"command": countSleeps}).Stdout; left != "0\n" {
				t.Errorf("%s daemons are left", strings.TrimSpace(left))
			}
			// Kept on request: the answer still comes at once.
			begin = time.Now()
			got = s.execute(map[string]any{"command": "(setsid sleep 20 &); echo done", "keep_descendants": true})
			if got.Stdout != "done\n" || time.Since(begin) > 15*time.Second {
				t.Errorf("kept: after %v: %+v", time.Since(begin), got)
			}
			// The answer may come before setsid(1) has become sleep(1).
			eventually(t, "one daemon lives", func() bool {
				return s.execute(map[string]any{"command": countSleeps}).Stdout == "1\n"
			})
		})
	}
}

// Two trees may have made the daemon, so it lives until both have ended; it forks
// all the time, so that killing what one look finds is not enough.
func TestDaemonOfUnknownOriginEndsWithTheLastTreeThatMayHaveMadeIt(t *testing.T) {
	needRoot(t)
	s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", limit.Rlimits}})
	other := s.start(map[string]any{"command": "sleep 1000"})
	s.execute(map[string]any{"command": `setsid env -i setsid sh -c 'sleep 300 & while :; do (sleep 301 &); sleep 0.01; done' & sleep 0.3`})
	if status, body := s.do("DELETE", "/v1/processes/"+other.ID, nil); status != 200 {
		t.Fatalf("DELETE: %d %s", status, body)
	}
	eventually(t, "no daemon is left", func() bool {
		return s.execute(map[string]any{"command": countSleeps}).Stdout == "0\n"
	})
}

func TestSIGTERMDrainsAndExitsCleanly(t *testing.T) {
	s := startRemote(t, remoteOptions{args: []string{"-drain-timeout", "10s"}})
	background := s.start(map[string]any{"command": "sleep 1000"})
	answer := make(chan execution, 1)
	go func() { answer <- s.execute(map[string]any{"command": "sleep 0.7; echo finished"}) }()
	time.Sleep(300 * time.Millisecond)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "unready", func() bool {
		resp, err := s.try(t.Context(), "GET", "/readyz", nil)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if got := <-answer; got.Stdout != "finished\n" {
		t.Errorf("got %+v", got)
	}
	select {
	case err := <-s.exit:
		s.exit <- err
		if err != nil {
			t.Errorf("exit: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if err := processGone(background.PID); err != nil {
		t.Error(err)
	}
}

func TestServerIsProtectedFromItsProcesses(t *testing.T) {
	needRoot(t)
	// Server and processes share a uid, as in a pod with runAsNonRoot.
	s := startRemote(t, remoteOptions{pid1: true, args: []string{"-limits-backend", limit.Rlimits}})
	probe := "cat /proc/1/environ; cat /proc/1/mem; ls /proc/1/fd; kill -0 1"
	got := s.execute(map[string]any{"command": probe, "user": "54321", "cwd": "/"})
	if got.Stdout != "" || got.ExitCode == 0 {
		t.Errorf("another user can look into the server: %+v", got)
	}
	if got := s.execute(map[string]any{"command": "ulimit -c; env"}).Stdout; !strings.HasPrefix(got, "0\n") || strings.Contains(got, helperEnv) || strings.Contains(got, "GOPATH") {
		t.Errorf("got %q", got)
	}
}

func TestUsageErrors(t *testing.T) {
	token := t.TempDir() + "/token"
	if err := os.WriteFile(token, []byte(testToken), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"no token":               {nil, exitUsage, "--token-file is required"},
		"token and no auth":      {[]string{"-token-file", token, "-insecure-no-auth"}, exitUsage, "exclude each other"},
		"missing token file":     {[]string{"-token-file", token + "x"}, exitFailure, "--token-file"},
		"unknown flag":           {[]string{"-nope"}, exitUsage, "nope"},
		"argument":               {[]string{"-insecure-no-auth", "x"}, exitUsage, `"x"`},
		"half a key pair":        {[]string{"-insecure-no-auth", "-tls-cert-file", "c"}, exitUsage, "go together"},
		"shares out of range":    {[]string{"-insecure-no-auth", "--cpu-shares=1"}, exitUsage, "--cpu-shares"},
		"tiny memory limit":      {[]string{"-insecure-no-auth", "-memory-limit-bytes", "1000"}, exitUsage, "--memory-limit-bytes"},
		"no processes":           {[]string{"-insecure-no-auth", "--max-processes", "0"}, exitUsage, "--max-processes"},
		"timeouts cross":         {[]string{"-insecure-no-auth", "-default-timeout", "2h"}, exitUsage, "--default-timeout"},
		"log level":              {[]string{"-insecure-no-auth", "-log-level", "loud"}, exitUsage, "--log-level"},
		"limits that cannot be":  {[]string{"-insecure-no-auth", "-files-root=", "--require-limits", "-limits-backend", "rlimits"}, exitFailure, "--require-limits"},
		"unknown backend":        {[]string{"-insecure-no-auth", "-files-root=", "-limits-backend", "x"}, exitFailure, "--limits-backend"},
		"unknown default user":   {[]string{"-insecure-no-auth", "-default-user", "no-such-user"}, exitFailure, "--default-user"},
		"address that is no one": {[]string{"-insecure-no-auth", "-files-root=", "-addr", "nonsense"}, exitFailure, "--addr"},
		"version":                {[]string{"--version"}, exitOK, "dev"},
		"help":                   {[]string{"-h"}, exitOK, "restrict-localhost"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			cmd := exec.Command(builtServer(t), tt.args...)
			cmd.Stderr = &out
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit code %d (%v), output %q", code, err, &out)
			}
		})
	}
}

func TestInstallCopiesTheProgram(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command(builtServer(t), "--install", dir+"/copy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(dir+"/copy", "-version").CombinedOutput(); err != nil || string(out) != "dev\n" {
		t.Errorf("the copy does not run: %v: %s", err, out)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("left: %v", list)
	}
	if out, err := exec.Command(builtServer(t), "--install", dir+"/no/such/dir").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("--install")) {
		t.Errorf("%v: %s", err, out)
	}
}

// Every flag is in the documentation, with its default.
func TestFlagsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/sandbox-api.md")
	if err != nil {
		t.Fatal(err)
	}
	var o options
	o.flags(io.Discard).VisitAll(func(f *flag.Flag) {
		row := "| `-" + f.Name + "` | "
		at := bytes.Index(doc, []byte(row))
		if at < 0 {
			t.Errorf("not documented: -%s", f.Name)
			return
		}
		line, _, _ := bytes.Cut(doc[at:], []byte("\n"))
		if f.DefValue != "" && f.Name != "pass-env" && !bytes.Contains(line, []byte("`"+f.DefValue+"`")) {
			t.Errorf("-%s: the default %s is not in %s", f.Name, f.DefValue, line)
		}
	})
}

// The API from another address, from loopback and from its own address: two
// network namespaces with a wire between them, and no way out of either.
func TestLocalCallersAreRefusedAndOthersServed(t *testing.T) {
	needRoot(t)
	inside, outside := netns(t, "in"), netns(t, "out")
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("-n", inside, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", outside)
	for ns, addrs := range map[string][]string{inside: {"198.51.100.1/24", "2001:db8::1/64"}, outside: {"198.51.100.2/24", "2001:db8::2/64"}} {
		for _, a := range addrs {
			args := []string{"-n", ns, "addr", "add", a, "dev", "wire"}
			if strings.Contains(a, ":") {
				args = append(args, "nodad")
			}
			ip(args...)
		}
		ip("-n", ns, "link", "set", "lo", "up")
		ip("-n", ns, "link", "set", "wire", "up")
	}
	// A second address, on another interface, is the machine's own as well.
	ip("-n", inside, "link", "add", "other", "type", "veth", "peer", "name", "peer")
	ip("-n", inside, "addr", "add", "203.0.113.9/24", "dev", "other")
	ip("-n", inside, "link", "set", "other", "up")

	// On ::, IPv4 arrives in its v4-mapped form.
	startRemote(t, remoteOptions{netns: inside, addr: "[::]:8080", keepLock: true, args: []string{"-max-connections", "8"}})
	call := func(ns, host string) string {
		t.Helper()
		cmd := exec.Command("nsenter", "--net=/var/run/netns/"+ns, os.Args[0], "http://"+host+":8080/execute", testToken)
		cmd.Env = helperEnviron("get")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("call %s: %v: %s", host, err, out)
		}
		return string(out)
	}
	for _, host := range []string{"198.51.100.1", "[2001:db8::1]"} {
		if got := call(outside, host); !strings.HasPrefix(got, `200 {"stdout":"hi\n","stderr":"","exit_code":0,`) {
			t.Errorf("from another address, %s: %s", host, got)
		}
	}
	for _, host := range []string{"127.0.0.1", "127.9.9.9", "localhost", "[::1]", "[::ffff:127.0.0.1]", "198.51.100.1", "[2001:db8::1]", "203.0.113.9"} {
		if got := call(inside, host); !strings.HasPrefix(got, "403 ") || !strings.Contains(got, "local_caller") {
			t.Errorf("from the machine itself, %s: %s", host, got)
		}
	}
	// Local connections do not use up the others' places.
	hold := exec.Command("nsenter", "--net=/var/run/netns/"+inside, os.Args[0], "198.51.100.1:8080")
	hold.Env = helperEnviron("hold")
	stdin, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = hold.Wait() }()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if got := call(outside, "198.51.100.1"); !strings.HasPrefix(got, "200 ") || time.Since(begin) > 1500*time.Millisecond {
		t.Errorf("while local connections are held, after %v: %s", time.Since(begin), got)
	}
}

func netns(t *testing.T, name string) string {
	t.Helper()
	name = fmt.Sprintf("sbxapi-%d-%s", os.Getpid(), name)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("this test needs ip(8) and network namespaces: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("delete network namespace %s: %v: %s", name, err, out)
		}
	})
	return name
}
