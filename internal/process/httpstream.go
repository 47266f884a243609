package process

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
	"github.com/sandbox-egress/sandbox-egress/internal/process/ring"
)

const (
	// pingInterval keeps idle streams through NAT and finds clients that are gone.
	pingInterval = 20 * time.Second
	pongPatience = 20 * time.Second
	// minReadLimit: kubectl sends stdin in messages of 32 KiB and a channel byte.
	minReadLimit = 64 << 10
	// stdinQueue messages may wait for the process, so that a resize or a close is
	// seen while it does not read.
	stdinQueue = 8
)

// stream is GET /v1/processes/{id}/stream.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, p *Process) {
	since, err := positionParam(r, "since")
	var kill bool
	if err == nil {
		kill, err = boolParam(r, "kill_on_disconnect")
	}
	if err != nil {
		fail(w, err)
		return
	}
	if p.log == nil {
		conflict(w, "no_stream", "a process of /execute is streamed to its caller only")
		return
	}
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		s.streamWebSocket(w, r, p, since, kill)
		return
	}
	s.streamEvents(w, r, p, since, kill)
}

func positionParam(r *http.Request, name string) (int64, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, fieldErrorf(name, "%.30q is not a position (a number of bytes)", v)
	}
	return n, nil
}

// streamEvents sends the output as NDJSON.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request, p *Process, since int64, kill bool) {
	events := newEventWriter(w, s.cfg.WriteTimeout)
	reader := p.log.NewReader(since)
	defer reader.Close()
	err := s.sendEvents(r.Context(), events, reader, p)
	if err != nil && kill {
		p.Kill(killDisconnect, p.spec.grace)
	}
}

// sendEvents returns an error when the client is gone.
func (s *Server) sendEvents(ctx context.Context, events *eventWriter, reader *ring.Reader, p *Process) error {
	if err := events.emitJSON(startEvent{"start", p.id, p.child.Pid()}); err != nil {
		return err
	}
	bufp := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(bufp)
	for {
		wait, cancel := context.WithTimeout(ctx, pingInterval)
		c, err := reader.Next(wait, *bufp)
		cancel()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			<-p.Done()
			return events.emitJSON(struct {
				Type string `json:"type"`
				Result
			}{"exit", *p.Result()})
		case ctx.Err() != nil:
			return ctx.Err()
		default: // nothing was written for a while
			if err := events.emit(func(l []byte) []byte { return append(l, "{\"type\":\"ping\"}\n"...) }); err != nil {
				return err
			}
			continue
		}
		if c.Gap > 0 {
			s.metrics.lost.Add(float64(c.Gap))
			err = events.emit(func(l []byte) []byte { return appendGapEvent(l, c.End-c.Gap, c.End) })
		} else {
			err = emitText(events, c)
		}
		if err != nil {
			return err
		}
	}
}

// emitText sends a chunk, a character that is cut at its end as an event of its
// own, so that the rest stays text.
func emitText(events *eventWriter, c ring.Chunk) error {
	cut := len(c.Data) - partialRune(c.Data)
	if cut == 0 || cut == len(c.Data) {
		return events.emit(func(l []byte) []byte { return appendOutput(l, c.Channel, c.Data, c.End) })
	}
	rest := int64(len(c.Data) - cut)
	return events.emit(func(l []byte) []byte {
		l = appendOutput(l, c.Channel, c.Data[:cut], c.End-rest)
		return appendOutput(l, c.Channel, c.Data[cut:], c.End)
	})
}

