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
	"slices"
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

// recordSize is unsafe.Sizeof(record{}).
const recordSize = 24

// record is a run of bytes of one channel.
type record struct {
	start int64
	n     int64
	ch    byte
}

// Log is a bounded, append-only log of channel-tagged bytes. It is safe for
// concurrent use by several writers and readers.
type Log struct {
	mu       sync.Mutex
	buf      []byte // grows to limit, then is circular
	limit    int64
	stall    time.Duration
	head     int64    // oldest byte kept
	tail     int64    // next byte to be written
	records  []record // those from first on are in use
	first    int
	closed   bool
	changed  chan struct{} // closed and replaced when data comes or the log closes
	consumed chan struct{} // same, when a reader advances or leaves
	readers  map[*Reader]struct{}
	waiting  int // writers that wait for consumed
	dropped  int64
}

// New returns a log that keeps at most limit bytes. A reader that keeps up holds
// writers back rather than losing bytes; one that does not advance for stall is
// overtaken and gets a gap. With stall 0 writers never wait.
func New(limit int, stall time.Duration) *Log {
	return &Log{
		limit:    int64(max(limit, minCapacity)),
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
		n := min(int64(len(p)), l.limit/2)
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
func (l *Log) holdback(n int64, now time.Time) time.Duration {
	if l.stall <= 0 {
		return 0
	}
	var wait time.Duration
	for r := range l.readers {
		if r.lagging || l.tail+n-r.pos <= l.limit {
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
	need := l.tail - l.head + int64(len(p))
	if need > int64(len(l.buf)) && int64(len(l.buf)) < l.limit {
		l.grow(min(need, l.limit))
	}
	if need > int64(len(l.buf)) {
		l.drop(l.tail + int64(len(p)) - int64(len(l.buf)))
	}
	at := l.tail % int64(len(l.buf))
	k := copy(l.buf[at:], p)
	copy(l.buf, p[k:])
	if last := len(l.records) - 1; last >= l.first && l.records[last].ch == ch {
		l.records[last].n += int64(len(p))
	} else {
		if len(l.records)-l.first >= maxRecords {
			l.drop(l.records[l.first].start + l.records[l.first].n)
		}
		if l.first >= maxRecords {
			// As many moves as there were drops since the last time.
			l.records = append(l.records[:0], l.records[l.first:]...)
			l.first = 0
		}
		l.records = append(l.records, record{start: l.tail, n: int64(len(p)), ch: ch})
	}
	l.tail += int64(len(p))
}

// grow moves what is kept into a larger buffer: doubling, so that a quiet process
// costs a few KiB and not the whole limit.
func (l *Log) grow(need int64) {
	size := max(int64(len(l.buf)), minCapacity)
	for size < need {
		size *= 2
	}
	l.resize(min(size, l.limit))
}

func (l *Log) resize(size int64) {
	next := make([]byte, size)
	for pos := l.head; pos < l.tail; {
		src := l.buf[pos%int64(len(l.buf)):]
		src = src[:min(int64(len(src)), l.tail-pos)]
		dst := next[pos%size:]
		pos += int64(copy(dst, src))
	}
	l.buf = next
}

// drop forgets everything before pos.
func (l *Log) drop(pos int64) {
	pos = min(pos, l.tail)
	if pos <= l.head {
		return
	}
	l.dropped += pos - l.head
	l.head = pos
	for l.first < len(l.records) && l.records[l.first].start+l.records[l.first].n <= pos {
		l.first++
	}
	if l.first < len(l.records) && l.records[l.first].start < pos {
		first := &l.records[l.first]
		first.n -= pos - first.start
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
	if kept := l.tail - l.head; kept < int64(len(l.buf)) {
		if kept == 0 {
			l.buf = nil
		} else {
			l.resize(kept)
		}
	}
	l.records, l.first = slices.Clone(l.records[l.first:]), 0
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
		l.buf, l.records, l.first = nil, nil, 0
	}
}

// Stats is a snapshot of a log.
type Stats struct {
	Head, Tail int64 // positions of the oldest kept byte and of the end
	Dropped    int64 // bytes no longer kept
	Memory     int64 // bytes held, bookkeeping included
}

// Stats returns the current figures.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Head: l.head, Tail: l.tail, Dropped: l.dropped, Memory: int64(len(l.buf) + cap(l.records)*recordSize)}
}

// Reader reads a log from a position on. One goroutine may use it at a time.
type Reader struct {
	log *Log
	pos int64 // next byte to read; guarded by log.mu

	// lagging readers were overtaken and do not hold writers back until they have
	// caught up with the end again.
	lagging  bool
	progress time.Time
}

// Chunk is one step of a Reader: bytes of one channel, or a gap.
type Chunk struct {
	Channel byte
	Data    []byte // slice of the buffer given to Next; empty for a gap
	End     int64  // position after the chunk
	Gap     int64  // bytes that were overwritten before they were read
}

// NewReader starts at since. A position beyond the end is taken as the end, a
// negative one as the beginning.
func (l *Log) NewReader(since int64) *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &Reader{log: l, pos: max(0, min(since, l.tail)), progress: time.Now()}
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
	n := min(int64(len(buf)), rec.start+rec.n-r.pos)
	at := r.pos % int64(len(l.buf))
	k := copy(buf[:n], l.buf[at:])
	copy(buf[k:n], l.buf)
	r.pos += n
	return Chunk{Channel: rec.ch, Data: buf[:n], End: r.pos}, true
}

// find returns the record that holds pos; the records are contiguous.
func (l *Log) find(pos int64) record {
	lo, hi := l.first, len(l.records)
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
