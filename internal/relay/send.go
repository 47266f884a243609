package relay

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// replay is the part of a body that has been read from the client so far.
type replay struct {
	kept []byte
	lost bool // more was sent than is kept
}

func (r *replay) record(p []byte) {
	if r.lost = r.lost || len(r.kept)+len(p) > maxReplayBytes; r.lost {
		r.kept = nil
		return
	}
	r.kept = append(r.kept, p...)
}

// sending moves the body while the answer is awaited, and notices when the client goes.
type sending struct {
	client, up conn
	done       chan struct{}
	once       sync.Once
	left       atomic.Bool
}

// send starts moving the body to up, what was sent in an earlier try first. Without a body
// it only watches: whatever else the client sends belongs behind the answer.
//
// A client that ends its side before it has the answer counts as gone, as with other
// proxies; up is closed then, so that the wait for the answer ends.
func (x *exchange) send(up conn) *sending {
	s := &sending{client: x.client, up: up, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		var err error
		if x.req.body {
			err = x.pump(up)
		} else {
			_, err = x.in.Peek(1)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			s.left.Store(true)
			up.Close()
		}
	}()
	return s
}

// pump returns nil when the proxy takes no more (its answer is on the way), and the
// client's error otherwise.
func (x *exchange) pump(up conn) error {
	if _, err := up.Write(x.sent.kept); err != nil {
		return nil //nolint:nilerr // see above
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := x.in.Read(buf)
		if n > 0 {
			x.sent.record(buf[:n])
			if _, err := up.Write(buf[:n]); err != nil {
				return nil //nolint:nilerr // see above
			}
		}
		if err != nil {
			return err
		}
	}
}

// stop ends the goroutine and leaves both connections usable. Bytes it has not taken stay
// in the reader, and those it has taken are in the replay.
func (s *sending) stop() {
	s.once.Do(func() {
		s.client.SetReadDeadline(time.Unix(1, 0))
		s.up.SetWriteDeadline(time.Unix(1, 0))
		<-s.done
		s.up.SetWriteDeadline(time.Time{})
		s.client.SetReadDeadline(time.Time{})
	})
}

// gone reports whether the client ended its side; valid after stop.
func (s *sending) gone() bool { return s.left.Load() }
