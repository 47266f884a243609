package ring

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// readAll reads until the end and returns bytes by channel and what was lost.
func readAll(t testing.TB, l *Log, since int64) (map[byte][]byte, int64, int64) {
	t.Helper()
	r := l.NewReader(since)
	defer r.Close()
	got, lost, end, buf := map[byte][]byte{}, int64(0), since, make([]byte, 1000)
	for {
		c, err := r.Next(context.Background(), buf)
		if errors.Is(err, io.EOF) {
			return got, lost, end
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.End != end+c.Gap+int64(len(c.Data)) {
			t.Fatalf("position %d after %d with gap %d and %d bytes", c.End, end, c.Gap, len(c.Data))
		}
		got[c.Channel] = append(got[c.Channel], c.Data...)
		lost += c.Gap
		end = c.End
	}
}

func TestReaderGetsWhatWasWritten(t *testing.T) {
	l := New(1<<20, 0)
	for _, w := range []struct {
		ch byte
		s  string
	}{{1, "hello "}, {1, "world"}, {2, "oops"}, {1, "!"}} {
		if err := l.Append(w.ch, []byte(w.s)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	got, lost, end := readAll(t, l, 0)
	if string(got[1]) != "hello world!" || string(got[2]) != "oops" || lost != 0 || end != 16 {
		t.Errorf("got %q lost %d end %d", got, lost, end)
	}
	got, lost, _ = readAll(t, l, 8)
	if string(got[1]) != "rld!" || string(got[2]) != "oops" || lost != 0 {
		t.Errorf("since 8: got %q lost %d", got, lost)
	}
	if got, _, end := readAll(t, l, 1<<40); len(got) != 0 || end != 1<<40 {
		t.Errorf("since beyond the end: got %q end %d", got, end)
	}
}

func TestOverwrittenBytesAreReportedAsOneGap(t *testing.T) {
	const limit, total = 8 << 10, 100 << 10
	l := New(limit, 0)
	data := make([]byte, total)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	if err := l.Append(1, data); err != nil {
		t.Fatal(err)
	}
	l.Close()
	got, lost, end := readAll(t, l, 0)
	if lost != total-limit || end != total {
		t.Errorf("lost %d, end %d", lost, end)
	}
	if !bytes.Equal(got[1], data[total-limit:]) {
		t.Error("what is left is not the last bytes written")
	}
	if s := l.Stats(); s.Memory > limit+100 || s.Dropped != total-limit {
		t.Errorf("stats %+v", s)
	}
}

func TestRecordSize(t *testing.T) {
	if got := unsafe.Sizeof(record{}); got != recordSize {
		t.Errorf("a record takes %d bytes", got)
	}
}

func TestMemoryStaysWithinTheLimit(t *testing.T) {
	l := New(16<<10, 0)
	if s := l.Stats(); s.Memory != 0 {
		t.Errorf("an empty log holds %d bytes", s.Memory)
	}
	for i := range 100_000 {
		if err := l.Append(byte(1+i%2), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if s := l.Stats(); s.Memory > 16<<10+3*maxRecords*recordSize {
		t.Errorf("holds %d bytes", s.Memory)
	}
	if len(l.records)-l.first > maxRecords || cap(l.records) > 4*maxRecords {
		t.Errorf("%d records, capacity %d", len(l.records), cap(l.records))
	}
	l.Close()
	got, lost, end := readAll(t, l, 0)
	if lost+int64(len(got[1])+len(got[2])) != 100_000 || end != 100_000 {
		t.Errorf("lost %d, got %d and %d", lost, len(got[1]), len(got[2]))
	}
}

func TestReaderThatKeepsUpLosesNothing(t *testing.T) {
	const total = 8 << 20
	l := New(64<<10, 30*time.Second)
	var wg sync.WaitGroup
	for range 3 {
		r := l.NewReader(0)
		wg.Go(func() {
			defer r.Close()
			buf, n := make([]byte, 10_000), 0
			for {
				c, err := r.Next(context.Background(), buf)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil || c.Gap != 0 {
					t.Errorf("gap %d, error %v", c.Gap, err)
					return
				}
				n += len(c.Data)
			}
			if n != total {
				t.Errorf("got %d of %d bytes", n, total)
			}
		})
	}
	chunk := make([]byte, 50_000)
	for left := total; left > 0; {
		n := min(left, len(chunk))
		if err := l.Append(1, chunk[:n]); err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	l.Close()
	wg.Wait()
}

func TestStalledReaderHoldsTheWriterBackForTheStallTimeOnly(t *testing.T) {
	const stall = 50 * time.Millisecond
	l := New(8<<10, stall)
	r := l.NewReader(0)
	defer r.Close()
	begin := time.Now()
	if err := l.Append(1, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	if took < stall {
		t.Errorf("the writer did not wait for the reader: %v", took)
	}
	// A reader that was overtaken must not be waited for again.
	begin = time.Now()
	for range 100 {
		if err := l.Append(1, make([]byte, 4<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 10*stall {
		t.Errorf("the writer waited again: %v", took)
	}
	c, err := r.Next(context.Background(), make([]byte, 10))
	if err != nil || c.Gap == 0 {
		t.Errorf("want a gap, got %+v, %v", c, err)
	}
}

// The time a reader waited for output is no time it stalled.
func TestReaderThatWaitedLongIsNotOvertakenAtOnce(t *testing.T) {
	const stall = 300 * time.Millisecond
	l := New(8<<10, stall)
	r := l.NewReader(0)
	defer r.Close()
	time.Sleep(stall + 50*time.Millisecond)
	done := make(chan error, 1)
	go func() { done <- l.Append(1, make([]byte, 64<<10)) }()
	time.Sleep(stall / 4)
	for n := 0; n < 64<<10; {
		c, err := r.Next(context.Background(), make([]byte, 4096))
		if err != nil || c.Gap != 0 {
			t.Fatalf("after %d bytes: gap %d, %v", n, c.Gap, err)
		}
		n += len(c.Data)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReaderThatLeavesFreesTheWriter(t *testing.T) {
	l := New(8<<10, time.Hour)
	r := l.NewReader(0)
	done := make(chan error, 1)
	go func() { done <- l.Append(1, make([]byte, 64<<10)) }()
	select {
	case err := <-done:
		t.Fatalf("the writer did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	r.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the writer still waits")
	}
}

func TestCloseFreesTheWriter(t *testing.T) {
	l := New(8<<10, time.Hour)
	r := l.NewReader(0)
	defer r.Close()
	done := make(chan error, 1)
	go func() { done <- l.Append(1, make([]byte, 64<<10)) }()
	time.Sleep(20 * time.Millisecond)
	l.Close()
	select {
	case err := <-done:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the writer still waits")
	}
}

func TestNextEndsWithTheContext(t *testing.T) {
	l := New(8<<10, 0)
	r := l.NewReader(0)
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Next(ctx, make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestCloseShrinksAndDiscardDropsTheBuffer(t *testing.T) {
	l := New(1<<20, 0)
	if err := l.Append(1, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	l.Discard()
	if s := l.Stats(); s.Head != 0 {
		t.Error("an open log was discarded")
	}
	l.Close()
	if s := l.Stats(); s.Memory < 5000 || s.Memory > 5100 {
		t.Errorf("a closed log of 5000 bytes holds %d", s.Memory)
	}
	l.Discard()
	_, lost, _ := readAll(t, l, 0)
	if s := l.Stats(); s.Memory != 0 || lost != 5000 {
		t.Errorf("memory %d, lost %d", s.Memory, lost)
	}
}

// A reader sees every byte once, in order, or a gap that says how many it did
// not see: against a model that keeps everything.
func TestLogAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := New(rapid.IntRange(minCapacity, 3*minCapacity).Draw(rt, "limit"), 0)
		r := l.NewReader(0)
		defer r.Close()
		var data, chans []byte
		pos := int64(0)
		read := func() {
			buf := make([]byte, rapid.IntRange(1, 5000).Draw(rt, "buf"))
			c, err := r.Next(context.Background(), buf)
			if err != nil {
				rt.Fatalf("next: %v", err)
			}
			pos += c.Gap
			for i, b := range c.Data {
				if data[pos+int64(i)] != b || chans[pos+int64(i)] != c.Channel {
					rt.Fatalf("wrong byte at %d", pos+int64(i))
				}
			}
			pos += int64(len(c.Data))
			if c.End != pos {
				rt.Fatalf("end %d, want %d", c.End, pos)
			}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			if pos < int64(len(data)) && rapid.Bool().Draw(rt, "read") {
				read()
				continue
			}
			p := make([]byte, rapid.IntRange(1, 6000).Draw(rt, "n"))
			ch := byte(rapid.IntRange(1, 2).Draw(rt, "ch"))
			for i := range p {
				p[i] = byte(rand.Uint32())
				chans = append(chans, ch)
			}
			data = append(data, p...)
			if err := l.Append(ch, p); err != nil {
				rt.Fatal(err)
			}
		}
		for pos < int64(len(data)) {
			read()
		}
	})
}
