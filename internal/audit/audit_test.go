package audit_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var full = audit.Record{
	Time: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Event: audit.Close, ID: "7", Decision: audit.Allow,
	Reason: "eof", Rule: `allowedHosts[0] "*.example.org"`, Namespace: "team-a", Policy: "agents", PolicyGeneration: 3,
	ContainerID: "c1", Pod: "p", PodUID: "u", Organization: "o", ClientIP: netip.MustParseAddr("10.0.0.7"),
	Method: "CONNECT", Scheme: "tunnel", Host: "api.example.org", Port: 443, DialledIP: netip.MustParseAddr("2001:db8::1"),
	SNI: "api.example.org", Status: 200, BytesSent: 10, BytesReceived: 20, Duration: 1500 * time.Millisecond, Detail: "done",
}

func TestRecordHasTheDocumentedNames(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal(full.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"time": "2026-01-02T03:04:05.000006Z", "event": "close", "id": "7", "decision": "allow", "reason": "eof",
		"rule": `allowedHosts[0] "*.example.org"`, "namespace": "team-a", "policy": "agents", "policy_generation": 3.0,
		"container_id": "c1", "pod": "p", "pod_uid": "u", "organization": "o", "client_ip": "10.0.0.7", "method": "CONNECT",
		"scheme": "tunnel", "host": "api.example.org", "port": 443.0, "dialled_ip": "2001:db8::1", "sni": "api.example.org",
		"status": 200.0, "bytes_sent": 10.0, "bytes_received": 20.0, "duration_ms": 1500.0, "detail": "done",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %v, want %v", k, got[k], v)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("fields nobody documented: %v", got)
	}
}

func TestRecordCanBeReadBackIntoItsStruct(t *testing.T) {
	var got audit.Record
	if err := json.Unmarshal(full.AppendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	want := full
	want.Duration = 0 // duration_ms is for readers of the log, not for the struct
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestDecisionRecordHasNoByteCounts(t *testing.T) {
	r := full
	r.Event = audit.Decision
	if b := r.AppendJSON(nil); bytes.Contains(b, []byte("bytes_")) || bytes.Contains(b, []byte("duration")) {
		t.Errorf("counts in a decision record: %s", b)
	}
}

func FuzzRecordStaysOneValidLine(f *testing.F) {
	for _, s := range []string{"", "plain", "quo\"te\\", "new\nline\r\x00\x7f", "ünïcode \u2028 \u0085", "bad \xff\xfe utf8", "\xf0\x9f\x98\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := audit.Record{Event: audit.Decision, Decision: audit.Deny, Detail: s, Host: s}
		b := r.AppendJSON(nil)
		if bytes.ContainsAny(b, "\n\r\x00") {
			t.Fatalf("control characters in %q", b)
		}
		var got audit.Record
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v in %q", err, b)
		}
		std, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want string
		if err := json.Unmarshal(std, &want); err != nil {
			t.Fatal(err)
		}
		if got.Detail != want {
			t.Fatalf("got %q, want %q", got.Detail, want)
		}
	})
}

type gate struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	hold chan struct{}
	err  error
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.hold
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return 0, g.err
	}
	return g.buf.Write(p)
}

func TestNoRecordIsLostWhenTheWriterIsSlow(t *testing.T) {
	g := &gate{hold: make(chan struct{})}
	l := audit.NewLog(g)
	const writers, each = 8, 4000 // about 12 MiB, three times what is buffered
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				l.Write(&full)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(g.hold)
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for sc := bufio.NewScanner(&g.buf); sc.Scan(); n++ {
		if !json.Valid(sc.Bytes()) {
			t.Fatalf("line %d is not JSON: %s", n, sc.Bytes())
		}
	}
	if n != writers*each {
		t.Errorf("%d lines, want %d", n, writers*each)
	}
}

func TestWriteErrorEndsTheLogAndIsReported(t *testing.T) {
	want := errors.New("disk full")
	g := &gate{hold: make(chan struct{}), err: want}
	close(g.hold)
	l := audit.NewLog(g)
	l.Write(&full)
	if err := l.Close(); !errors.Is(err, want) {
		t.Errorf("Close = %v, want %v", err, want)
	}
	if err := l.Err(); !errors.Is(err, want) {
		t.Errorf("Err = %v, want %v", err, want)
	}
	l.Write(&full) // must not block
}

func BenchmarkAppendJSON(b *testing.B) {
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = full.AppendJSON(buf[:0])
	}
}
