package process

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
	"github.com/sandbox-egress/sandbox-egress/internal/process/reaper"
	"github.com/sandbox-egress/sandbox-egress/internal/process/ring"
)

// Errors of Manager.
var (
	ErrBusy     = errors.New("too many processes")
	ErrDraining = errors.New("the server is shutting down")
	ErrNotFound = errors.New("no such process")
)

const (
	// drainGrace is how long a stream may be silent after its process has ended
	// before it is closed although somebody else still holds it.
	drainGrace = 250 * time.Millisecond
	// lingerInterval is how often a tree whose main process has ended is looked at.
	lingerInterval = 200 * time.Millisecond
	janitorPeriod  = 10 * time.Second
)

// ManagerConfig bounds a Manager. Every field but Metrics and Clock is required.
type ManagerConfig struct {
	Backend limit.Backend
	Reaper  *reaper.Reaper

	MaxProcesses   int           // running at once, leftovers of ended ones included
	MaxExited      int           // ended ones that are remembered
	Retain         time.Duration // how long
	ReplayBuffer   int           // output kept of a process, bytes
	RetainBytes    int           // output kept of all ended processes, bytes
	Stall          time.Duration // how long a reader that stopped reading holds its process back
	DefaultTimeout time.Duration // of /execute
	MaxTimeout     time.Duration
	KillGrace      time.Duration
	DefaultUser    string
	DefaultCwd     string
	PassEnv        []string

	Metrics *Metrics
	Log     *slog.Logger
	Clock   clock.WithTicker
}

// Manager starts processes and remembers them. Safe for concurrent use.
type Manager struct {
	cfg ManagerConfig

	mu       sync.Mutex
	byID     map[string]*Process
	running  int            // slots in use
	draining bool           // nothing new is started
	killing  bool           // what still runs is ended
	work     sync.WaitGroup // one per process until its slot is free
	answers  sync.WaitGroup // one per execution of /execute until its result is there
}

// NewManager returns a Manager; Run must be running for ended processes to be
// forgotten.
func NewManager(cfg ManagerConfig) *Manager {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	return &Manager{cfg: cfg, byID: map[string]*Process{}}
}

// Run forgets ended processes in time, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	tick := m.cfg.Clock.NewTicker(janitorPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
			m.mu.Lock()
			m.forget(m.cfg.Clock.Now())
			m.mu.Unlock()
		}
	}
}

// resolve turns a checked request into what execve(2) needs. The error is a
// *FieldError.
func (m *Manager) resolve(kind string, req *Request) (spec, error) {
	s := spec{keep: req.KeepDescendants, tty: req.TTY, stdin: req.stdin(), grace: m.cfg.KillGrace}
	var err error
	if s.account, err = resolveUser(cmp.Or(req.User, m.cfg.DefaultUser)); err != nil {
		return spec{}, err
	}
	s.dir = cmp.Or(req.Cwd, m.cfg.DefaultCwd, "/")
	if err := checkDir(s.dir); err != nil {
		return spec{}, err
	}
	s.env = childEnv(m.cfg.PassEnv, os.LookupEnv, s.account, req.TTY, req.Env)
	field := "args[0]"
	s.argv = req.Args
	if req.Command != "" {
		field = "shell"
		s.argv = []string{cmp.Or(req.Shell, "/bin/sh"), "-c", req.Command}
	}
	if s.path, err = lookPath(field, s.argv[0], s.dir, envValue(s.env, "PATH")); err != nil {
		return spec{}, err
	}
	s.timeout = time.Duration(req.TimeoutMS) * time.Millisecond
	if kind == kindExecute {
		s.timeout = cmp.Or(s.timeout, m.cfg.DefaultTimeout)
	} else {
		s.open = req.keepStdinOpen()
	}
	if s.timeout > m.cfg.MaxTimeout {
		return spec{}, fieldErrorf("timeout_ms", "%d is more than --max-timeout allows (%d)", req.TimeoutMS, m.cfg.MaxTimeout.Milliseconds())
	}
	if req.KillGraceMS != nil {
		s.grace = time.Duration(*req.KillGraceMS) * time.Millisecond
	}
	if s.tty {
		s.size = Size{Columns: 80, Rows: 24}
		if req.Size != nil {
			s.size = *req.Size
		}
	}
	return s, nil
}

