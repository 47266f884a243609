package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// tunnel copies bytes both ways until both sides have said all they had to say. Each
// direction is one goroutine; the last to end closes.
type tunnel struct {
	flow   *flow
	client *stream
	origin *stream
	open   atomic.Int32
	// check takes the client's first bytes and looks at them before any of them goes to
	// the origin; nil when that has been done.
	check func(*stream) ([]byte, *refusal)
	// done is called once, after both directions have ended and both sides are closed.
	done func()
}

// start runs the tunnel in two new goroutines and returns: their stacks are fresh and
// small, where the one that set the tunnel up has grown.
func (t *tunnel) start() {
	t.open.Store(2)
	go t.up()
	go t.down()
}

func (t *tunnel) up() {
	defer t.leave()
	if t.check != nil {
		first, refused := t.check(t.client)
		if refused != nil {
			t.flow.cut(refused.reason, refused.detail, refused.verdict())
			return
		}
		t.check = nil // with it goes what it refers to
		if len(first) > 0 {
			if _, err := t.origin.Write(first); err != nil {
				t.fail(ReasonOriginError)
				return
			}
			t.flow.sent.Add(int64(len(first)))
		}
	}
	t.copy(t.origin, t.client, &t.flow.sent, ReasonClientError, ReasonOriginError)
}

func (t *tunnel) down() {
	defer t.leave()
	t.copy(t.client, t.origin, &t.flow.received, ReasonOriginError, ReasonClientError)
}

// hotAfter is how much must come in full buffers before splicing pays.
const hotAfter = 4 * copySize

// copy moves src to dst until src ends, and passes that end on (half-close). An error on
// either side ends both directions.
func (t *tunnel) copy(dst, src *stream, count *atomic.Int64, readFailed, writeFailed Reason) {
	moved := func(n int) {
		count.Add(int64(n))
		t.flow.pace(n)
	}
	for hot := 0; ; {
		buf, n, err := src.next()
		if err != nil {
			t.endCopy(dst, err, readFailed, writeFailed)
			return
		}
		_, err = dst.Write(buf[:n])
		copyBuffers.Put(buf)
		if err != nil {
			t.fail(writeFailed)
			return
		}
		moved(n)
		if hot += n; n < copySize/2 {
			hot = 0
		}
		if hot < hotAfter || !spliceable(dst, src) {
			continue
		}
		hot = 0
		writing, err := t.flow.srv.pipes.spliceAll(dst, src, moved)
		switch {
		case err != nil && writing:
			t.fail(writeFailed)
			return
		case err != nil:
			t.endCopy(dst, err, readFailed, writeFailed)
			return
		}
	}
}

func spliceable(dst, src *stream) bool {
	return dst.wait.raw != nil && src.wait.raw != nil && len(src.buffered()) == 0
}

// endCopy ends one direction: at the end of its source the other side is told (half-close).
func (t *tunnel) endCopy(dst *stream, err error, readFailed, writeFailed Reason) {
	if !errors.Is(err, io.EOF) {
		t.fail(readFailed)
		return
	}
	if t.open.Load() == 1 {
		return // the other direction has ended too: leave closes both sides
	}
	if !dst.halfCloses() {
		t.flow.end(ReasonClosed, "", audit.Allow)
	}
	if err := dst.closeWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.fail(writeFailed)
	}
}

// fail closes both sides, which ends the other direction too.
func (t *tunnel) fail(reason Reason) {
	t.flow.end(reason, "", audit.Allow)
	_ = t.client.Close()
	_ = t.origin.Close()
}

func (t *tunnel) leave() {
	if t.open.Add(-1) > 0 {
		return
	}
	_ = t.client.Close()
	_ = t.origin.Close()
	t.client.release()
	t.origin.release()
	t.done()
}
