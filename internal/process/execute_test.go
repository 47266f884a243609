package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestExecute(t *testing.T) {
	s := startLocal(t, nil)
	tests := map[string]struct {
		req  map[string]any
		want execution
	}{
		"command":                   {map[string]any{"command": "echo hi"}, execution{Stdout: "hi\n"}},
		"stderr and exit code":      {map[string]any{"command": "echo oops >&2; exit 3"}, execution{Stderr: "oops\n", ExitCode: 3}},
		"args take no shell":        {map[string]any{"args": []string{"echo", "$HOME;", "*"}}, execution{Stdout: "$HOME; *\n"}},
		"other shell":               {map[string]any{"command": "echo $0", "shell": "bash"}, execution{Stdout: "bash\n"}},
		"cwd":                       {map[string]any{"command": "pwd", "cwd": "/usr"}, execution{Stdout: "/usr\n"}},
		"env":                       {map[string]any{"command": "echo $A-$B", "env": map[string]string{"A": "x y", "B": "ü"}}, execution{Stdout: "x y-ü\n"}},
		"stdin":                     {map[string]any{"command": "cat; echo end", "stdin": "in\n"}, execution{Stdout: "in\nend\n"}},
		"binary stdin":              {map[string]any{"command": "wc -c", "stdin_base64": "AP8K"}, execution{Stdout: "3\n"}},
		"no stdin is an empty one":  {map[string]any{"command": "cat; echo end"}, execution{Stdout: "end\n"}},
		"unread stdin":              {map[string]any{"command": "exit 5", "stdin": strings.Repeat("x", 1<<20)}, execution{ExitCode: 5}},
		"killed by a signal":        {map[string]any{"command": "kill -SEGV $$"}, execution{ExitCode: 139, Signal: "SIGSEGV"}},
		"truncated":                 {map[string]any{"command": "printf 1234567890; printf abc >&2", "max_output_bytes": 4}, execution{Stdout: "1234", Stderr: "abc", Truncated: true}},
		"exactly the limit":         {map[string]any{"command": "printf 1234", "max_output_bytes": 4}, execution{Stdout: "1234"}},
		"bytes that are not UTF-8":  {map[string]any{"command": `printf 'a\377b'`}, execution{Stdout: "a\ufffdb"}},
		"base64":                    {map[string]any{"command": `printf 'a\377b'`, "output_encoding": "base64"}, execution{Stdout: "Yf9i"}},
		"status of a shell's child": {map[string]any{"command": "sh -c 'exit 9'; echo $?"}, execution{Stdout: "9\n"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := s.execute(tt.req)
			got.DurationMS = 0
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestExecuteAnswerHasTheDocumentedFields(t *testing.T) {
	s := startLocal(t, nil)
	// As curl -d sends it.
	_, b := s.do("POST", "/execute", strings.NewReader(`{"command":"echo hi"}`), "Content-Type", "application/x-www-form-urlencoded")
	if !bytes.HasPrefix(b, []byte(`{"stdout":"hi\n","stderr":"","exit_code":0,`)) {
		t.Errorf("got %s", b)
	}
	var m map[string]any
	decode(t, b, &m)
	for _, f := range []string{"stdout", "stderr", "exit_code", "signal", "timed_out", "oom_killed", "truncated", "duration_ms"} {
		if _, ok := m[f]; !ok {
			t.Errorf("no %s in %s", f, b)
		}
	}
}

func TestExecuteRunsAsTheUserOfTheRequest(t *testing.T) {
	needRoot(t)
	s := startLocal(t, nil)
	got := s.execute(map[string]any{"command": "id -u; id -g; id -G", "user": "54321:54322", "cwd": "/"})
	if got.Stdout != "54321\n54322\n54322\n" {
		t.Errorf("got %+v", got)
	}
}

func TestExecuteRefusesWhatCannotRun(t *testing.T) {
	s := startLocal(t, nil)
	tests := map[string]struct {
		req   map[string]any
		field string
	}{
		"no such program":    {map[string]any{"args": []string{"no-such-program"}}, "args[0]"},
		"no such shell":      {map[string]any{"command": "x", "shell": "/bin/no-such-shell"}, "shell"},
		"no such cwd":        {map[string]any{"command": "x", "cwd": "/no/such/dir"}, "cwd"},
		"cwd is a file":      {map[string]any{"command": "x", "cwd": "/etc/passwd"}, "cwd"},
		"no such user":       {map[string]any{"command": "x", "user": "no-such-user"}, "user"},
		"timeout too long":   {map[string]any{"command": "x", "timeout_ms": 3600_001}, "timeout_ms"},
		"output limit":       {map[string]any{"command": "x", "max_output_bytes": 1<<20 + 1}, "max_output_bytes"},
		"tty":                {map[string]any{"command": "x", "tty": true}, "tty"},
		"missing interpeter": {map[string]any{"args": []string{s.root + "/script"}}, "args[0]"},
	}
	if err := os.WriteFile(s.root+"/script", []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, b := s.do("POST", "/execute", jsonBody(t, tt.req))
			var e struct{ Error apiError }
			decode(t, b, &e)
			if status != 400 || e.Error.Field != tt.field || e.Error.Message == "" {
				t.Errorf("%d %s", status, b)
			}
		})
	}
	if n := s.manager.Running(); n != 0 {
		t.Errorf("%d slots are still in use", n)
	}
}

func TestTimeoutAnswersWithPartialOutputAndEndsTheTree(t *testing.T) {
	s := startLocal(t, nil)
	begin := time.Now()
	pidFile := filepath.Join(s.root, "pid")
	got := s.execute(map[string]any{
		"command":    "trap '' TERM; setsid sleep 1000 & echo $! > " + pidFile + "; echo begun; sleep 1000",
		"timeout_ms": 300, "kill_grace_ms": 200,
	})
	if took := time.Since(begin); took < 450*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if got.Stdout != "begun\n" || !got.TimedOut || got.Signal != "SIGKILL" || got.ExitCode != 137 || got.KillReason != killTimeout {
		t.Errorf("got %+v", got)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	if err := processGone(pid); err != nil {
		t.Error(err)
	}
}

// processGone waits until pid has ended; a zombie has.
func processGone(pid int) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || bytes.Contains(b, []byte(") Z ")) || bytes.Contains(b, []byte(") X ")) {
			return nil
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return fmt.Errorf("process %d is still there: %s", pid, b)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestTermIsEnoughForAProcessThatHandlesIt(t *testing.T) {
	s := startLocal(t, nil)
	got := s.execute(map[string]any{"command": "trap 'echo bye; exit 4' TERM; while :; do sleep 0.02; done", "timeout_ms": 200, "kill_grace_ms": 20_000})
	if got.Stdout != "bye\n" || !got.TimedOut || got.ExitCode != 4 || got.Signal != "" {
		t.Errorf("got %+v", got)
	}
}

func TestStoppedProcessIsEnded(t *testing.T) {
	s := startLocal(t, nil)
	got := s.execute(map[string]any{"command": "kill -STOP $$", "timeout_ms": 100, "kill_grace_ms": 100})
	if !got.TimedOut || got.Signal != "SIGTERM" {
		t.Errorf("got %+v", got)
	}
}

func TestDoubleForkedDaemonDoesNotHoldTheAnswer(t *testing.T) {
	s := startLocal(t, nil)
	begin := time.Now()
	got := s.execute(map[string]any{"command": "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo done"})
	if got.Stdout != "done\n" || got.ExitCode != 0 || time.Since(begin) > 5*time.Second {
		t.Errorf("after %v: %+v", time.Since(begin), got)
	}
	eventually(t, "slot is free", func() bool { return s.manager.Running() == 0 })
}

func TestKeptDescendantsLiveOnAndHoldTheirSlot(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxProcesses = 1 })
	begin := time.Now()
	got := s.execute(map[string]any{"command": "sleep 1.5 & echo $!", "keep_descendants": true})
	if time.Since(begin) > time.Second {
		t.Errorf("the answer waited for the daemon: %v", time.Since(begin))
	}
	var pid int
	if _, err := fmt.Sscan(got.Stdout, &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the daemon is gone: %v", err)
	}
	if status, b := s.do("POST", "/execute", strings.NewReader(`{"command":"true"}`)); status != http.StatusTooManyRequests {
		t.Errorf("its slot was given away: %d %s", status, b)
	}
	eventually(t, "slot is free", func() bool { return s.manager.Running() == 0 })
	s.execute(map[string]any{"command": "true"})
}

func TestExecuteStream(t *testing.T) {
	s := startLocal(t, nil)
	resp := s.open("POST", "/execute", strings.NewReader(`{"command":"echo one; sleep 0.3; echo two >&2; exit 6"}`), "Accept", "text/html, "+ndjson)
	defer func() { _ = resp.Body.Close() }()
	if got := resp.Header.Get("Content-Type"); got != ndjson {
		t.Errorf("Content-Type %q", got)
	}
	var types []string
	var arrived []time.Time
	var exit execution
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		var e struct{ Type, Data string }
		decode(t, sc.Bytes(), &e)
		types = append(types, e.Type+":"+e.Data)
		arrived = append(arrived, time.Now())
		decode(t, sc.Bytes(), &exit)
	}
	if got := strings.Join(types, "|"); got != "start:|stdout:one\n|stderr:two\n|exit:" {
		t.Fatalf("got %q", got)
	}
	if exit.ExitCode != 6 {
		t.Errorf("exit %+v", exit)
	}
	if d := arrived[2].Sub(arrived[1]); d < 200*time.Millisecond {
		t.Errorf("the first event came only %v before the second: not streamed", d)
	}
}

func TestExecuteStreamHonoursTheOutputLimit(t *testing.T) {
	s := startLocal(t, nil)
	_, b := s.do("POST", "/execute", strings.NewReader(`{"command":"head -c 300000 /dev/zero | tr '\\0' x; echo e >&2","max_output_bytes":100000}`), "Accept", ndjson)
	got := 0
	var last execution
	for line := range bytes.Lines(b) {
		var e struct{ Type, Data string }
		decode(t, line, &e)
		if e.Type == "stdout" {
			got += len(e.Data)
		}
		decode(t, line, &last)
	}
	if got != 100000 || !last.Truncated {
		t.Errorf("got %d bytes, end %+v", got, last)
	}
}

func TestCallerThatLeavesEndsItsExecution(t *testing.T) {
	for name, accept := range map[string]string{"answer": "application/json", "stream": ndjson} {
		t.Run(name, func(t *testing.T) {
			s := startLocal(t, nil)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				resp, err := s.try(ctx, "POST", "/execute", strings.NewReader(`{"command":"sleep 1000"}`), "Accept", accept)
				if err == nil {
					<-ctx.Done()
					_ = resp.Body.Close()
				}
			}()
			eventually(t, "execution runs", func() bool { return len(s.manager.List()) == 1 })
			p := s.manager.List()[0]
			cancel()
			<-done
			select {
			case <-p.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("it still runs")
			}
			if r := p.Result(); r.KillReason != killDisconnect {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestBodyAndConcurrencyCaps(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxBody, o.maxProcesses = 1000, 2 })
	big := `{"command":"` + strings.Repeat("x", 2000) + `"}`
	if status, b := s.do("POST", "/execute", strings.NewReader(big)); status != 413 {
		t.Errorf("large body: %d %s", status, b)
	}
	// Without Content-Length.
	if status, b := s.do("POST", "/execute", struct{ *bufio.Reader }{bufio.NewReader(strings.NewReader(big))}); status != 413 {
		t.Errorf("large chunked body: %d %s", status, b)
	}
	a, b := s.start(map[string]any{"command": "sleep 100"}), s.start(map[string]any{"command": "sleep 100"})
	for _, path := range []string{"/execute", "/v1/processes"} {
		resp := s.open("POST", path, strings.NewReader(`{"command":"true"}`))
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q", path, resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	for _, v := range []processView{a, b} {
		if status, body := s.do("DELETE", "/v1/processes/"+v.ID, nil); status != 200 {
			t.Errorf("DELETE: %d %s", status, body)
		}
	}
	s.execute(map[string]any{"command": "true"})
}

func TestRequestCap(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxRequests = 2 })
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { s.execute(map[string]any{"command": "sleep 1"}) })
	}
	eventually(t, "both run", func() bool { return s.manager.Running() == 2 })
	if status, b := s.do("GET", "/v1/info", nil); status != 429 {
		t.Errorf("third request: %d %s", status, b)
	}
	if status, _ := s.do("GET", "/healthz", nil); status != 200 {
		t.Errorf("probe: %d", status)
	}
	wg.Wait()
}