// Start runs a process. out is nil for a process whose output goes to a replay
// log. Errors: *FieldError, ErrBusy, ErrDraining, or an internal one. The process
// outlives ctx.
func (m *Manager) Start(ctx context.Context, kind string, req *Request, out sink) (*Process, error) {
	s, err := m.resolve(kind, req)
	if err != nil {
		return nil, err
	}
	if err := m.acquire(kind); err != nil {
		return nil, err
	}
	started := false
	defer func() {
		if !started {
			m.release()
			if kind == kindExecute {
				m.answers.Done()
			}
		}
	}()
	p := &Process{
		id: strings.ToLower(rand.Text()), kind: kind, spec: s, out: out,
		created: m.cfg.Clock.Now(),
		kills:   make(chan killOrder), done: make(chan struct{}),
	}
	if out == nil {
		p.log = ring.New(m.cfg.ReplayBuffer, m.cfg.Stall)
		p.out = ringSink{p.log}
	}
	if p.scope, err = m.cfg.Backend.New(); err != nil {
		return nil, fmt.Errorf("set up the process' limits: %w", err)
	}
	if err := p.launch(m.cfg.Reaper, drainGrace, m.cfg.Metrics.output); err != nil {
		if cerr := p.scope.Close(); cerr != nil {
			m.cfg.Log.Error("cannot free a limit scope", "error", cerr)
		}
		return nil, err
	}
	m.mu.Lock()
	m.byID[p.id] = p
	late := m.killing
	started = true
	m.mu.Unlock()
	m.cfg.Metrics.started.WithLabelValues(kind).Inc()
	m.cfg.Log.Info("process started", "id", p.id, "kind", kind, "pid", p.child.Pid(), "uid", s.account.uid)
	m.run(context.WithoutCancel(ctx), p)
	if late {
		// Drain has looked at the list of what to end already.
		p.Kill(killShutdown, s.grace)
	}
	return p, nil
}

func (m *Manager) acquire(kind string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.draining:
		return ErrDraining
	case m.running >= m.cfg.MaxProcesses:
		return fmt.Errorf("%w: --max-processes %d are running", ErrBusy, m.cfg.MaxProcesses)
	}
	m.running++
	m.work.Add(1)
	if kind == kindExecute {
		m.answers.Add(1)
	}
	m.cfg.Metrics.running.Inc()
	return nil
}

func (m *Manager) release() {
	m.mu.Lock()
	m.running--
	m.mu.Unlock()
	m.cfg.Metrics.running.Dec()
	m.work.Done()
}

// run moves the streams and waits for the end, in the background.
func (m *Manager) run(ctx context.Context, p *Process) {
	var pumps, feeding sync.WaitGroup
	for _, pump := range p.pumps {
		pumps.Go(pump.run)
	}
	running, stop := context.WithCancel(ctx)
	if p.in != nil && len(p.spec.stdin) > 0 {
		text := p.spec.stdin
		p.spec.stdin = nil // freed when it is written
		feeding.Go(func() {
			if _, err := p.in.Write(running, text); err == nil && !p.spec.open {
				_ = p.in.CloseWrite(running)
			}
		})
	}
	go func() {
		p.supervise(ctx)
		stop()
		feeding.Wait()
		empty := p.finish(ctx, m.cfg.Clock.Now(), &pumps)
		m.ended(p)
		// The slot is free when the answer is out: a caller that sends one request after
		// the other never meets itself.
		if empty {
			m.free(p)
			m.release()
		} else {
			go m.linger(ctx, p)
		}
		close(p.done)
	}()
}

