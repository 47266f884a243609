package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

// readEvents reads an event stream to its end: bytes by type, bytes lost, exit.
func readEvents(t testing.TB, c *client, id string, since int64) (map[string][]byte, int64, execution) {
	t.Helper()
	resp := c.open("GET", fmt.Sprintf("/v1/processes/%s/stream?since=%d", id, since), nil)
	defer func() { _ = resp.Body.Close() }()
	return decodeEvents(t, resp.Body, since)
}

func decodeEvents(t testing.TB, r io.Reader, since int64) (map[string][]byte, int64, execution) {
	t.Helper()
	out, lost, exit := map[string][]byte{}, int64(0), execution{}
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			t.Fatalf("the stream ended without an exit event")
		}
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			Type           string
			Seq, From, To  int64
			Lost           int64
			Data           string
			B64            []byte `json:"data_base64"`
			ExitCode, Code int
		}
		decode(t, line, &e)
		switch e.Type {
		case "stdout", "stderr":
			data := append([]byte(e.Data), e.B64...)
			out[e.Type] = append(out[e.Type], data...)
			if since += int64(len(data)); e.Seq != since {
				t.Fatalf("position %d, want %d", e.Seq, since)
			}
		case "gap":
			if e.From != since || e.To-e.From != e.Lost {
				t.Fatalf("gap %s at %d", line, since)
			}
			since, lost = e.To, lost+e.Lost
		case "exit":
			if err := json.Unmarshal(line, &exit); err != nil {
				t.Fatal(err)
			}
			return out, lost, exit
		}
	}
}

// ws opens the WebSocket stream of a process.
func (c *client) ws(id, query string, protocols ...string) *websocket.Conn {
	c.t.Helper()
	if protocols == nil {
		protocols = []string{frame.Protocol}
	}
	conn, resp, err := websocket.Dial(context.Background(), strings.Replace(c.base, "http", "ws", 1)+"/v1/processes/"+id+"/stream"+query,
		&websocket.DialOptions{Subprotocols: protocols, HTTPHeader: http.Header{"Authorization": {"Bearer " + c.token}}, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		if resp != nil {
			b, _ := io.ReadAll(resp.Body)
			err = fmt.Errorf("%w: %s", err, b)
		}
		c.t.Fatal(err)
	}
	conn.SetReadLimit(2 << 20)
	c.t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// readSocket reads n bytes of output, or until the status when n is negative.
func readSocket(t testing.TB, conn *websocket.Conn, n int) (out []byte, lost int64, status string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for n < 0 || len(out) < n {
		_, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(out), err)
		}
		switch b[0] {
		case frame.Stdout, frame.Stderr:
			out = append(out, b[1:]...)
		case frame.Marker:
			var gap struct{ Lost int64 }
			decode(t, b[1:], &gap)
			lost += gap.Lost
		case frame.Status:
			return out, lost, string(b[1:])
		}
	}
	return out, lost, ""
}

func send(t testing.TB, conn *websocket.Conn, b []byte) {
	t.Helper()
	if err := conn.Write(context.Background(), websocket.MessageBinary, b); err != nil {
		t.Fatal(err)
	}
}

func TestWebSocketStream(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "cat; exit 3"})
	conn := s.ws(v.ID, "")
	if got := conn.Subprotocol(); got != frame.Protocol {
		t.Errorf("subprotocol %q", got)
	}
	send(t, conn, []byte("\x00hello "))
	send(t, conn, []byte("\x00world"))
	send(t, conn, []byte{255, 0})
	out, lost, status := readSocket(t, conn, -1)
	if string(out) != "hello world" || lost != 0 {
		t.Errorf("got %q, lost %d", out, lost)
	}
	if !strings.Contains(status, `"Failure"`) || !strings.Contains(status, `"message":"3"`) {
		t.Errorf("status %s", status)
	}
	if _, _, err := conn.Read(context.Background()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("close: %v", err)
	}
}

func TestWebSocketTellsTheStreamsApart(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "echo out; echo err >&2"})
	conn := s.ws(v.ID, "")
	got := map[byte]string{}
	for {
		_, b, err := conn.Read(context.Background())
		if err != nil {
			break
		}
		got[b[0]] += string(b[1:])
	}
	if got[frame.Stdout] != "out\n" || got[frame.Stderr] != "err\n" {
		t.Errorf("got %q", got)
	}
}

func TestWebSocketMessagesAreBoundedByTheBuffer(t *testing.T) {
	s := startLocal(t, func(o *options) { o.webSocketBuffer = 100 })
	v := s.start(map[string]any{"command": "head -c 5000 /dev/zero"})
	conn := s.ws(v.ID, "")
	total := 0
	for {
		_, b, err := conn.Read(context.Background())
		if err != nil {
			break
		}
		if b[0] == frame.Stdout {
			total += len(b) - 1
			if len(b) > 101 {
				t.Fatalf("message of %d bytes", len(b))
			}
		}
	}
	if total != 5000 {
		t.Errorf("got %d bytes", total)
	}
}

