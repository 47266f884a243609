package sandboxapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const token = "0123456789abcdef-perf"

// server is the program under test.
type server struct {
	base string
	pid  int
	http *http.Client
}

func start(tb testing.TB, args ...string) *server {
	tb.Helper()
	dir := tb.TempDir()
	bin := filepath.Join(dir, "sandbox-api")
	build := exec.Command("go", "build", "-o", bin, "github.com/sandbox-egress/sandbox-egress/cmd/sandbox-api")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build: %v: %s", err, out)
	}
	if err := os.WriteFile(dir+"/token", []byte(token), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{
		"-addr", "127.0.0.1:0", "-restrict-localhost=false", "-token-file", dir + "/token", "-files-root", dir,
		"-log-level", "info", "-slow-reader-timeout", "30s",
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			tb.Errorf("the server ended with %v", err)
		}
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct{ Msg, Addr, Limits string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			tb.Logf("limits: %s", line.Limits)
			go func() {
				for lines.Scan() { // the log is read, as in a cluster
				}
			}()
			transport := &http.Transport{MaxIdleConnsPerHost: 16, ReadBufferSize: 64 << 10}
			tb.Cleanup(transport.CloseIdleConnections)
			return &server{base: "http://" + line.Addr, pid: cmd.Process.Pid, http: &http.Client{Transport: transport}}
		}
	}
	tb.Fatal("the server does not start")
	return nil
}

func (s *server) post(tb testing.TB, path, body string, header ...string) *http.Response {
	tb.Helper()
	req, err := http.NewRequest(http.MethodPost, s.base+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		tb.Fatalf("POST %s: %d %s", path, resp.StatusCode, b)
	}
	return resp
}

// executeTrue runs /bin/true through the API.
func (s *server) executeTrue(tb testing.TB) {
	tb.Helper()
	resp := s.post(tb, "/execute", `{"args":["/bin/true"]}`)
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !bytes.Contains(b, []byte(`"exit_code":0`)) {
		tb.Fatalf("%v: %s", err, b)
	}
}

// plainTrue runs it with os/exec, both outputs captured as /execute does.
func plainTrue(tb testing.TB) {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/bin/true")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatal(err)
	}
}

// peakRSS is the largest resident set of the server so far, in bytes.
func (s *server) peakRSS(tb testing.TB) int64 {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kib << 10
		}
	}
	tb.Fatal("no VmHWM")
	return 0
}

// cpu is the processor time the server itself has used, user and system.
func (s *server) cpu(tb testing.TB) time.Duration {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	var ticks int64
	for _, v := range f[11:13] { // utime, stime of proc_pid_stat(5)
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on Linux
}

// measure calls f n times and returns how long each took.
func measure(n int, f func()) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		begin := time.Now()
		f()
		out[i] = time.Since(begin)
	}
	return out
}
