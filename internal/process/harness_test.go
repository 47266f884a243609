package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/process/files"
	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
	"github.com/sandbox-egress/sandbox-egress/internal/process/reaper"
)

// helperEnv makes the test binary play another part.
const helperEnv = "SANDBOX_API_TEST_HELPER"

const testToken = "0123456789abcdef-test"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "server": // the program itself, with the race detector of the test binary
		os.Exit(Main(context.Background(), "test", os.Args[1:], os.Stderr))
	case "pid1": // the program as PID 1: this process is the first of new namespaces
		os.Exit(becomePID1(os.Args[1:]))
	case "hold": // local connections that do nothing, until stdin ends
		os.Exit(helperHold(os.Args[1]))
	case "get": // an HTTP client, for another network namespace
		os.Exit(helperGet(os.Args[1], os.Args[2]))
	}
	code := m.Run()
	if serverBinary.dir != "" {
		_ = os.RemoveAll(serverBinary.dir)
	}
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// becomePID1 mounts a /proc of the new PID namespace and becomes the program.
func becomePID1(args []string) int {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", 0, "")
	}
	if err == nil {
		err = syscall.Exec(args[0], args, []string{"PATH=" + defaultPath})
	}
	fmt.Fprintln(os.Stderr, "become PID 1:", err)
	return 1
}

func helperHold(addr string) int {
	var conns []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		conns = append(conns, c)
	}
	fmt.Println("held", len(conns))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// helperEnviron is the environment of a helper; the race detector would make it
// wait a second before it exits.
func helperEnviron(part string) []string {
	return append(os.Environ(), helperEnv+"="+part, "GORACE=atexit_sleep_ms=0")
}

func helperGet(url, token string) int {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(`{"command":"echo hi"}`))
	if err == nil {
		req.Header.Set("Authorization", "Bearer "+token)
		client := &http.Client{Timeout: 10 * time.Second}
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			defer func() { _ = resp.Body.Close() }()
			var b []byte
			if b, err = io.ReadAll(resp.Body); err == nil {
				fmt.Printf("%d %s", resp.StatusCode, b)
				return 0
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, to make namespaces and cgroups: run it as root or leave it out with -skip")
	}
}

var serverBinary struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// builtServer builds the program as it is shipped.
func builtServer(t testing.TB) string {
	t.Helper()
	b := &serverBinary
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "sandbox-api-test-"); b.err != nil {
			return
		}
		b.path = filepath.Join(b.dir, "sandbox-api")
		cmd := exec.Command("go", "build", "-o", b.path, "github.com/sandbox-egress/sandbox-egress/cmd/sandbox-api")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build sandbox-api: %w: %s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// client talks to a server under test.
type client struct {
	t     testing.TB
	base  string
	token string
}

func (c *client) do(method, path string, body io.Reader, header ...string) (int, []byte) {
	c.t.Helper()
	resp := c.open(method, path, body, header...)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, b
}

