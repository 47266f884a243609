package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Config of the relay. Zero durations and counts mean the defaults.
type Config struct {
	// Proxy is the egress proxy. An address and not a name: the relay looks nothing up.
	Proxy netip.AddrPort
	// ContainerID is the user name's part after "container_".
	ContainerID string
	// TokenFile holds the bare JWT.
	TokenFile string
	// Port to listen on, on 127.0.0.1 and, where it exists, on ::1. 0 picks one (tests).
	Port uint16
	// MaxConnections that are served at a time (1024); more wait in the backlog.
	MaxConnections int
	// HeadTimeout is how long a client may take to send its request head (1m).
	HeadTimeout time.Duration
	// DialTimeout bounds reaching the proxy, retries included (10s).
	DialTimeout time.Duration
	// DrainTimeout is how long open connections may go on when Serve ends (5s).
	DrainTimeout time.Duration
	Log          *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if !c.Proxy.IsValid() || c.Proxy.Port() == 0 {
		return c, errors.New("the proxy must be ip:port")
	}
	if c.ContainerID == "" || c.TokenFile == "" {
		return c, errors.New("container id and token file are required")
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 1024
	}
	if c.HeadTimeout <= 0 {
		c.HeadTimeout = time.Minute
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 10 * time.Second
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Server is the relay. Use New.
type Server struct {
	cfg       Config
	token     tokenFile
	listeners []net.Listener
	slots     chan struct{}
	open      sync.WaitGroup
	// A sandbox must not be able to fill the log.
	logLimit *rate.Limiter
}

// New listens on loopback.
func New(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		token:    tokenFile(cfg.TokenFile),
		slots:    make(chan struct{}, cfg.MaxConnections),
		logLimit: rate.NewLimiter(1, 10),
	}
	var lc net.ListenConfig
	v4, err := lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(cfg.Port))))
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	s.listeners = append(s.listeners, v4)
	v6, err := lc.Listen(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(s.Addr().Port()))))
	switch {
	case err == nil:
		s.listeners = append(s.listeners, v6)
	case noIPv6(err):
	default:
		v4.Close()
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	return s, nil
}

// noIPv6 tells a pod without IPv6 from a port that is taken.
func noIPv6(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// Addr is the IPv4 address.
func (s *Server) Addr() netip.AddrPort { return s.listeners[0].Addr().(*net.TCPAddr).AddrPort() }

// Addrs are all addresses that the relay listens on.
func (s *Server) Addrs() []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.Addr().(*net.TCPAddr).AddrPort()
	}
	return addrs
}

// Serve accepts until ctx ends, then gives open connections DrainTimeout. It returns nil
// after a shutdown and the listener's error otherwise.
func (s *Server) Serve(ctx context.Context) error {
	// Connections outlive ctx by the drain.
	conns, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	accepting, stop := context.WithCancel(ctx)
	defer stop()

	errs := make(chan error, len(s.listeners))
	for _, l := range s.listeners {
		go func() { errs <- s.accept(accepting, conns, l) }()
	}
	closed := context.AfterFunc(accepting, func() {
		for _, l := range s.listeners {
			l.Close()
		}
	})
	defer closed()

	var err error
	for range s.listeners {
		err = errors.Join(err, <-errs)
		stop() // one listener less is a relay that some clients do not find
	}

	drained := make(chan struct{})
	go func() { s.open.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(s.cfg.DrainTimeout):
		cut()
		<-drained
	}
	return err
}

func (s *Server) accept(ctx, conns context.Context, l net.Listener) error {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if err != nil {
			<-s.slots
			if ctx.Err() != nil {
				return nil //nolint:nilerr // closed by Serve
			}
			if !temporary(err) {
				return fmt.Errorf("accept: %w", err)
			}
			s.log("accept", err)
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		s.open.Add(1)
		go func() {
			defer s.open.Done()
			defer func() { <-s.slots }()
			defer c.Close()
			x := &exchange{s: s, client: c.(conn), in: bufio.NewReader(c)}
			if err := x.run(conns); err != nil {
				s.log("exchange", err)
			}
		}()
	}
}

// temporary accept errors: out of files or memory, or the client was faster (accept(2)).
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) log(what string, err error) {
	if s.logLimit.Allow() {
		s.cfg.Log.Error(what, "error", err.Error())
	}
}

// dial reaches the proxy. A refused connection is tried again: while a replica goes, its
// endpoint may still be there for a moment.
func (s *Server) dial(ctx context.Context) (conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	var d net.Dialer
	for attempt := 0; ; attempt++ {
		c, err := d.DialContext(ctx, "tcp", s.cfg.Proxy.String())
		if err == nil {
			return c.(conn), nil
		}
		if attempt == 2 || !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Health reports whether a relay accepts connections at address.
func Health(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}