// Kubernetes' own client of the protocol.
func TestKubernetesRemoteCommandClient(t *testing.T) {
	s := startLocal(t, nil)
	executor := func(id string) remotecommand.Executor {
		e, err := remotecommand.NewWebSocketExecutor(&rest.Config{Host: s.base, BearerToken: s.token}, "GET", s.base+"/v1/processes/"+id+"/stream")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	v := s.start(map[string]any{"command": "tr a-z A-Z; echo err >&2; exit 7"})
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := executor(v.ID).StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: strings.NewReader(strings.Repeat("hello\n", 20_000)), Stdout: &stdout, Stderr: &stderr,
	})
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("got %v, want exit code 7", err)
	}
	if stdout.String() != strings.Repeat("HELLO\n", 20_000) || stderr.String() != "err\n" {
		t.Errorf("got %d bytes of stdout, stderr %q", stdout.Len(), stderr.String())
	}
	v = s.start(map[string]any{"command": "stty size; sleep 0.5; stty size", "tty": true})
	stdout.Reset()
	sizes := &sizeQueue{sizes: []remotecommand.TerminalSize{{Width: 111, Height: 55}}}
	if err := executor(v.ID).StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &stdout, Tty: true, TerminalSizeQueue: sizes}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(stdout.String(), "55 111") {
		t.Errorf("got %q", stdout.String())
	}
}

type sizeQueue struct{ sizes []remotecommand.TerminalSize }

func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	if len(q.sizes) == 0 {
		return nil
	}
	s := q.sizes[0]
	q.sizes = q.sizes[1:]
	return &s
}

func TestStreamReconnectWithSince(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "i=0; while [ $i -lt 200 ]; do echo line-$i; i=$((i+1)); done; read x; echo last"})
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&want, "line-%d\n", i)
	}
	want.WriteString("last\n")

	first := s.ws(v.ID, "")
	got, _, _ := readSocket(t, first, 500)
	got = got[:500] // the rest of the message is lost with the connection
	_ = first.CloseNow()
	second := s.ws(v.ID, fmt.Sprintf("?since=%d", len(got)))
	more, lost, _ := readSocket(t, second, 300)
	if lost != 0 {
		t.Errorf("lost %d", lost)
	}
	got = append(got, more[:300]...)
	_ = second.CloseNow()
	if v := s.get(v.ID); v.State != "running" {
		t.Fatalf("a disconnect ended the process: %+v", v.Result)
	}
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", strings.NewReader("\n")); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	s.waitExit(v.ID)
	// The exit is kept: the rest comes after the end, as events this time.
	events, lost, exit := readEvents(t, s.client, v.ID, int64(len(got)))
	got = append(got, events["stdout"]...)
	if string(got) != want.String() || lost != 0 || exit.ExitCode != 0 {
		t.Errorf("lost %d, exit %+v, got %q", lost, exit, got)
	}
}

func TestLateReaderGetsAGapMarkerAndTheLastOutput(t *testing.T) {
	s := startLocal(t, func(o *options) { o.replayBuffer = 10_000 })
	v := s.start(map[string]any{"command": "head -c 90000 /dev/zero; head -c 10000 /dev/zero | tr '\\0' x"})
	s.waitExit(v.ID)
	out, lost, _ := readEvents(t, s.client, v.ID, 0)
	if lost != 90_000 || string(out["stdout"]) != strings.Repeat("x", 10_000) {
		t.Errorf("events: lost %d, got %d bytes", lost, len(out["stdout"]))
	}
	got, lost, _ := readSocket(t, s.ws(v.ID, "?since=50000"), -1)
	if lost != 40_000 || len(got) != 10_000 {
		t.Errorf("socket: lost %d, got %d bytes", lost, len(got))
	}
}

