package process

import (
	"encoding/base64"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// bodyPatience bounds how long a JSON body may take to arrive.
const bodyPatience = 30 * time.Second

// executeAnswer is the body of POST /execute and, with a type, its last event.
type executeAnswer struct {
	Type   string  `json:"type,omitempty"` // "exit" in a stream
	Stdout *string `json:"stdout,omitempty"`
	Stderr *string `json:"stderr,omitempty"`
	Result
	Truncated      bool   `json:"truncated"`
	OutputEncoding string `json:"output_encoding,omitempty"` // base64 when that was asked for
}

type startEvent struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	PID  int    `json:"pid"`
}

// execute is POST /execute: run, wait, answer.
func (s *Server) execute(w http.ResponseWriter, r *http.Request) {
	req, err := s.readRequest(w, r)
	if err == nil {
		err = req.executeOnly()
	}
	if err != nil {
		fail(w, err)
		return
	}
	if wantsEvents(r) {
		s.executeStream(w, r, req)
		return
	}
	limit := s.cfg.MaxOutput
	if req.MaxOutputBytes > limit {
		fail(w, fieldErrorf("max_output_bytes", "%d is more than --max-output-bytes allows (%d); a stream (Accept: %s) is not limited", req.MaxOutputBytes, limit, ndjson))
		return
	}
	if req.MaxOutputBytes > 0 {
		limit = req.MaxOutputBytes
	}
	out := &capture{limit: int(limit)}
	p, err := s.manager.Start(r.Context(), kindExecute, req, out)
	if err != nil {
		fail(w, err)
		return
	}
	s.await(r, p)
	answer := executeAnswer{Result: *p.Result(), Truncated: out.stdout.truncated || out.stderr.truncated}
	var stdout, stderr string
	if req.OutputEncoding == "base64" {
		answer.OutputEncoding = "base64"
		stdout = base64.StdEncoding.EncodeToString(out.stdout.data)
		stderr = base64.StdEncoding.EncodeToString(out.stderr.data)
	} else {
		stdout, stderr = string(out.stdout.data), string(out.stderr.data)
	}
	answer.Stdout, answer.Stderr = &stdout, &stderr
	s.writePatiently(w)
	writeJSON(w, http.StatusOK, answer)
}

func (s *Server) executeStream(w http.ResponseWriter, r *http.Request, req *Request) {
	if req.OutputEncoding != "" {
		fail(w, fieldErrorf("output_encoding", "a stream says it per event"))
		return
	}
	events := newEventWriter(w, s.cfg.WriteTimeout)
	out := &eventSink{events: events, limit: req.MaxOutputBytes}
	// The first output waits until the start event is out.
	out.mu.Lock()
	p, err := s.manager.Start(r.Context(), kindExecute, req, out)
	if err != nil {
		out.mu.Unlock()
		fail(w, err)
		return
	}
	out.fail = func() { go p.Kill(killDisconnect, p.spec.grace) }
	if events.emitJSON(startEvent{"start", p.id, p.child.Pid()}) != nil {
		out.fail()
	}
	out.mu.Unlock()
	s.await(r, p)
	// The client may be gone; nobody is left to tell then.
	_ = events.emitJSON(executeAnswer{Type: "exit", Result: *p.Result(), Truncated: out.truncated})
}

// await waits for the end of a process, and ends it when its caller leaves: the
// answer would go nowhere.
func (s *Server) await(r *http.Request, p *Process) {
	select {
	case <-p.Done():
	case <-r.Context().Done():
		p.Kill(killDisconnect, p.spec.grace)
		<-p.Done()
	}
}

// writePatiently bounds how long a client may take to read an answer.
func (s *Server) writePatiently(w http.ResponseWriter) {
	// Fails on a connection that is gone, which the write then tells.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
}

// readRequest reads the JSON body whatever its Content-Type says: curl -d sends a
// form's.
func (s *Server) readRequest(w http.ResponseWriter, r *http.Request) (*Request, error) {
	if err := body(w, r, s.cfg.MaxBody, bodyPatience); err != nil {
		return nil, err
	}
	req, err := ParseRequest(r.Body)
	if err != nil {
		return nil, asRequestError(err)
	}
	return req, bodyDone(w)
}

// asRequestError makes a 400 of what a decoder says; errors that have a status of
// their own keep it.
func asRequestError(err error) error {
	if isKnown(err) {
		return err
	}
	return &FieldError{Field: "body", Reason: strings.TrimPrefix(err.Error(), "body: ")}
}

// wantsEvents tells whether Accept names NDJSON with a weight that is not zero.
func wantsEvents(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(v, ",") {
			t, params, err := mime.ParseMediaType(part)
			if err != nil || t != ndjson {
				continue
			}
			if q, ok := params["q"]; ok {
				if n, err := strconv.ParseFloat(q, 64); err != nil || n <= 0 {
					continue
				}
			}
			return true
		}
	}
	return false
}
