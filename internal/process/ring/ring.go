// Package ring keeps the last bytes that a process wrote, for readers that come
// late, leave and come back, or are slow.
//
// Positions are absolute: the number of bytes written to the log since its
// start, over all channels, in the order they arrived. A reader that knows how
// many bytes it has got can continue there; what was overwritten in between is
// reported as a gap, never skipped in silence.
package ring

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// maxRecords bounds the bookkeeping for writers that alternate channels byte by
// byte: 24 bytes each.
const maxRecords = 4096

// minCapacity keeps one full pipe read (64 KiB) from evicting itself.
const minCapacity = 4 << 10

// ErrClosed is returned by Append after Close.
var ErrClosed = errors.New("output log is closed")

// record is a run of bytes of one channel.
type record struct {
	start uint64
	n     int
	ch    byte
}

// Log is a bounded, append-only log of channel-tagged bytes. It is safe for
// concurrent use by several writers and readers.
type Log struct {
	mu       sync.Mutex
	buf      []byte // grows to limit, then is circular
	limit    int
	stall    time.Duration
	head     uint64 // oldest byte kept
	tail     uint64 // next byte to be written
	records  []record
	closed   bool
	changed  chan struct{} // closed and replaced when data comes or the log closes
	consumed chan struct{} // same, when a reader advances or leaves
	readers  map[*Reader]struct{}
	waiting  int // writers that wait for consumed
	dropped  uint64
}

// New returns a log that keeps at most limit bytes. A reader that keeps up holds
// writers back rather than losing bytes; one that does not advance for stall is
// overtaken and gets a gap. With stall 0 writers never wait.
func New(limit int, stall time.Duration) *Log {
	return &Log{
		limit:    max(limit, minCapacity),
		stall:    stall,
		changed:  make(chan struct{}),
		consumed: make(chan struct{}),
		readers:  map[*Reader]struct{}{},
	}
}

// Append writes p under channel ch. It returns ErrClosed after Close.
func (l *Log) Append(ch byte, p []byte) error {
	for len(p) > 0 {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return ErrClosed
		}
		// Half of the log at most in one piece, so that a reader can work on one
		// half while the writer fills the other.
		n := min(len(p), l.limit/2)
		now := time.Now()
		if wait := l.holdback(n, now); wait > 0 {
			consumed := l.consumed
			l.waiting++
			l.mu.Unlock()
			timer := time.NewTimer(wait)
			select {
			case <-consumed:
			case <-timer.C:
			}
			timer.Stop()
			l.mu.Lock()
			l.waiting--
			l.mu.Unlock()
			continue
		}
		// Who has read everything has something to do from now on only.
		for r := range l.readers {
			if r.pos == l.tail {
				r.lagging, r.progress = false, now
			}
		}
		l.put(ch, p[:n])
		p = p[n:]
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
	return nil
}

// holdback returns how long a writer of n bytes should wait for readers; 0 means
// write now.
func (l *Log) holdback(n int, now time.Time) time.Duration {
	if l.stall <= 0 {
		return 0
	}
	var wait time.Duration
	for r := range l.readers {
		if r.lagging || l.tail+uint64(n)-r.pos <= uint64(l.limit) {
			continue
		}
		left := l.stall - now.Sub(r.progress)
		if left <= 0 {
			r.lagging = true
			continue
		}
		wait = max(wait, left)
	}
	return wait
}

func (l *Log) put(ch byte, p []byte) {
	need := l.tail - l.head + uint64(len(p))
	if need > uint64(len(l.buf)) && len(l.buf) < l.limit {
		l.grow(int(min(need, uint64(l.limit))))
	}
	if need > uint64(len(l.buf)) {
		l.drop(l.tail + uint64(len(p)) - uint64(len(l.buf)))
	}
	at := int(l.tail % uint64(len(l.buf)))
	k := copy(l.buf[at:], p)
	copy(l.buf, p[k:])
	if last := len(l.records) - 1; last >= 0 && l.records[last].ch == ch {
		l.records[last].n += len(p)
	} else {
		if len(l.records) >= maxRecords {
			l.drop(l.records[0].start + uint64(l.records[0].n))
		}
		l.records = append(l.records, record{start: l.tail, n: len(p), ch: ch})
	}
	l.tail += uint64(len(p))
}

// grow moves what is kept into a larger buffer: doubling, so that a quiet process
// costs a few KiB and not the whole limit.
func (l *Log) grow(need int) {
	size := max(len(l.buf), minCapacity)
	for size < need {
		size *= 2
	}
	l.resize(min(size, l.limit))
}

