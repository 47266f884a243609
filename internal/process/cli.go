package process

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"github.com/sandbox-egress/sandbox-egress/internal/process/files"
	"github.com/sandbox-egress/sandbox-egress/internal/process/limit"
	"github.com/sandbox-egress/sandbox-egress/internal/process/reaper"
)

// Exit codes of Main.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// options are the flags.
type options struct {
	addr              string
	restrictLocalhost bool
	webSocketBuffer   int

	tokenFile      string
	insecureNoAuth bool
	tlsCert        string
	tlsKey         string

	memoryLimit   uint64
	cpuShares     uint64
	pidsLimit     uint64
	requireLimits bool
	limitsBackend string
	cgroupParent  string

	maxProcesses   int
	maxOutput      int64
	defaultTimeout time.Duration
	maxTimeout     time.Duration
	killGrace      time.Duration
	defaultUser    string
	defaultCwd     string
	passEnv        string

	maxConnections int
	maxRequests    int
	maxStreams     int
	maxTransfers   int
	maxBody        int64
	maxFile        int64
	replayBuffer   int
	slowReader     time.Duration
	maxExited      int
	retainExited   time.Duration
	retainOutput   int
	writeTimeout   time.Duration
	stdinTimeout   time.Duration

	filesRoot    string
	drainTimeout time.Duration
	logLevel     string
	install      string
	version      bool
}

func (o *options) flags(out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("sandbox-api", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.addr, "addr", "0.0.0.0:8080", "address to listen on")
	f.BoolVar(&o.restrictLocalhost, "restrict-localhost", true, "answer 403 to connections from this machine: loopback and its own addresses")
	f.IntVar(&o.webSocketBuffer, "websocket-buffer", 16384, "output bytes per WebSocket message")

	f.StringVar(&o.tokenFile, "token-file", "", "file with the bearer token (at least 16 characters); read again when it changes")
	f.BoolVar(&o.insecureNoAuth, "insecure-no-auth", false, "serve without a token")
	f.StringVar(&o.tlsCert, "tls-cert-file", "", "PEM certificate; with --tls-key-file the server speaks TLS")
	f.StringVar(&o.tlsKey, "tls-key-file", "", "PEM private key")

	f.Uint64Var(&o.memoryLimit, "memory-limit-bytes", 4294900000, "memory of one process tree; 0 for none")
	f.Uint64Var(&o.cpuShares, "cpu-shares", 1024, "CPU shares of one process tree, 2 to 262144; 0 leaves them alone")
	f.Uint64Var(&o.pidsLimit, "pids-limit", 1024, "processes and threads of one process tree; 0 for no limit")
	f.BoolVar(&o.requireLimits, "require-limits", false, "refuse to start unless cgroups enforce the limits")
	f.StringVar(&o.limitsBackend, "limits-backend", limit.Auto, "auto, cgroup2, cgroup1 or rlimits")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "cgroup to create process cgroups in, relative to the cgroup mount; default the own cgroup")

	f.IntVar(&o.maxProcesses, "max-processes", 64, "process trees at once, then 429")
	f.Int64Var(&o.maxOutput, "max-output-bytes", 1<<20, "bytes of stdout and of stderr in the answer of /execute")
	f.DurationVar(&o.defaultTimeout, "default-timeout", time.Minute, "timeout of /execute when the request has none")
	f.DurationVar(&o.maxTimeout, "max-timeout", time.Hour, "largest timeout a request may ask for")
	f.DurationVar(&o.killGrace, "kill-grace", 2*time.Second, "time between TERM and KILL")
	f.StringVar(&o.defaultUser, "default-user", "", "user of processes whose request names none: name, uid, name:group or uid:gid; default the server's")
	f.StringVar(&o.defaultCwd, "default-cwd", "", "working directory of processes whose request names none; default the files root, or /")
	f.StringVar(&o.passEnv, "pass-env", strings.Join(DefaultPassEnv, ","), "names of the server's own environment variables that processes get; no others are handed down")

	f.IntVar(&o.maxConnections, "max-connections", 512, "connections at once; more wait")
	f.IntVar(&o.maxRequests, "max-requests", 256, "requests at once, then 429")
	f.IntVar(&o.maxStreams, "max-streams", 64, "output streams at once, then 429")
	f.IntVar(&o.maxTransfers, "max-transfers", 16, "file transfers at once, then 429")
	f.Int64Var(&o.maxBody, "max-body-bytes", 4<<20, "size of a JSON or stdin body, then 413")
	f.Int64Var(&o.maxFile, "max-file-bytes", 1<<30, "size of an upload, then 413")
	f.IntVar(&o.replayBuffer, "replay-buffer-bytes", 256<<10, "output kept of each process of /v1/processes")
	f.DurationVar(&o.slowReader, "slow-reader-timeout", time.Second, "how long a stream that does not read holds its process back before it gets a gap")
	f.IntVar(&o.maxExited, "max-exited", 256, "ended processes that are remembered")
	f.DurationVar(&o.retainExited, "retain-exited", 10*time.Minute, "how long ended processes are remembered")
	f.IntVar(&o.retainOutput, "retain-output-bytes", 32<<20, "output kept of all ended processes together")
	f.DurationVar(&o.writeTimeout, "write-timeout", 30*time.Second, "how long a client may take to read one piece of an answer")
	f.DurationVar(&o.stdinTimeout, "stdin-timeout", 10*time.Second, "how long a request waits for a process to read its stdin")

	f.StringVar(&o.filesRoot, "files-root", "/workspace", "directory of the files API, created if missing; empty turns the API off")
	f.DurationVar(&o.drainTimeout, "drain-timeout", 20*time.Second, "how long executions may go on after SIGTERM")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.install, "install", "", "copy this program to a path and exit")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	return f
}

