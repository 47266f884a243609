package process

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"

	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
)

func TestProcessLifecycle(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "cat; exit 3"})
	if v.State != "running" || v.Kind != kindProcess || len(v.ID) < 20 || v.PID <= 1 {
		t.Errorf("got %+v", v)
	}
	if got := s.get(v.ID); got.Usage == nil || got.Usage.PIDs < 1 {
		t.Errorf("usage of a running process: %+v", got.Usage)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", strings.NewReader("hello ")); status != 200 || string(b) != "{\"written\":6}\n" {
		t.Errorf("stdin: %d %s", status, b)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin?close=true", strings.NewReader("world")); status != 200 {
		t.Errorf("stdin: %d %s", status, b)
	}
	got := s.waitExit(v.ID)
	if got.Result.ExitCode != 3 || got.Output.Next != 11 || got.ExitedAt == nil {
		t.Errorf("got %+v", got)
	}
	out, lost, exit := readEvents(t, s.client, v.ID, 0)
	if string(out["stdout"]) != "hello world" || lost != 0 || exit.ExitCode != 3 {
		t.Errorf("got %q lost %d exit %+v", out, lost, exit)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", strings.NewReader("x")); status != 409 || !bytes.Contains(b, []byte("stdin_closed")) {
		t.Errorf("stdin after the end: %d %s", status, b)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/signal", strings.NewReader(`{"signal":"TERM"}`)); status != 409 {
		t.Errorf("signal after the end: %d %s", status, b)
	}
	if status, _ := s.do("DELETE", "/v1/processes/"+v.ID, nil); status != 200 {
		t.Errorf("DELETE: %d", status)
	}
	if status, b := s.do("GET", "/v1/processes/"+v.ID, nil); status != 404 {
		t.Errorf("after DELETE: %d %s", status, b)
	}
}

func TestListShowsWhatRuns(t *testing.T) {
	s := startLocal(t, nil)
	a, b := s.start(map[string]any{"command": "sleep 100"}), s.start(map[string]any{"args": []string{"true"}})
	s.waitExit(b.ID)
	_, body := s.do("GET", "/v1/processes", nil)
	var list struct{ Processes []processView }
	decode(t, body, &list)
	if len(list.Processes) != 2 || list.Processes[0].ID != a.ID || list.Processes[0].State != "running" || list.Processes[1].State != "exited" {
		t.Errorf("got %s", body)
	}
}

func TestUnknownProcess(t *testing.T) {
	s := startLocal(t, nil)
	for _, r := range []string{"GET ", "DELETE ", "POST /signal", "POST /stdin", "POST /resize", "GET /stream"} {
		method, path, _ := strings.Cut(r, " ")
		if status, b := s.do(method, "/v1/processes/nothing"+path, strings.NewReader("{}")); status != 404 {
			t.Errorf("%s: %d %s", r, status, b)
		}
	}
}

func TestSignalReachesTheGroupOrTheProcessAlone(t *testing.T) {
	s := startLocal(t, nil)
	script := "trap 'echo parent' USR1; sh -c 'trap \"echo child\" USR1; echo ready; while :; do sleep 0.02; done' & while :; do sleep 0.02; done"
	for name, tt := range map[string]struct {
		body string
		want []string
		not  string
	}{
		"group":  {`{"signal":"USR1"}`, []string{"parent\n", "child\n"}, ""},
		"single": {`{"signal":10,"single":true}`, []string{"parent\n"}, "child\n"},
	} {
		t.Run(name, func(t *testing.T) {
			v := s.start(map[string]any{"command": script})
			p, err := s.manager.Get(v.ID)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "child is ready", func() bool { return p.log.Stats().Tail >= 6 })
			if status, b := s.do("POST", "/v1/processes/"+v.ID+"/signal", strings.NewReader(tt.body)); status != 204 {
				t.Fatalf("signal: %d %s", status, b)
			}
			want := len("ready\n")
			for _, w := range tt.want {
				want += len(w)
			}
			eventually(t, "signal is handled", func() bool { return p.log.Stats().Tail >= int64(want) })
			time.Sleep(100 * time.Millisecond)
			if status, _ := s.do("DELETE", "/v1/processes/"+v.ID+"?grace_ms=0", nil); status != 200 {
				t.Errorf("DELETE %d", status)
			}
			got := logText(t, p)
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("no %q in %q", w, got)
				}
			}
			if tt.not != "" && strings.Contains(got, tt.not) {
				t.Errorf("%q in %q", tt.not, got)
			}
		})
	}
	if status, b := s.do("POST", "/v1/processes/"+s.start(map[string]any{"command": "sleep 9"}).ID+"/signal", strings.NewReader(`{"signal":"NOPE"}`)); status != 400 {
		t.Errorf("unknown signal: %d %s", status, b)
	}
}