// free gives back what the tree held. The scope goes first: the zombie keeps its
// pid from naming another process there.
func (m *Manager) free(p *Process) {
	if err := p.scope.Close(); err != nil {
		m.cfg.Log.Error("cannot free a limit scope", "id", p.id, "error", err)
	}
	p.child.Release()
}

// linger keeps the slot of a process whose descendants live on, until they are
// gone or the server ends.
func (m *Manager) linger(ctx context.Context, p *Process) {
	<-p.done
	for {
		empty, err := p.scope.Empty()
		if err == nil && empty {
			break
		}
		m.mu.Lock()
		killing := m.killing
		m.mu.Unlock()
		if killing || !p.spec.keep {
			if p.killAll(ctx) {
				break
			}
		}
		time.Sleep(lingerInterval)
	}
	m.free(p)
	m.release()
}

func (m *Manager) ended(p *Process) {
	r := p.Result()
	m.cfg.Metrics.ended(p.kind, r)
	m.cfg.Log.Info("process ended", "id", p.id, "exit_code", r.ExitCode, "signal", r.Signal,
		"kill_reason", r.KillReason, "oom_killed", r.OOMKilled, "duration_ms", r.DurationMS)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.kind == kindExecute {
		delete(m.byID, p.id) // its answer says all
		m.answers.Done()
		return
	}
	m.forget(m.cfg.Clock.Now())
}

// forget drops ended processes that are too old or too many, and the output of
// the oldest while all of it is too much. m.mu is held.
func (m *Manager) forget(now time.Time) {
	var ended []*Process
	for _, p := range m.byID {
		// One of /execute has no log, and leaves by itself when it is answered.
		if p.kind != kindExecute && p.Result() != nil {
			ended = append(ended, p)
		}
	}
	slices.SortFunc(ended, func(a, b *Process) int { return b.ended.Compare(a.ended) }) // newest first
	kept := int64(0)
	for i, p := range ended {
		if i >= m.cfg.MaxExited || now.Sub(p.ended) >= m.cfg.Retain {
			delete(m.byID, p.id)
			continue
		}
		if kept += p.log.Stats().Memory; kept > int64(m.cfg.RetainBytes) {
			p.log.Discard()
		}
	}
}

// Get returns a process by id, or ErrNotFound.
func (m *Manager) Get(id string) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.byID[id]; p != nil {
		return p, nil
	}
	return nil, ErrNotFound
}

// List returns what is remembered, oldest first.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	list := make([]*Process, 0, len(m.byID))
	for _, p := range m.byID {
		list = append(list, p)
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b *Process) int {
		return cmp.Or(a.created.Compare(b.created), strings.Compare(a.id, b.id))
	})
	return list
}

// Remove forgets a process that has ended; false when it runs or is gone.
func (m *Manager) Remove(p *Process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byID[p.id] != p || p.Result() == nil {
		return false
	}
	delete(m.byID, p.id)
	return true
}

// Drain refuses new processes, waits until no execution of /execute is under way
// or ctx ends, and then ends everything. It returns when nothing is left, or
// with an error after patience.
func (m *Manager) Drain(ctx context.Context, patience time.Duration) error {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	answered := make(chan struct{})
	go func() { m.answers.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.killing = true
	m.mu.Unlock()
	var kills sync.WaitGroup
	for _, p := range m.List() {
		kills.Go(func() { p.Kill(killShutdown, p.spec.grace) })
	}
	gone := make(chan struct{})
	go func() { kills.Wait(); m.work.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-time.After(patience):
		m.mu.Lock()
		defer m.mu.Unlock()
		return fmt.Errorf("%d processes did not end within %v", m.running, patience)
	}
}

// Draining tells whether Drain was called.
func (m *Manager) Draining() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining
}

// Running returns the number of slots in use.
func (m *Manager) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}