func (c *client) open(method, path string, body io.Reader, header ...string) *http.Response {
	c.t.Helper()
	resp, err := c.try(context.Background(), method, path, body, header...)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

var transport = &http.Transport{MaxIdleConnsPerHost: 32}

func (c *client) try(ctx context.Context, method, path string, body io.Reader, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return transport.RoundTrip(req)
}

type execution struct {
	Stdout, Stderr string
	ExitCode       int    `json:"exit_code"`
	Signal         string `json:"signal"`
	TimedOut       bool   `json:"timed_out"`
	OOMKilled      bool   `json:"oom_killed"`
	Truncated      bool   `json:"truncated"`
	DurationMS     int64  `json:"duration_ms"`
	KillReason     string `json:"kill_reason"`
}

func (c *client) execute(req map[string]any) execution {
	c.t.Helper()
	status, b := c.do("POST", "/execute", jsonBody(c.t, req))
	if status != http.StatusOK {
		c.t.Fatalf("POST /execute: %d %s", status, b)
	}
	var e execution
	decode(c.t, b, &e)
	return e
}

func (c *client) start(req map[string]any) processView {
	c.t.Helper()
	status, b := c.do("POST", "/v1/processes", jsonBody(c.t, req))
	if status != http.StatusCreated {
		c.t.Fatalf("POST /v1/processes: %d %s", status, b)
	}
	var v processView
	decode(c.t, b, &v)
	return v
}

func (c *client) get(id string) processView {
	c.t.Helper()
	status, b := c.do("GET", "/v1/processes/"+id, nil)
	if status != http.StatusOK {
		c.t.Fatalf("GET process: %d %s", status, b)
	}
	var v processView
	decode(c.t, b, &v)
	return v
}

func (c *client) waitExit(id string) processView {
	c.t.Helper()
	var v processView
	eventually(c.t, "process ended", func() bool { v = c.get(id); return v.State == "exited" })
	return v
}

func jsonBody(t testing.TB, v any) io.Reader {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b)
}