func logText(t *testing.T, p *Process) string {
	t.Helper()
	r := p.log.NewReader(0)
	defer r.Close()
	var out []byte
	buf := make([]byte, 4096)
	for {
		c, err := r.Next(context.Background(), buf)
		if err != nil {
			return string(out)
		}
		out = append(out, c.Data...)
	}
}

func TestStdinOfAProcessThatDoesNotReadIsBounded(t *testing.T) {
	s := startLocal(t, func(o *options) { o.stdinTimeout = 300 * time.Millisecond })
	v := s.start(map[string]any{"command": "sleep 100"})
	begin := time.Now()
	status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", bytes.NewReader(make([]byte, 1<<20)))
	if status != http.StatusConflict || !bytes.Contains(b, []byte("stdin_full")) || time.Since(begin) > 10*time.Second {
		t.Errorf("after %v: %d %s", time.Since(begin), status, b)
	}
	closed := s.start(map[string]any{"command": "sleep 100", "stdin_open": false})
	if status, b := s.do("POST", "/v1/processes/"+closed.ID+"/stdin", strings.NewReader("x")); status != http.StatusConflict {
		t.Errorf("%d %s", status, b)
	}
}

func TestTerminal(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{
		"command": `tty >/dev/null && echo is-a-tty; stty -echo; trap 'stty size' WINCH; stty size; while [ ! -e stop ]; do sleep 0.05; done; read x; echo "got $x"`,
		"tty":     true, "cwd": s.root, "size": map[string]int{"columns": 100, "rows": 40},
	})
	p, err := s.manager.Get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	text := func() string {
		out, _ := p.log.NewReader(0), 0
		defer out.Close()
		buf := make([]byte, 1<<16)
		if p.log.Stats().Tail == 0 {
			return ""
		}
		c, err := out.Next(context.Background(), buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(c.Data)
	}
	eventually(t, "first size", func() bool { return strings.Contains(text(), "40 100") })
	if !strings.Contains(text(), "is-a-tty") {
		t.Errorf("no terminal: %q", text())
	}
	for i, size := range []Size{{Columns: 120, Rows: 50}, {Columns: 81, Rows: 25}} {
		if status, b := s.do("POST", "/v1/processes/"+v.ID+"/resize", jsonBody(t, size)); status != 204 {
			t.Fatalf("resize: %d %s", status, b)
		}
		want := fmt.Sprintf("%d %d", size.Rows, size.Columns)
		eventually(t, fmt.Sprintf("size %d", i), func() bool { return strings.Contains(text(), want) })
	}
	if err := os.WriteFile(s.root+"/stop", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", strings.NewReader("line\n")); status != 200 {
		t.Fatalf("stdin: %d %s", status, b)
	}
	got := s.waitExit(v.ID)
	if got.Result.ExitCode != 0 || !strings.Contains(text(), "got line") {
		t.Errorf("%+v: %q", got.Result, text())
	}
	if status, _ := s.do("POST", "/v1/processes/"+v.ID+"/resize", strings.NewReader(`{"columns":80,"rows":24}`)); status != 409 {
		t.Errorf("resize after the end: %d", status)
	}
}

func TestTerminalEndOfInput(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "cat; exit 8", "tty": true})
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin?close=true", strings.NewReader("x\n")); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	if got := s.waitExit(v.ID); got.Result.ExitCode != 8 {
		t.Errorf("got %+v", got.Result)
	}
	if status, b := s.do("POST", "/v1/processes/"+s.start(map[string]any{"command": "sleep 9"}).ID+"/resize", strings.NewReader(`{"columns":80,"rows":24}`)); status != 409 || !bytes.Contains(b, []byte("no_tty")) {
		t.Errorf("resize without a terminal: %d %s", status, b)
	}
}

func TestDeleteEscalates(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done"})
	eventually(t, "it is ready", func() bool { return s.get(v.ID).Output.Next > 0 })
	begin := time.Now()
	status, b := s.do("DELETE", "/v1/processes/"+v.ID+"?grace_ms=300", nil)
	var got processView
	decode(t, b, &got)
	if took := time.Since(begin); took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if status != 200 || got.Result.Signal != "SIGKILL" || got.Result.KillReason != killCaller {
		t.Errorf("%d %s", status, b)
	}
}