func (l *Log) resize(size int) {
	next := make([]byte, size)
	for pos := l.head; pos < l.tail; {
		src := l.buf[pos%uint64(len(l.buf)):]
		src = src[:min(uint64(len(src)), l.tail-pos)]
		dst := next[pos%uint64(size):]
		pos += uint64(copy(dst, src))
	}
	l.buf = next
}

// drop forgets everything before pos.
func (l *Log) drop(pos uint64) {
	pos = min(pos, l.tail)
	if pos <= l.head {
		return
	}
	l.dropped += pos - l.head
	l.head = pos
	i := 0
	for i < len(l.records) && l.records[i].start+uint64(l.records[i].n) <= pos {
		i++
	}
	l.records = append(l.records[:0], l.records[i:]...)
	if len(l.records) > 0 && l.records[0].start < pos {
		first := &l.records[0]
		first.n -= int(pos - first.start)
		first.start = pos
	}
}

// Close ends the log: readers get what is left and then io.EOF, and the buffer
// shrinks to what it holds.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	if kept := int(l.tail - l.head); kept < len(l.buf) {
		if kept == 0 {
			l.buf = nil
		} else {
			l.resize(kept)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
	close(l.consumed)
	l.consumed = make(chan struct{})
}

// Discard drops the kept bytes of a closed log; readers get a gap.
func (l *Log) Discard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.drop(l.tail)
		l.buf, l.records = nil, nil
	}
}

// Stats is a snapshot of a log.
type Stats struct {
	Head, Tail uint64 // positions of the oldest kept byte and of the end
	Dropped    uint64 // bytes no longer kept
	Memory     int    // bytes of buffer held
}

// Stats returns the current figures.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Head: l.head, Tail: l.tail, Dropped: l.dropped, Memory: len(l.buf)}
}

// Reader reads a log from a position on. One goroutine may use it at a time.
type Reader struct {
	log *Log
	pos uint64 // next byte to read; guarded by log.mu

	// lagging readers were overtaken and do not hold writers back until they have
	// caught up with the end again.
	lagging  bool
	progress time.Time
}

// Chunk is one step of a Reader: bytes of one channel, or a gap.
type Chunk struct {
	Channel byte
	Data    []byte // slice of the buffer given to Next; empty for a gap
	End     uint64 // position after the chunk
	Gap     uint64 // bytes that were overwritten before they were read
}

// NewReader starts at since. A position beyond the end is taken as the end.
func (l *Log) NewReader(since uint64) *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &Reader{log: l, pos: min(since, l.tail), progress: time.Now()}
	l.readers[r] = struct{}{}
	return r
}

// Close lets writers go on without the reader.
func (r *Reader) Close() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	delete(r.log.readers, r)
	r.log.wakeWriters()
}

func (l *Log) wakeWriters() {
	if l.waiting > 0 {
		close(l.consumed)
		l.consumed = make(chan struct{})
	}
}

// Next fills buf with the next bytes, waiting for them until ctx ends. io.EOF
// when the log is closed and everything was read.
func (r *Reader) Next(ctx context.Context, buf []byte) (Chunk, error) {
	for {
		r.log.mu.Lock()
		if c, ok := r.take(buf); ok {
			r.progress = time.Now()
			r.log.wakeWriters()
			r.log.mu.Unlock()
			return c, nil
		}
		closed, changed := r.log.closed, r.log.changed
		r.log.mu.Unlock()
		if closed {
			return Chunk{}, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

func (r *Reader) take(buf []byte) (Chunk, bool) {
	l := r.log
	if r.pos < l.head {
		c := Chunk{Gap: l.head - r.pos, End: l.head}
		r.pos = l.head
		return c, true
	}
	if r.pos >= l.tail {
		return Chunk{}, false
	}
	rec := l.find(r.pos)
	n := min(len(buf), int(rec.start+uint64(rec.n)-r.pos))
	at := int(r.pos % uint64(len(l.buf)))
	k := copy(buf[:n], l.buf[at:])
	copy(buf[k:n], l.buf)
	r.pos += uint64(n)
	return Chunk{Channel: rec.ch, Data: buf[:n], End: r.pos}, true
}

// find returns the record that holds pos; the records are contiguous.
func (l *Log) find(pos uint64) record {
	lo, hi := 0, len(l.records)
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if l.records[mid].start <= pos {
			lo = mid
		} else {
			hi = mid
		}
	}
	return l.records[lo]
}
