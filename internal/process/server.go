package process

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"k8s.io/utils/clock"

	"github.com/sandbox-egress/sandbox-egress/internal/process/files"
	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
)

// ServerConfig bounds a Server.
type ServerConfig struct {
	Token             *tokenFile // nil: no authentication
	RestrictLocalhost bool
	TLS               *tls.Config // nil: plain HTTP

	MaxConnections  int
	MaxRequests     int   // requests under way, streams and transfers included
	MaxStreams      int   // of them, streams of /v1/processes
	MaxTransfers    int   // of them, on /v1/files
	MaxBody         int64 // JSON bodies and stdin, bytes
	MaxFile         int64 // uploads, bytes
	MaxOutput       int64 // each of stdout and stderr in the answer of /execute, bytes
	WebSocketBuffer int   // output per WebSocket message, bytes
	WriteTimeout    time.Duration
	StdinTimeout    time.Duration

	Info  info
	Log   *slog.Logger
	Clock clock.PassiveClock
}

// info is the body of GET /v1/info.
type info struct {
	Version           string     `json:"version"`
	Limits            limit.Info `json:"limits"`
	Authentication    string     `json:"authentication"` // bearer, none
	TLS               bool       `json:"tls"`
	RestrictLocalhost bool       `json:"restrict_localhost"`
	FilesRoot         string     `json:"files_root"` // "": the files API is off
	PID               int        `json:"pid"`
	Subreaper         bool       `json:"subreaper"` // orphans are adopted and reaped
	MaxProcesses      int        `json:"max_processes"`
	MaxOutputBytes    int64      `json:"max_output_bytes"`
	ReplayBufferBytes int        `json:"replay_buffer_bytes"`
	MaxBodyBytes      int64      `json:"max_body_bytes"`
	MaxFileBytes      int64      `json:"max_file_bytes"`
	MaxStreams        int        `json:"max_streams"`
	DefaultTimeoutMS  int64      `json:"default_timeout_ms"`
	MaxTimeoutMS      int64      `json:"max_timeout_ms"`
	KillGraceMS       int64      `json:"kill_grace_ms"`
	RetainExitedMS    int64      `json:"retain_exited_ms"`
	DefaultUser       string     `json:"default_user"`
	WebSocketBuffer   int        `json:"websocket_buffer"`
}

// Server is the HTTP side.
type Server struct {
	cfg     ServerConfig
	manager *Manager
	backend limit.Backend
	files   *files.Store // nil: off
	metrics *Metrics

	requests, watchers, transfers gate

	streams    context.Context // of hijacked connections
	endStreams context.CancelFunc
}

// NewServer wires the parts; store may be nil.
func NewServer(cfg ServerConfig, m *Manager, store *files.Store) *Server {
	s := &Server{
		cfg: cfg, manager: m, backend: m.cfg.Backend, files: store, metrics: m.cfg.Metrics,
		requests:  gate{flag: "max-requests", limit: int64(cfg.MaxRequests)},
		watchers:  gate{flag: "max-streams", limit: int64(cfg.MaxStreams)},
		transfers: gate{flag: "max-transfers", limit: int64(cfg.MaxTransfers)},
	}
	s.streams, s.endStreams = context.WithCancel(context.Background())
	return s
}

type route struct {
	pattern string // method and path of http.ServeMux
	open    bool   // without authentication
	handler http.HandlerFunc
}

// routes is the whole API; the OpenAPI document lists the same.
func (s *Server) routes() []route {
	watched := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if s.watchers.enter(w) {
				defer s.watchers.leave()
				h(w, r)
			}
		}
	}
	return []route{
		{"POST /execute", false, s.execute},
		{"POST /v1/processes", false, s.startProcess},
		{"GET /v1/processes", false, s.listProcesses},
		{"GET /v1/processes/{id}", false, s.withProcess(s.getProcess)},
		{"DELETE /v1/processes/{id}", false, s.withProcess(s.deleteProcess)},
		{"POST /v1/processes/{id}/signal", false, s.withProcess(s.signalProcess)},
		{"POST /v1/processes/{id}/stdin", false, s.withProcess(s.writeStdin)},
		{"POST /v1/processes/{id}/resize", false, s.withProcess(s.resizeProcess)},
		{"GET /v1/processes/{id}/stream", false, watched(s.withProcess(s.stream))},
		{"GET /v1/files/{path...}", false, s.withFile(s.getFile)}, // and HEAD
		{"PUT /v1/files/{path...}", false, s.withFile(s.putFile)},
		{"DELETE /v1/files/{path...}", false, s.withFile(s.deleteFile)},
		{"GET /v1/info", false, s.getInfo},
		{"GET /metrics", false, s.metrics.handler().ServeHTTP},
		{"GET /openapi.yaml", false, serveOpenAPI("application/yaml", openAPIYAML)},
		{"GET /openapi.json", false, serveOpenAPI("application/json", openAPIJSON)},
		{"GET /healthz", true, ok},
		{"GET /readyz", true, s.readyz},
	}
}