// validate names the flag that cannot be used.
func (o *options) validate() error {
	switch {
	case o.tokenFile == "" && !o.insecureNoAuth:
		return errors.New("--token-file is required: anybody who can connect could run programs; --insecure-no-auth serves without one")
	case o.tokenFile != "" && o.insecureNoAuth:
		return errors.New("--token-file and --insecure-no-auth exclude each other")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return errors.New("--tls-cert-file and --tls-key-file go together")
	case o.cpuShares != 0 && (o.cpuShares < 2 || o.cpuShares > 1<<18):
		return fmt.Errorf("--cpu-shares %d is out of range, want 0 or 2 to 262144", o.cpuShares)
	case o.memoryLimit != 0 && o.memoryLimit < 1<<20:
		return fmt.Errorf("--memory-limit-bytes %d is less than 1 MiB, in which nothing starts", o.memoryLimit)
	case o.memoryLimit > math.MaxInt64/2:
		return fmt.Errorf("--memory-limit-bytes %d is out of range; 0 means no limit", o.memoryLimit)
	}
	positive := map[string]int64{
		"websocket-buffer": int64(o.webSocketBuffer), "max-processes": int64(o.maxProcesses), "max-output-bytes": o.maxOutput,
		"default-timeout": int64(o.defaultTimeout), "max-timeout": int64(o.maxTimeout), "max-connections": int64(o.maxConnections),
		"max-requests": int64(o.maxRequests), "max-streams": int64(o.maxStreams), "max-transfers": int64(o.maxTransfers),
		"max-body-bytes": o.maxBody, "max-file-bytes": o.maxFile, "replay-buffer-bytes": int64(o.replayBuffer),
		"max-exited": int64(o.maxExited), "retain-exited": int64(o.retainExited), "retain-output-bytes": int64(o.retainOutput),
		"write-timeout": int64(o.writeTimeout), "stdin-timeout": int64(o.stdinTimeout),
	}
	names := make([]string, 0, len(positive))
	for name := range positive {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if positive[name] <= 0 {
			return fmt.Errorf("--%s must be more than 0", name)
		}
	}
	switch {
	case o.webSocketBuffer > 1<<20:
		return fmt.Errorf("--websocket-buffer %d is more than 1 MiB", o.webSocketBuffer)
	case o.killGrace < 0 || o.drainTimeout < 0 || o.slowReader < 0:
		return errors.New("--kill-grace, --drain-timeout and --slow-reader-timeout cannot be negative")
	case o.defaultTimeout > o.maxTimeout:
		return fmt.Errorf("--default-timeout %v is more than --max-timeout %v", o.defaultTimeout, o.maxTimeout)
	}
	return nil
}

// Main is the sandbox-api program: it serves until ctx ends or SIGTERM or SIGINT
// comes, and returns the exit code.
func Main(ctx context.Context, version string, args []string, stderr io.Writer) int {
	var o options
	f := o.flags(stderr)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	usage := func(err error) int {
		_, _ = fmt.Fprintf(stderr, "sandbox-api: %v\n", err)
		return exitUsage
	}
	if o.version {
		_, _ = fmt.Fprintln(stderr, version)
		return exitOK
	}
	if f.NArg() > 0 {
		return usage(fmt.Errorf("unexpected argument %q", f.Arg(0)))
	}
	if o.install != "" {
		if err := install(o.install); err != nil {
			_, _ = fmt.Fprintf(stderr, "sandbox-api: --install: %v\n", err)
			return exitFailure
		}
		return exitOK
	}
	if err := o.validate(); err != nil {
		return usage(err)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return usage(fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel))
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level}))
	if err := run(ctx, version, &o, log); err != nil {
		log.Error("sandbox-api failed", "error", err)
		return exitFailure
	}
	return exitOK
}

