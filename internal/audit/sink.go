package audit

import (
	"errors"
	"io"
	"sync"
	"time"
)

// Sink takes records. Write must not keep r after it returns.
type Sink interface {
	Write(r *Record)
}

// SinkFunc is a Sink made of a function.
type SinkFunc func(r *Record)

func (f SinkFunc) Write(r *Record) { f(r) }

// Tee writes every record to all sinks in turn.
func Tee(sinks ...Sink) Sink {
	return SinkFunc(func(r *Record) {
		for _, s := range sinks {
			s.Write(r)
		}
	})
}

// maxBuffered bounds what waits for the writer: about 8,000 records.
const maxBuffered = 4 << 20

// gather is how long the first record waits for others to share its system call: at
// thousands of records a second, writing each by itself costs 5 % of the proxy's CPU.
const gather = 2 * time.Millisecond

// ErrClosed is what Err returns after Close.
var ErrClosed = errors.New("audit log is closed")

// Log writes records as JSON lines to w, many with one write call when many come.
// When w does not keep up, Write blocks: no record is dropped, and a proxy whose log is
// stuck stops rather than working unseen.
type Log struct {
	w io.Writer

	mu      sync.Mutex
	wake    sync.Cond // writer: there is something to do
	room    sync.Cond // callers: there is room, or it is over
	buf     []byte
	spare   []byte
	writing bool
	closed  bool
	err     error
	done    chan struct{}
}

// NewLog starts a Log on w. Close it to flush it.
func NewLog(w io.Writer) *Log {
	l := &Log{w: w, done: make(chan struct{})}
	l.wake.L, l.room.L = &l.mu, &l.mu
	go l.run()
	return l
}

// Write queues one line. After Close or a write error it does nothing; see Err.
func (l *Log) Write(r *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.buf) > maxBuffered && !l.closed && l.err == nil {
		l.room.Wait()
	}
	if l.closed || l.err != nil {
		return
	}
	l.buf = append(r.AppendJSON(l.buf), '\n')
	if !l.writing {
		l.wake.Signal()
	}
}

// Err returns the write error that ended the log, ErrClosed after Close, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.closed:
		return ErrClosed
	}
	return nil
}

// Done is closed when the Log has stopped, by Close or by a write error: a proxy whose
// audit log is gone must not go on.
func (l *Log) Done() <-chan struct{} { return l.done }

// Close flushes what is queued and stops the Log. It does not close the writer.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.wake.Signal()
	l.room.Broadcast()
	l.mu.Unlock()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Log) run() {
	defer close(l.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.buf) == 0 && !l.closed {
			l.wake.Wait()
		}
		if len(l.buf) == 0 {
			return
		}
		if !l.closed {
			l.writing = true // no signal is needed meanwhile
			l.mu.Unlock()
			time.Sleep(gather)
			l.mu.Lock()
		}
		out := l.buf
		l.buf, l.writing = l.spare[:0], true
		l.mu.Unlock()
		_, err := l.w.Write(out)
		l.mu.Lock()
		l.spare, l.writing = out, false
		if err != nil {
			l.err = err
			l.room.Broadcast()
			return
		}
		l.room.Broadcast()
	}
}
