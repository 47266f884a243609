package process

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
	"github.com/sandbox-egress/sandbox-egress/internal/process/reaper"
)

// processView is a process as the API shows it.
type processView struct {
	ID        string       `json:"id"`
	Kind      string       `json:"kind"`  // execute, process
	State     string       `json:"state"` // running, exited
	Args      []string     `json:"args"`
	Cwd       string       `json:"cwd"`
	UID       int          `json:"uid"`
	PID       int          `json:"pid"`
	TTY       bool         `json:"tty"`
	CreatedAt time.Time    `json:"created_at"`
	ExitedAt  *time.Time   `json:"exited_at,omitempty"`
	Result    *Result      `json:"result,omitempty"`
	Output    *outputView  `json:"output,omitempty"` // not for kind execute
	Usage     *limit.Usage `json:"usage,omitempty"`  // only of a single running process
}

// outputView gives positions for ?since=.
type outputView struct {
	Oldest  int64 `json:"oldest"`  // first byte that is still kept
	Next    int64 `json:"next"`    // number of bytes written so far
	Dropped int64 `json:"dropped"` // bytes no longer kept
}

func (p *Process) view(usage bool) processView {
	v := processView{
		ID: p.id, Kind: p.kind, State: "running", Args: p.spec.argv, Cwd: p.spec.dir,
		UID: p.spec.account.uid, PID: p.child.Pid(), TTY: p.spec.tty, CreatedAt: p.created.UTC(),
	}
	if v.Result = p.Result(); v.Result != nil {
		ended := p.ended.UTC()
		v.State, v.ExitedAt = "exited", &ended
	} else if usage {
		if u, err := p.scope.Usage(); err == nil {
			v.Usage = &u
		}
	}
	if p.log != nil {
		s := p.log.Stats()
		v.Output = &outputView{Oldest: s.Head, Next: s.Tail, Dropped: s.Dropped}
	}
	return v
}

func (s *Server) startProcess(w http.ResponseWriter, r *http.Request) {
	req, err := s.readRequest(w, r)
	if err == nil {
		err = req.processOnly()
	}
	if err != nil {
		fail(w, err)
		return
	}
	p, err := s.manager.Start(r.Context(), kindProcess, req, nil)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Location", "/v1/processes/"+p.id)
	writeJSON(w, http.StatusCreated, p.view(false))
}

func (s *Server) listProcesses(w http.ResponseWriter, _ *http.Request) {
	views := []processView{}
	for _, p := range s.manager.List() {
		views = append(views, p.view(false))
	}
	writeJSON(w, http.StatusOK, map[string][]processView{"processes": views})
}

// withProcess finds the process of the path.
func (s *Server) withProcess(h func(http.ResponseWriter, *http.Request, *Process)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := s.manager.Get(r.PathValue("id"))
		if err != nil {
			fail(w, err)
			return
		}
		h(w, r, p)
	}
}

func (s *Server) getProcess(w http.ResponseWriter, _ *http.Request, p *Process) {
	writeJSON(w, http.StatusOK, p.view(true))
}

// deleteProcess ends a process that runs, waits for it, and forgets it.
func (s *Server) deleteProcess(w http.ResponseWriter, r *http.Request, p *Process) {
	grace := p.spec.grace
	if v := r.URL.Query().Get("grace_ms"); v != "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || n > 60_000 {
			fail(w, fieldErrorf("grace_ms", "%.20q is out of range, want 0 to 60000", v))
			return
		}
		grace = time.Duration(n) * time.Millisecond
	}
	p.Kill(killCaller, grace)
	select {
	case <-p.Done():
	case <-r.Context().Done():
		return
	}
	s.manager.Remove(p)
	writeJSON(w, http.StatusOK, p.view(false))
}

func (s *Server) signalProcess(w http.ResponseWriter, r *http.Request, p *Process) {
	var req signalRequest
	err := body(w, r, 4<<10, bodyPatience)
	if err == nil {
		if err = decodeStrict(r.Body, &req); err != nil {
			err = asRequestError(err)
		}
	}
	if err != nil {
		fail(w, err)
		return
	}
	sig, err := parseSignal(string(req.Signal))
	if err != nil {
		fail(w, err)
		return
	}
	switch err := p.Signal(sig, req.Single); {
	case errors.Is(err, reaper.ErrReleased):
		conflict(w, "process_exited", "the process has ended")
	case err != nil:
		fail(w, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func conflict(w http.ResponseWriter, code, message string) {
	writeError(w, http.StatusConflict, apiError{Code: code, Message: message})
}

// writeStdin sends the raw body to the process' stdin; ?close=true ends the input
// after it.
func (s *Server) writeStdin(w http.ResponseWriter, r *http.Request, p *Process) {
	closeAfter, err := boolParam(r, "close")
	if err == nil {
		err = body(w, r, s.cfg.MaxBody, bodyPatience)
	}
	if err != nil {
		fail(w, err)
		return
	}
	if p.in == nil {
		conflict(w, "stdin_closed", "the process was started without an open stdin")
		return
	}
	// Bounded also for a process that does not read: the caller can come back.
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.StdinTimeout)
	defer cancel()
	written, err := s.copyStdin(ctx, r, p)
	if err == nil && closeAfter {
		err = p.in.CloseWrite(ctx)
	}
	switch {
	case errors.Is(err, errStdinClosed):
		conflict(w, "stdin_closed", "stdin is closed; bytes taken: "+strconv.FormatInt(written, 10))
	case errors.Is(err, errStdinFull):
		conflict(w, "stdin_full", "the process does not read its stdin; bytes taken: "+strconv.FormatInt(written, 10))
	case err != nil:
		fail(w, asRequestError(err))
	default:
		writeJSON(w, http.StatusOK, map[string]int64{"written": written})
	}
}

func (s *Server) copyStdin(ctx context.Context, r *http.Request, p *Process) (int64, error) {
	bufp := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(bufp)
	var written int64
	for {
		n, err := r.Body.Read(*bufp)
		if n > 0 {
			m, werr := p.in.Write(ctx, (*bufp)[:n])
			written += int64(m)
			if werr != nil {
				return written, werr
			}
		}
		if isEOF(err) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
	}
}

func (s *Server) resizeProcess(w http.ResponseWriter, r *http.Request, p *Process) {
	var size Size
	err := body(w, r, 4<<10, bodyPatience)
	if err == nil {
		if err = decodeStrict(r.Body, &size); err != nil {
			err = asRequestError(err)
		} else {
			err = size.validate("size")
		}
	}
	if err != nil {
		fail(w, err)
		return
	}
	switch err := p.Resize(size); {
	case errors.Is(err, errNoTTY):
		conflict(w, "no_tty", err.Error())
	case err != nil:
		conflict(w, "process_exited", "the terminal is closed: "+err.Error())
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func boolParam(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fieldErrorf(name, "%.20q is not true or false", v)
	}
	return b, nil
}