func run(ctx context.Context, version string, o *options, log *slog.Logger) (err error) {
	if err := hardenSelf(); err != nil {
		return fmt.Errorf("protect this process from the processes it starts: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become child subreaper: %w", err)
	}
	account, err := resolveUser(o.defaultUser)
	if err != nil {
		return fmt.Errorf("--default-user: %w", err)
	}
	token, tlsConfig, err := o.credentials()
	if err != nil {
		return err
	}
	store, err := openStore(o.filesRoot, account)
	if err != nil {
		return fmt.Errorf("--files-root: %w", err)
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
		if o.defaultCwd == "" {
			o.defaultCwd = o.filesRoot
		}
	}
	backend, err := limit.Select(limit.Options{
		Limits:  limit.Limits{MemoryBytes: o.memoryLimit, CPUShares: o.cpuShares, PIDs: o.pidsLimit},
		Backend: o.limitsBackend, Require: o.requireLimits, CgroupParent: o.cgroupParent, Inherit: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.addr)
	if err != nil {
		return fmt.Errorf("--addr: %w", err)
	}
	stopping, stopSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stopSignals()
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	children := reaper.New(reaper.WithOrphans())
	wg.Go(func() { children.Run(background) })
	manager := NewManager(o.managerConfig(backend, children, log))
	wg.Go(func() { manager.Run(background) })
	server := NewServer(o.serverConfig(version, token, tlsConfig, log), manager, store)

	i := backend.Info()
	log.Info("serving", "addr", listener.Addr().String(), "limits", i.Backend, "kernel_enforced", i.Kernel,
		"notes", i.Notes, "authentication", server.cfg.Info.Authentication, "restrict_localhost", o.restrictLocalhost)
	return server.Serve(stopping, listener, o.drainTimeout)
}

func (o *options) managerConfig(b limit.Backend, r *reaper.Reaper, log *slog.Logger) ManagerConfig {
	return ManagerConfig{
		Backend: b, Reaper: r, Log: log,
		MaxProcesses: o.maxProcesses, MaxExited: o.maxExited, Retain: o.retainExited,
		ReplayBuffer: o.replayBuffer, RetainBytes: o.retainOutput, Stall: o.slowReader,
		DefaultTimeout: o.defaultTimeout, MaxTimeout: o.maxTimeout, KillGrace: o.killGrace,
		DefaultUser: o.defaultUser, DefaultCwd: o.defaultCwd, PassEnv: trimmed(o.passEnv),
	}
}

func (o *options) serverConfig(version string, token *tokenFile, t *tls.Config, log *slog.Logger) ServerConfig {
	auth := "bearer"
	if token == nil {
		auth = "none"
	}
	return ServerConfig{
		Token: token, RestrictLocalhost: o.restrictLocalhost, TLS: t,
		MaxConnections: o.maxConnections, MaxRequests: o.maxRequests, MaxStreams: o.maxStreams, MaxTransfers: o.maxTransfers,
		MaxBody: o.maxBody, MaxFile: o.maxFile, MaxOutput: o.maxOutput, WebSocketBuffer: o.webSocketBuffer,
		WriteTimeout: o.writeTimeout, StdinTimeout: o.stdinTimeout,
		Log: log, Clock: clock.RealClock{},
		Info: info{
			Version: version, Authentication: auth, TLS: t != nil, RestrictLocalhost: o.restrictLocalhost,
			FilesRoot: o.filesRoot, PID: os.Getpid(), Subreaper: true,
			MaxProcesses: o.maxProcesses, MaxOutputBytes: o.maxOutput, ReplayBufferBytes: o.replayBuffer,
			MaxBodyBytes: o.maxBody, MaxFileBytes: o.maxFile, MaxStreams: o.maxStreams,
			DefaultTimeoutMS: o.defaultTimeout.Milliseconds(), MaxTimeoutMS: o.maxTimeout.Milliseconds(),
			KillGraceMS: o.killGrace.Milliseconds(), RetainExitedMS: o.retainExited.Milliseconds(),
			DefaultUser: o.defaultUser, WebSocketBuffer: o.webSocketBuffer,
		},
	}
}

// credentials reads the token and the key pair; nil for what is off.
func (o *options) credentials() (*tokenFile, *tls.Config, error) {
	var token *tokenFile
	if o.tokenFile != "" {
		var err error
		if token, err = openToken(o.tokenFile, clock.RealClock{}); err != nil {
			return nil, nil, err
		}
	}
	if o.tlsCert == "" {
		return token, nil, nil
	}
	pair := &keyPair{cert: o.tlsCert, key: o.tlsKey, clock: clock.RealClock{}}
	if _, err := pair.get(nil); err != nil {
		return nil, nil, err
	}
	return token, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get, NextProtos: []string{"http/1.1"}}, nil
}

// openStore opens the files root, creating it for the processes' user.
func openStore(dir string, a account) (*files.Store, error) {
	if dir == "" {
		return nil, nil
	}
	uid, gid := -1, -1
	if a.cred != nil {
		uid, gid = int(a.cred.Uid), int(a.cred.Gid)
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // users other than its owner may have to read there
			return nil, err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return nil, err
		}
	}
	return files.Open(dir, uid, gid)
}