func TestManyConcurrentExecutionsKeepTheirStatuses(t *testing.T) {
	s := startLocal(t, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				code := (i*30 + j) % 120
				got := s.execute(map[string]any{"command": fmt.Sprintf("echo %d.%d; exit %d", i, j, code)})
				if got.ExitCode != code || got.Stdout != fmt.Sprintf("%d.%d\n", i, j) {
					t.Errorf("%d.%d: %+v", i, j, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestDrainLetsExecutionsFinishAndEndsTheRest(t *testing.T) {
	s := startLocal(t, nil)
	background := s.start(map[string]any{"command": "sleep 1000"})
	p, err := s.manager.Get(background.ID)
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan execution, 1)
	go func() { answer <- s.execute(map[string]any{"command": "sleep 0.5; echo finished"}) }()
	eventually(t, "both run", func() bool { return s.manager.Running() == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- s.manager.Drain(ctx, 20*time.Second) }()
	eventually(t, "draining", s.manager.Draining)
	if status, _ := s.do("GET", "/readyz", nil); status != 503 {
		t.Errorf("readyz %d", status)
	}
	if status, _ := s.do("GET", "/healthz", nil); status != 200 {
		t.Errorf("healthz %d", status)
	}
	if status, _ := s.do("POST", "/execute", strings.NewReader(`{"command":"true"}`)); status != 503 {
		t.Errorf("new execution: %d", status)
	}
	if got := <-answer; got.Stdout != "finished\n" || got.KillReason != "" {
		t.Errorf("got %+v", got)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if r := p.Result(); r == nil || r.KillReason != killShutdown {
		t.Errorf("background process: %+v", r)
	}
}

func TestDrainEndsExecutionsThatTakeTooLong(t *testing.T) {
	s := startLocal(t, nil)
	answer := make(chan execution, 1)
	go func() { answer <- s.execute(map[string]any{"command": "echo begun; sleep 1000"}) }()
	eventually(t, "it runs", func() bool { return s.manager.Running() == 1 })
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.manager.Drain(ctx, 20*time.Second); err != nil {
		t.Error(err)
	}
	if got := <-answer; got.KillReason != killShutdown || got.Stdout != "begun\n" {
		t.Errorf("got %+v", got)
	}
}

func TestInfoSaysHowLimitsAreEnforced(t *testing.T) {
	s := startLocal(t, nil)
	_, b := s.do("GET", "/v1/info", nil)
	var i info
	if err := json.Unmarshal(b, &i); err != nil {
		t.Fatal(err)
	}
	if i.Limits.Backend == "" || i.Limits.Memory.Value != 4294900000 || i.Limits.Memory.By == "" || i.Limits.CPU.Value != 1024 || i.Limits.PIDs.Value != 1024 || i.Limits.Kill == "" {
		t.Errorf("got %s", b)
	}
	if i.Authentication != "bearer" || i.MaxProcesses != 64 || i.WebSocketBuffer != 16384 || i.RetainExitedMS != 600_000 {
		t.Errorf("got %s", b)
	}
}
