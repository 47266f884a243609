package sandboxapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// The targets of the sandbox API on the reference machine (2 cores).
const (
	maxOverheadP50 = 2 * time.Millisecond
	minThroughput  = 200e6 // bytes per second
	maxResident    = 64 << 20
	streamBytes    = 1 << 30
)

func percentile(d []time.Duration, p float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)-1, int(p*float64(len(s))))]
}

func report(b *testing.B, d []time.Duration) {
	b.ReportMetric(float64(percentile(d, 0.50).Microseconds()), "p50-µs")
	b.ReportMetric(float64(percentile(d, 0.99).Microseconds()), "p99-µs")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
}

func BenchmarkPlainForkExec(b *testing.B) {
	plainTrue(b)
	b.ResetTimer()
	report(b, measure(b.N, func() { plainTrue(b) }))
}

func BenchmarkExecute(b *testing.B) {
	for _, backend := range []string{"auto", "rlimits"} {
		b.Run(backend, func(b *testing.B) {
			s := start(b, "-limits-backend", backend)
			s.executeTrue(b)
			b.ResetTimer()
			report(b, measure(b.N, func() { s.executeTrue(b) }))
		})
	}
}

func BenchmarkExecuteParallel(b *testing.B) {
	s := start(b)
	s.executeTrue(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.executeTrue(b)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
}

// streamers send streamBytes of output to this process, each its own way. They
// return how many bytes came.
var streamers = map[string]func(testing.TB, *server) int64{
	"websocket":      webSocket,
	"process-ndjson": processEvents,
	"execute-ndjson": executeEvents,
}

// producer writes text, lines of 100 characters.
const producer = `yes $(head -c 99 /dev/zero | tr '\\0' x) | head -c %d`

// startProducer starts a process that waits for a line, so that its reader is there.
func startProducer(tb testing.TB, s *server, command string) string {
	resp := s.post(tb, "/v1/processes", `{"command":"read x; `+fmt.Sprintf(command, streamBytes)+`"}`)
	defer func() { _ = resp.Body.Close() }()
	var v struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		tb.Fatal(err)
	}
	return v.ID
}

func webSocket(tb testing.TB, s *server) int64 {
	id := startProducer(tb, s, "exec head -c %d /dev/zero")
	ctx := context.Background()
	conn, _, err := websocket.Dial(ctx, strings.Replace(s.base, "http", "ws", 1)+"/v1/processes/"+id+"/stream", &websocket.DialOptions{
		Subprotocols: []string{"v5.channel.k8s.io"}, HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}, HTTPClient: s.http})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageBinary, []byte("\x00\n")); err != nil {
		tb.Fatal(err)
	}
	var n int64
	buf := make([]byte, 64<<10)
	for {
		_, r, err := conn.Reader(ctx)
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			return n
		}
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			tb.Fatal(err)
		}
		channel := buf[0]
		for {
			m, err := r.Read(buf)
			if channel == 1 {
				n += int64(m)
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				tb.Fatal(err)
			}
		}
	}
}

func processEvents(tb testing.TB, s *server) int64 {
	id := startProducer(tb, s, producer)
	req, err := http.NewRequest(http.MethodGet, s.base+"/v1/processes/"+id+"/stream", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.http.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	go func() {
		r := s.post(tb, "/v1/processes/"+id+"/stdin", "\n")
		_ = r.Body.Close()
	}()
	return drain(tb, resp.Body)
}

func executeEvents(tb testing.TB, s *server) int64 {
	resp := s.post(tb, "/execute", fmt.Sprintf(`{"command":"`+producer+`"}`, streamBytes), "Accept", "application/x-ndjson")
	defer func() { _ = resp.Body.Close() }()
	return drain(tb, resp.Body)
}

// drain returns the position of the last output event. It looks at the beginning
// of lines only and does not decode: the machine is shared with the server, and
// decoding JSON is not what is measured.
func drain(tb testing.TB, r io.Reader) (last int64) {
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		head, err := br.Peek(48)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return last
		}
		if err != nil && !errors.Is(err, io.EOF) {
			tb.Fatal(err)
		}
		if i := bytes.Index(head, []byte(`"seq":`)); i >= 0 {
			digits, _, _ := bytes.Cut(head[i+len(`"seq":`):], []byte(","))
			if last, err = strconv.ParseInt(string(digits), 10, 64); err != nil {
				tb.Fatalf("%q: %v", head, err)
			}
		}
		for {
			_, err = br.ReadSlice('\n')
			if !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			tb.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for name, stream := range streamers {
		b.Run(name, func(b *testing.B) {
			s := start(b)
			b.SetBytes(streamBytes)
			b.ResetTimer()
			for b.Loop() {
				if n := stream(b, s); n != streamBytes {
					b.Fatalf("got %d bytes", n)
				}
			}
			b.ReportMetric(float64(s.peakRSS(b)>>20), "peak-MiB")
			b.ReportMetric(s.cpu(b).Seconds()/float64(b.N), "cpu-s/GiB")
		})
	}
}

// TestTargets fails when a target is missed. It wants a quiet machine, so it runs
// on request only.
func TestTargets(t *testing.T) {
	if os.Getenv("SANDBOX_API_TARGETS") == "" {
		t.Skip("set SANDBOX_API_TARGETS=1 on a machine that does nothing else")
	}
	s := start(t)
	s.executeTrue(t)
	// Interleaved, so that a noisy moment hits both.
	var plain, api []time.Duration
	for range 40 {
		plain = append(plain, measure(25, func() { plainTrue(t) })...)
		api = append(api, measure(25, func() { s.executeTrue(t) })...)
	}
	overhead := percentile(api, 0.5) - percentile(plain, 0.5)
	t.Logf("plain p50 %v p99 %v; /execute p50 %v p99 %v; overhead p50 %v",
		percentile(plain, 0.5), percentile(plain, 0.99), percentile(api, 0.5), percentile(api, 0.99), overhead)
	if overhead > maxOverheadP50 {
		t.Errorf("overhead p50 %v, want at most %v", overhead, maxOverheadP50)
	}
	for name, stream := range streamers {
		s := start(t)
		begin := time.Now()
		n := stream(t, s)
		rate := float64(n) / time.Since(begin).Seconds()
		t.Logf("%s: %.0f MB/s, %v of server CPU, %d MiB resident at most", name, rate/1e6, s.cpu(t), s.peakRSS(t)>>20)
		if n != streamBytes {
			t.Errorf("%s: got %d bytes", name, n)
		}
		if rate < minThroughput {
			t.Errorf("%s: %.0f MB/s, want at least %.0f", name, rate/1e6, minThroughput/1e6)
		}
		if rss := s.peakRSS(t); rss > maxResident {
			t.Errorf("%s: %d MiB resident, want at most %d", name, rss>>20, maxResident>>20)
		}
	}
}