func TestSlowReaderHoldsNeitherTheProcessNorOthers(t *testing.T) {
	s := startLocal(t, func(o *options) { o.slowReader = 2 * time.Second })
	const size = 64 << 20
	v := s.start(map[string]any{"command": fmt.Sprintf("read x; head -c %d /dev/zero", size)})
	slow := s.ws(v.ID, "")
	quick := make(chan int, 1)
	conn := s.ws(v.ID, "")
	if status, b := s.do("POST", "/v1/processes/"+v.ID+"/stdin", strings.NewReader("\n")); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	go func() {
		n, buf := 0, context.Background()
		for {
			_, b, err := conn.Read(buf)
			if err != nil {
				quick <- n
				return
			}
			if b[0] == frame.Stdout {
				n += len(b) - 1
			}
		}
	}()
	begin := time.Now()
	got := s.waitExit(v.ID)
	if got.Result.ExitCode != 0 || time.Since(begin) > 30*time.Second {
		t.Errorf("after %v: %+v", time.Since(begin), got.Result)
	}
	if n := <-quick; n != size {
		t.Errorf("the quick reader got %d of %d bytes", n, size)
	}
	out, lost, status := readSocket(t, slow, -1)
	if lost == 0 || int64(len(out))+lost != size || !strings.Contains(status, "Success") {
		t.Errorf("the slow reader got %d bytes, a gap of %d, %s", len(out), lost, status)
	}
	p, err := s.manager.Get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if m := p.log.Stats().Memory; m > int64(s.options.replayBuffer)+1000 {
		t.Errorf("the log holds %d bytes", m)
	}
}

func TestDisconnectEndsTheProcessOnlyWhenAsked(t *testing.T) {
	s := startLocal(t, nil)
	for name, tt := range map[string]struct {
		query  string
		events bool
		killed bool
	}{
		"socket":                 {"", false, false},
		"socket, when asked":     {"?kill_on_disconnect=true", false, true},
		"events":                 {"", true, false},
		"events, when asked":     {"?kill_on_disconnect=1", true, true},
		"socket, said otherwise": {"?kill_on_disconnect=false", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := s.start(map[string]any{"command": "echo ready; while :; do sleep 0.05; echo x; done"})
			if tt.events {
				ctx, cancel := context.WithCancel(context.Background())
				resp, err := s.try(ctx, "GET", "/v1/processes/"+v.ID+"/stream"+tt.query, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
				cancel()
				_ = resp.Body.Close()
			} else {
				conn := s.ws(v.ID, tt.query)
				readSocket(t, conn, 6)
				_ = conn.CloseNow()
			}
			if tt.killed {
				if got := s.waitExit(v.ID); got.Result.KillReason != killDisconnect {
					t.Errorf("got %+v", got.Result)
				}
				return
			}
			time.Sleep(300 * time.Millisecond)
			if got := s.get(v.ID); got.State != "running" {
				t.Errorf("got %+v", got.Result)
			}
			s.do("DELETE", "/v1/processes/"+v.ID+"?grace_ms=0", nil)
		})
	}
}

func TestClientThatBreaksTheProtocolIsDisconnected(t *testing.T) {
	s := startLocal(t, nil)
	v := s.start(map[string]any{"command": "sleep 100"})
	for name, msg := range map[string][]byte{"empty": {}, "stdout": []byte("\x01x"), "bad resize": []byte("\x04{}"), "close of stdout": {255, 1}} {
		t.Run(name, func(t *testing.T) {
			conn := s.ws(v.ID, "")
			send(t, conn, msg)
			if _, _, err := conn.Read(context.Background()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("message beyond the read limit", func(t *testing.T) {
		conn := s.ws(v.ID, "")
		_ = conn.Write(context.Background(), websocket.MessageBinary, make([]byte, 200<<10))
		if _, _, err := conn.Read(context.Background()); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
			t.Errorf("got %v", err)
		}
	})
}

func TestStreamHandshake(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxStreams = 1 })
	v := s.start(map[string]any{"command": "sleep 100"})
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
	for name, tt := range map[string]struct {
		path   string
		header []string
		want   int
	}{
		"foreign origin":        {"", append([]string{"Origin", "https://evil.example"}, upgrade...), 403},
		"null origin":           {"", append([]string{"Origin", "null"}, upgrade...), 403},
		"other subprotocol":     {"", append([]string{"Sec-WebSocket-Protocol", "v4.channel.k8s.io"}, upgrade...), 400},
		"since is no number":    {"?since=x", upgrade, 400},
		"negative since":        {"?since=-1", nil, 400},
		"kill_on_disconnect=no": {"?kill_on_disconnect=maybe", nil, 400},
	} {
		t.Run(name, func(t *testing.T) {
			if status, b := s.do("GET", "/v1/processes/"+v.ID+"/stream"+tt.path, nil, tt.header...); status != tt.want {
				t.Errorf("%d %s", status, b)
			}
		})
	}
	own := strings.TrimPrefix(s.base, "http://")
	resp := s.open("GET", "/v1/processes/"+v.ID+"/stream", nil, append([]string{"Origin", "http://" + own}, upgrade...)...)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("own origin: %d", resp.StatusCode)
	}
	if status, b := s.do("GET", "/v1/processes/"+v.ID+"/stream", nil); status != 429 {
		t.Errorf("second stream: %d %s", status, b)
	}
	_ = resp.Body.Close()
}
