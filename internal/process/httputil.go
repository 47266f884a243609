package process

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// apiError is the body of every answer that is not a success:
// {"error":{"code":…,"message":…,"field":…}}.
type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
}

func writeError(w http.ResponseWriter, status int, e apiError) {
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, status, map[string]apiError{"error": e})
}

// writeJSON answers with v. An error means that the client has gone: there is
// nobody to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer cannot be encoded"}}`)
	}
	b = append(b, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// fail maps an error to its answer.
func fail(w http.ResponseWriter, err error) {
	var tooLarge *http.MaxBytesError
	var field *FieldError
	switch {
	case errors.As(err, &tooLarge):
		// The rest of the body is not read: the connection cannot be used again.
		w.Header().Set("Connection", "close")
		writeError(w, http.StatusRequestEntityTooLarge, apiError{Code: "body_too_large",
			Message: "the body is larger than " + strconv.FormatInt(tooLarge.Limit, 10) + " bytes"})
	case errors.As(err, &field):
		writeError(w, http.StatusBadRequest, apiError{Code: "invalid_request", Message: err.Error(), Field: field.Field})
	case errors.Is(err, ErrBusy):
		writeError(w, http.StatusTooManyRequests, apiError{Code: "too_many_processes", Message: err.Error()})
	case errors.Is(err, ErrDraining):
		writeError(w, http.StatusServiceUnavailable, apiError{Code: "draining", Message: err.Error()})
	case errors.Is(err, ErrNotFound):
		writeError(w, http.StatusNotFound, apiError{Code: "process_not_found",
			Message: "no such process; ended ones are forgotten after --retain-exited"})
	default:
		writeError(w, http.StatusInternalServerError, apiError{Code: "internal", Message: err.Error()})
	}
}

// gate admits a bounded number of holders.
type gate struct {
	flag  string
	limit int64
	held  atomic.Int64
}

// enter reports whether there was room, having answered with 429 if not. leave
// must follow a true.
func (g *gate) enter(w http.ResponseWriter) bool {
	if g.held.Add(1) <= g.limit {
		return true
	}
	g.held.Add(-1)
	writeError(w, http.StatusTooManyRequests, apiError{Code: "too_many_requests",
		Message: "--" + g.flag + " " + strconv.FormatInt(g.limit, 10) + " are under way"})
	return false
}

func (g *gate) leave() { g.held.Add(-1) }

// body limits what is read of a request, in size (413) and time.
func body(w http.ResponseWriter, r *http.Request, limit int64, patience time.Duration) error {
	if r.ContentLength > limit {
		return &http.MaxBytesError{Limit: limit}
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	return http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
}

// bodyDone lifts the time limit, so that the server's watch for a client that
// leaves does not end with it.
func bodyDone(w http.ResponseWriter) error {
	return http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// recorder keeps the status code for the metrics.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController and the WebSocket library find the rest.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