// partialRune returns how many bytes at the end of b begin a character that is
// not complete.
func partialRune(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// streamWebSocket speaks v5.channel.k8s.io both ways.
func (s *Server) streamWebSocket(w http.ResponseWriter, r *http.Request, p *Process, since int64, kill bool) {
	if offered := offeredProtocols(r); len(offered) > 0 && !slices.Contains(offered, frame.Protocol) {
		writeError(w, http.StatusBadRequest, apiError{Code: "invalid_request", Field: "Sec-WebSocket-Protocol",
			Message: "only " + frame.Protocol + " is spoken here"})
		return
	}
	conn, err := websocket.Accept(&messageWriter{w, s.cfg.WebSocketBuffer}, r, &websocket.AcceptOptions{Subprotocols: []string{frame.Protocol}})
	if err != nil {
		return // Accept has answered
	}
	conn.SetReadLimit(int64(max(minReadLimit, s.cfg.WebSocketBuffer+1)))
	// r.Context ends with the handler only, once the connection is hijacked.
	ctx, cancel := context.WithCancel(s.streams)
	defer cancel()
	ws := &wsStream{server: s, conn: conn, process: p, cancel: cancel}
	if err := ws.run(ctx, since); err != nil && kill {
		p.Kill(killDisconnect, p.spec.grace)
	}
}

// messageWriter makes the buffer of a hijacked connection large enough for one
// message, which otherwise takes two write(2) calls.
type messageWriter struct {
	http.ResponseWriter
	size int
}

func (m *messageWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(m.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// RFC 6455 section 5.2: a frame header takes 14 bytes at most; one for the channel.
	return conn, bufio.NewReadWriter(brw.Reader, bufio.NewWriterSize(conn, m.size+15)), nil
}

func offeredProtocols(r *http.Request) []string {
	var out []string
	for _, v := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(v, ",") {
			out = append(out, strings.TrimSpace(p))
		}
	}
	return out
}

type wsStream struct {
	server  *Server
	conn    *websocket.Conn
	process *Process
	cancel  context.CancelFunc
	// blocked: the process does not read its stdin, so nothing is read from the
	// client either, pongs included.
	blocked atomic.Bool
}

// run returns nil when the process' end was told, else why the client is gone.
func (ws *wsStream) run(ctx context.Context, since int64) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ws.cancel()
	defer func() { _ = ws.conn.CloseNow() }()
	queue := make(chan frame.Message, stdinQueue)
	wg.Go(func() { ws.feed(ctx, queue) })
	wg.Go(func() {
		defer ws.cancel()
		ws.receive(ctx, queue)
	})
	wg.Go(func() {
		if ws.ping(ctx) != nil {
			ws.cancel()
		}
	})
	err := ws.send(ctx, since)
	if err == nil {
		_ = ws.conn.Close(websocket.StatusNormalClosure, "")
	}
	return err
}

// send copies the output to the client until the process has ended.
func (ws *wsStream) send(ctx context.Context, since int64) error {
	reader := ws.process.log.NewReader(since)
	defer reader.Close()
	msg := make([]byte, 1+ws.server.cfg.WebSocketBuffer)
	for {
		c, err := reader.Next(ctx, msg[1:])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		out := msg[:1+len(c.Data)]
		out[0] = c.Channel
		if c.Gap > 0 {
			ws.server.metrics.lost.Add(float64(c.Gap))
			out = frame.AppendGap(nil, c.End-c.Gap, c.End)
		}
		if err := ws.write(ctx, out); err != nil {
			return err
		}
	}
	<-ws.process.Done()
	r := ws.process.Result()
	text := "exit code " + strconv.Itoa(r.ExitCode)
	if r.Signal != "" {
		text = "killed by " + r.Signal
	}
	if r.KillReason != "" {
		text += " (" + r.KillReason + ")"
	}
	return ws.write(ctx, frame.AppendStatus(nil, frame.Exit{Code: r.ExitCode, Message: text}))
}

func (ws *wsStream) write(ctx context.Context, msg []byte) error {
	ctx, cancel := context.WithTimeout(ctx, ws.server.cfg.WriteTimeout)
	defer cancel()
	return ws.conn.Write(ctx, websocket.MessageBinary, msg)
}

// receive reads what the client sends until it leaves.
func (ws *wsStream) receive(ctx context.Context, queue chan<- frame.Message) {
	defer close(queue)
	for {
		_, b, err := ws.conn.Read(ctx)
		if err != nil {
			return
		}
		m, err := frame.Parse(b)
		if err == nil && m.Channel == frame.Resize {
			size := Size{Columns: m.Size.Width, Rows: m.Size.Height}
			if err = size.validate("resize"); err == nil {
				// Without a terminal, or after its end, there is nothing to resize, and
				// clients send sizes unasked.
				_ = ws.process.Resize(size)
				continue
			}
		}
		if err != nil {
			reason := err.Error()
			_ = ws.conn.Close(websocket.StatusPolicyViolation, reason[:min(len(reason), 120)])
			return
		}
		ws.blocked.Store(true)
		select {
		case queue <- m:
		case <-ctx.Done():
			return
		}
		ws.blocked.Store(false)
	}
}

// feed hands stdin to the process at the process' pace.
func (ws *wsStream) feed(ctx context.Context, queue <-chan frame.Message) {
	for m := range queue {
		if ws.process.in == nil {
			continue
		}
		// A stdin that is closed takes no more; the stream goes on for the output.
		if m.Channel == frame.Close {
			_ = ws.process.in.CloseWrite(ctx)
		} else {
			_, _ = ws.process.in.Write(ctx, m.Data)
		}
	}
}

// ping returns an error when the client does not answer any more.
func (ws *wsStream) ping(ctx context.Context) error {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		pctx, cancel := context.WithTimeout(ctx, pongPatience)
		err := ws.conn.Ping(pctx)
		cancel()
		if err != nil && ctx.Err() == nil && !ws.blocked.Load() {
			return err
		}
	}
}
