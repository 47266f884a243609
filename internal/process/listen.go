package process

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// refusedAtOnce is how many refused connections are answered at a time; more are
// closed without an answer. They do not count against --max-connections, so that
// code in the sandbox cannot use those up.
const refusedAtOnce = 16

// guard splits the connections of one listener: those from the machine itself go
// to refused, the others to allowed.
type guard struct {
	net.Listener
	allowed, refused *queue
	slots            chan struct{}
	metrics          *Metrics
	log              *slog.Logger
	interfaces       func() ([]net.Addr, error)
}

func newGuard(l net.Listener, m *Metrics, log *slog.Logger) *guard {
	return &guard{
		Listener: l, allowed: newQueue(l.Addr()), refused: newQueue(l.Addr()),
		slots: make(chan struct{}, refusedAtOnce), metrics: m, log: log, interfaces: net.InterfaceAddrs,
	}
}

// run accepts until the listener is closed.
func (g *guard) run() {
	defer g.allowed.shut()
	defer g.refused.shut()
	for {
		c, err := g.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// EMFILE and the like pass; a busy loop would not help.
			g.log.Warn("accept", "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		reason := refusal(c.RemoteAddr(), c.LocalAddr(), g.interfaces)
		if reason == "" {
			g.allowed.put(c)
			continue
		}
		g.metrics.refused.WithLabelValues(reason).Inc()
		select {
		case g.slots <- struct{}{}:
			g.refused.put(&slotConn{Conn: c, free: sync.OnceFunc(func() { <-g.slots })})
		default:
			_ = c.Close()
		}
	}
}

type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	c.free()
	return c.Conn.Close()
}

// queue is the accepting end of a guard, a net.Listener.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	shut  func()
}

func newQueue(addr net.Addr) *queue {
	q := &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	q.shut = sync.OnceFunc(func() { close(q.done) })
	return q
}

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		_ = c.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Addr() net.Addr { return q.addr }

func (q *queue) Close() error {
	q.shut()
	return nil
}

// refuser answers every request of a refused connection.
func refuser(log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			writeError(w, http.StatusForbidden, apiError{Code: "local_caller",
				Message: "this API does not answer the machine it runs on (--restrict-localhost)"})
		}),
		ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