// Signals, deletions, timeouts, natural ends and stdin all at once: every process
// ends once, no request hangs, no slot leaks.
func TestKillRaces(t *testing.T) {
	s := startLocal(t, nil)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 12 {
				v := s.start(map[string]any{"command": fmt.Sprintf("cat & sleep 0.0%d", rand.IntN(9)), "timeout_ms": 1 + rand.IntN(60), "kill_grace_ms": rand.IntN(20)})
				var ops sync.WaitGroup
				for _, op := range []string{"DELETE ?grace_ms=5", "DELETE ", "POST /signal", "POST /stdin", "GET ", "GET /stream"} {
					method, path, _ := strings.Cut(op, " ")
					body := "x"
					if path == "/signal" {
						body = `{"signal":"TERM"}`
					}
					ops.Go(func() {
						time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
						status, b := s.do(method, "/v1/processes/"+v.ID+path, strings.NewReader(body))
						switch status {
						case 200, 204, 404, 409:
						default:
							t.Errorf("%s: %d %s", op, status, b)
						}
					})
				}
				ops.Wait()
				if status, _ := s.do("GET", "/v1/processes/"+v.ID, nil); status != 404 {
					t.Errorf("still listed: %d", status)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all slots are free", func() bool { return s.manager.Running() == 0 })
}

func TestExitIsKeptTenMinutesAndThenForgotten(t *testing.T) {
	s := startLocal(t, nil)
	clk := testclock.NewFakeClock(time.Now())
	cfg := s.manager.cfg
	cfg.Clock = clk
	m := NewManager(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	p, err := m.Start(t.Context(), kindProcess, &Request{Args: []string{"true"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	eventually(t, "janitor waits", clk.HasWaiters)
	clk.Step(9*time.Minute + 50*time.Second)
	time.Sleep(50 * time.Millisecond)
	if _, err := m.Get(p.id); err != nil {
		t.Errorf("forgotten too early: %v", err)
	}
	eventually(t, "forgotten", func() bool {
		clk.Step(janitorPeriod)
		_, err := m.Get(p.id)
		return err != nil
	})
}

// Between its end and its answer an execution is listed, has a result and no log.
func TestJanitorLeavesExecutionsAlone(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxExited = 1 })
	m := s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byID["answered"] = &Process{id: "answered", kind: kindExecute, result: &Result{}}
	m.forget(time.Now().Add(time.Hour))
	if m.byID["answered"] == nil {
		t.Error("an execution was forgotten before its answer")
	}
	delete(m.byID, "answered")
}

// One slot is enough for callers that wait for each answer.
func TestSlotIsFreeWhenTheAnswerIsOut(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxProcesses = 1 })
	for range 50 {
		s.execute(map[string]any{"args": []string{"true"}})
	}
}

func TestEndedProcessesAreBoundedInNumberAndOutput(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxExited, o.retainOutput = 3, 5000 })
	var ids []string
	for range 5 {
		v := s.start(map[string]any{"command": "head -c 2000 /dev/zero"})
		s.waitExit(v.ID)
		ids = append(ids, v.ID)
	}
	eventually(t, "the last one counts", func() bool {
		status, _ := s.do("GET", "/v1/processes/"+ids[1], nil)
		return status == http.StatusNotFound
	})
	for i, id := range ids {
		status, b := s.do("GET", "/v1/processes/"+id, nil)
		if want := i >= 2; (status == 200) != want {
			t.Errorf("process %d: %d", i, status)
			continue
		}
		if status != 200 {
			continue
		}
		var v processView
		decode(t, b, &v)
		// 5000 bytes hold the output of the newest two.
		if wantDropped := int64(0); i == 2 {
			wantDropped = 2000
			if v.Output.Dropped != wantDropped {
				t.Errorf("process %d: %+v", i, v.Output)
			}
			if _, lost, _ := readEvents(t, s.client, id, 0); lost != 2000 {
				t.Errorf("gap of %d", lost)
			}
		} else if v.Output.Dropped != wantDropped {
			t.Errorf("process %d: %+v", i, v.Output)
		}
	}
}

func TestSlotAndScopeAreFreedWhenTheBackendFails(t *testing.T) {
	s := startLocal(t, nil)
	cfg := s.manager.cfg
	cfg.Backend = failingBackend{}
	m := NewManager(cfg)
	if _, err := m.Start(t.Context(), kindProcess, &Request{Args: []string{"true"}}, nil); err == nil {
		t.Error("started without limits")
	}
	if n := m.Running(); n != 0 {
		t.Errorf("%d slots in use", n)
	}
}

type failingBackend struct{}

func (failingBackend) Info() limit.Info          { return limit.Info{} }
func (failingBackend) New() (limit.Scope, error) { return nil, fmt.Errorf("no cgroup") }
func (failingBackend) Close() error              { return nil }