func decode(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// local is a server inside the test process.
type local struct {
	*client
	server  *Server
	manager *Manager
	root    string
	options options
}

func localOptions() options {
	var o options
	f := o.flags(io.Discard)
	if err := f.Parse([]string{"-token-file", "set-by-test"}); err != nil {
		panic(err)
	}
	o.killGrace = 200 * time.Millisecond
	return o
}

// startLocal serves on loopback without the localhost guard. It uses the
// strongest limits that work here.
func startLocal(t testing.TB, change func(*options)) *local {
	t.Helper()
	o := localOptions()
	o.filesRoot = t.TempDir()
	if change != nil {
		change(&o)
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	backend, err := limit.Select(limit.Options{
		Limits:  limit.Limits{MemoryBytes: o.memoryLimit, CPUShares: o.cpuShares, PIDs: o.pidsLimit},
		Backend: o.limitsBackend, CgroupParent: o.cgroupParent,
	})
	if err != nil {
		t.Fatal(err)
	}
	tokenPath := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenPath, []byte(testToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.tokenFile = tokenPath
	token, _, err := o.credentials()
	if err != nil {
		t.Fatal(err)
	}
	store, err := files.Open(o.filesRoot, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	children := reaper.New()
	wg.Go(func() { children.Run(ctx) })
	manager := NewManager(o.managerConfig(backend, children, log))
	wg.Go(func() { manager.Run(ctx) })
	server := NewServer(o.serverConfig("test", token, nil, log), manager, store)
	web := httptest.NewUnstartedServer(nil)
	web.Config = server.httpServer()
	web.Start()
	t.Cleanup(func() {
		now, stop := context.WithCancel(context.Background())
		stop()
		if err := manager.Drain(now, 20*time.Second); err != nil {
			t.Error(err)
		}
		server.endStreams()
		transport.CloseIdleConnections()
		web.Close()
		cancel()
		wg.Wait()
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &local{client: &client{t, web.URL, testToken}, server: server, manager: manager, root: o.filesRoot, options: o}
}

// remote is a server in a process of its own.
type remote struct {
	*client
	cmd  *exec.Cmd
	addr string
	root string
	log  *lockedBuffer
	exit chan error
}

type remoteOptions struct {
	binary   string   // default: this test binary as the server
	args     []string // more flags
	pid1     bool     // in new PID and mount namespaces
	netns    string   // name of a network namespace
	addr     string
	guard    string // cgroup directory that contains it all
	keepLock bool   // leave --restrict-localhost on
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startRemote runs a server and stops it at the end of the test, checking that it
// drains cleanly.
func startRemote(t testing.TB, o remoteOptions) *remote {
	t.Helper()
	r := &remote{root: t.TempDir(), log: &lockedBuffer{}, exit: make(chan error, 1)}
	if err := os.Chmod(r.root, 0o777); err != nil {
		t.Fatal(err)
	}
	tokenPath := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenPath, []byte(testToken), 0o600); err != nil {
		t.Fatal(err)
	}
	if o.addr == "" {
		o.addr = "127.0.0.1:0"
	}
	args := []string{"-addr", o.addr, "-token-file", tokenPath, "-files-root", r.root, "-kill-grace", "200ms", "-drain-timeout", "2s"}
	if !o.keepLock {
		args = append(args, "-restrict-localhost=false")
	}
	args = append(args, o.args...)
	env := helperEnviron("server")
	argv := append([]string{os.Args[0]}, args...)
	if o.binary != "" {
		argv[0] = o.binary
	}
	if o.pid1 {
		needRoot(t)
		env = helperEnviron("pid1")
		argv = append([]string{os.Args[0], builtServer(t)}, args...)
	}
	if o.netns != "" {
		argv = append([]string{"nsenter", "--net=/var/run/netns/" + o.netns}, argv...)
	}
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Env = env
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if o.pid1 {
		r.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := r.cmd.Start
	if o.guard != "" {
		start = func() error { return startInCgroup(r.cmd, o.guard) }
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		sc := bufio.NewScanner(stderr)
		for sc.Scan() {
			_, _ = r.log.Write(append(sc.Bytes(), '\n'))
			var line struct{ Msg, Addr string }
			if json.Unmarshal(sc.Bytes(), &line) == nil && line.Msg == "serving" {
				addr <- line.Addr
			}
		}
	}()
	go func() { <-read; r.exit <- r.cmd.Wait() }()
	t.Cleanup(func() { r.stop(t) })
	select {
	case r.addr = <-addr:
	case err := <-r.exit:
		r.exit <- err
		t.Fatalf("the server did not start: %v: %s", err, r.log)
	case <-time.After(20 * time.Second):
		t.Fatalf("the server does not serve: %s", r.log)
	}
	r.client = &client{t, "http://" + r.addr, testToken}
	return r
}

func (r *remote) stop(t testing.TB) {
	transport.CloseIdleConnections()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.exit:
		if err != nil {
			t.Errorf("the server did not end cleanly: %v: %s", err, r.log)
		}
		r.exit <- err
	case <-time.After(30 * time.Second):
		_ = r.cmd.Process.Kill()
		t.Errorf("the server did not end: %s", r.log)
	}
}

// startInCgroup starts cmd inside a cgroup v1 directory, from a thread of it.
func startInCgroup(cmd *exec.Cmd, dir string) error {
	// "0" is the writing thread group; a stopped shell would do as well, but this
	// needs no second program: the child joins before it becomes the server.
	argv := append([]string{"-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(dir, "cgroup.procs"), cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh"}, argv...)
	return cmd.Start()
}

// guardCgroup makes a pids cgroup around a test that lets a fork bomb off, so
// that a bug costs the test and not the machine.
func guardCgroup(t testing.TB, limit int) string {
	t.Helper()
	needRoot(t)
	for _, base := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		dir := filepath.Join(base, "sandbox-api-guard-"+strconv.Itoa(os.Getpid())+"-"+strings.ToLower(strings.NewReplacer("/", "-").Replace(t.Name())))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(limit)), 0); err != nil {
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			eventually(t, "guard cgroup is empty", func() bool {
				b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				for _, f := range strings.Fields(string(b)) {
					if pid, err := strconv.Atoi(f); err == nil {
						_ = syscall.Kill(pid, syscall.SIGKILL)
					}
				}
				return len(bytes.TrimSpace(b)) == 0
			})
			eventually(t, "guard cgroup removed", func() bool { return os.Remove(dir) == nil })
		})
		return dir
	}
	t.Fatal("this test lets a fork bomb off and needs a pids cgroup to contain it: mount cgroups writable, or leave it out with -skip ForkBomb")
	return ""
}

// rssOf returns the largest resident set a process had, in bytes.
func rssOf(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