// Handler is the API with authentication and limits.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	public := map[string]bool{}
	for _, r := range s.routes() {
		mux.HandleFunc(r.pattern, r.handler)
		public[r.pattern] = r.open
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, pattern := mux.Handler(r)
		rec := &recorder{ResponseWriter: w}
		defer func() {
			label := pattern
			if label == "" {
				label = "none"
			}
			s.metrics.request(label, rec.code)
		}()
		if !public[pattern] && !s.admit(rec, r) {
			return
		}
		// The probes answer also when the server is full.
		if !public[pattern] {
			if !s.requests.enter(rec) {
				return
			}
			defer s.requests.leave()
		}
		mux.ServeHTTP(rec, r)
	})
}

// admit authenticates, also requests for paths that do not exist.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) bool {
	if s.cfg.Token != nil && !s.cfg.Token.allows(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="sandbox-api"`)
		writeError(w, http.StatusUnauthorized, apiError{Code: "unauthorized", Message: "want Authorization: Bearer with the token of --token-file"})
		return false
	}
	if !sameOrigin(r) {
		writeError(w, http.StatusForbidden, apiError{Code: "cross_origin", Field: "Origin",
			Message: "requests from web pages of other origins are refused"})
		return false
	}
	return true
}

func ok(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if s.manager.Draining() {
		fail(w, ErrDraining)
		return
	}
	ok(w, r)
}

func (s *Server) getInfo(w http.ResponseWriter, _ *http.Request) {
	i := s.cfg.Info
	i.Limits = s.backend.Info()
	writeJSON(w, http.StatusOK, i)
}

// Serve answers on l until ctx ends, then drains: no new processes, executions
// finish within drain, everything else is ended, connections close. nil after a
// clean drain.
func (s *Server) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	main := s.httpServer()
	servers := []*http.Server{main}
	errs := make(chan error, 2)
	serve := func(srv *http.Server, l net.Listener) {
		var err error
		if s.cfg.TLS != nil {
			err = srv.ServeTLS(l, "", "")
		} else {
			err = srv.Serve(l)
		}
		errs <- err
	}
	allowed := l
	if s.cfg.RestrictLocalhost {
		g := newGuard(l, s.metrics, s.cfg.Log)
		go g.run()
		allowed = g.allowed
		no := refuser(s.cfg.Log)
		no.TLSConfig, no.Protocols = s.tlsConfig(), main.Protocols
		servers = append(servers, no)
		go serve(no, g.refused)
	}
	go serve(main, netutil.LimitListener(allowed, s.cfg.MaxConnections))

	var failure error
	pending := len(servers)
	select {
	case <-ctx.Done():
	case failure = <-errs:
		pending--
	}
	s.cfg.Log.Info("draining", "timeout", drain.String())
	after := context.WithoutCancel(ctx)
	until, cancel := context.WithTimeout(after, drain)
	// Kill grace, then KILL and a moment for the answers to be written.
	patience := s.manager.cfg.KillGrace + 2*killPatience
	err := s.manager.Drain(until, patience)
	cancel()
	stop, cancel := context.WithTimeout(after, 5*time.Second)
	defer cancel()
	for _, srv := range servers {
		if serr := srv.Shutdown(stop); serr != nil {
			err = errors.Join(err, srv.Close())
		}
	}
	s.endStreams()
	err = errors.Join(err, closeListener(l))
	for range pending {
		if serr := <-errs; !errors.Is(serr, http.ErrServerClosed) && !errors.Is(serr, net.ErrClosed) {
			err = errors.Join(err, serr)
		}
	}
	return errors.Join(failure, err)
}

func closeListener(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *Server) httpServer() *http.Server {
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         s.tlsConfig(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		// WebSocket needs HTTP/1.1.
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	return srv
}

// tlsConfig is a copy for one http.Server, which writes to it.
func (s *Server) tlsConfig() *tls.Config {
	if s.cfg.TLS == nil {
		return nil
	}
	return s.cfg.TLS.Clone()
}

// isKnown tells errors that fail maps to a status of their own.
func isKnown(err error) bool {
	var tooLarge *http.MaxBytesError
	var field *FieldError
	return errors.As(err, &tooLarge) || errors.As(err, &field) ||
		errors.Is(err, ErrBusy) || errors.Is(err, ErrDraining) || errors.Is(err, ErrNotFound)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

func trimmed(list string) []string {
	var out []string
	for v := range strings.SplitSeq(list, ",") {
		if v = strings.TrimSpace(v); v != "" {
			out = append(out, v)
		}
	}
	return out
}
