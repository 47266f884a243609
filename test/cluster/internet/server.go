package internet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
)

// Config of a Server.
type Config struct {
	// Authority signs the certificates of HTTPS.
	Authority *pki.Authority
	// Log receives an event for everything that arrives.
	Log *Log
	// Zone is what the DNS servers answer from.
	Zone *Zone
	// GitBackend is the path of git-http-backend; GitRoot the directory of
	// repositories.
	GitBackend, GitRoot string
	// Control is the path of the unix socket of the control interface.
	Control string
	// Hosts and Resolvers are the addresses to listen on.
	Hosts, Resolvers []string
	// PortOffset is added to every port, so that a test needs no privilege.
	PortOffset int
}

var (
	httpPorts  = []int{80, 8080}
	httpsPorts = []int{443, 8443}
	tcpPorts   = []int{7, 22, 5432}
	udpPorts   = []int{7, 443}
)

func (c Config) address(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port+c.PortOffset))
}

// Serve runs all servers until ctx ends. ready is called once everything
// listens.
func Serve(ctx context.Context, c Config, ready func() error) error {
	s := &servers{config: c, certificates: map[string]*tls.Certificate{}}
	defer s.closeAll()
	if err := s.listen(ctx); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range s.run {
		group.Go(func() error {
			// Closing it at the end makes it return an error, which is none.
			if err := run(); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		s.closeAll()
		return nil
	})
	return group.Wait()
}

type servers struct {
	config Config
	run    []func() error

	mu           sync.Mutex
	closers      []io.Closer
	certificates map[string]*tls.Certificate
}

func (s *servers) closeAll() {
	s.mu.Lock()
	closers := s.closers
	s.closers = nil
	s.mu.Unlock()
	for _, c := range closers {
		_ = c.Close()
	}
}

func (s *servers) closeLater(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, c)
}

func (s *servers) listen(ctx context.Context) error {
	site := Handler(s.config.Log, s.config.GitBackend, s.config.GitRoot)
	for _, host := range s.config.Hosts {
		for _, port := range httpPorts {
			if err := s.serveHTTP(ctx, s.config.address(host, port), site, nil); err != nil {
				return err
			}
		}
		for _, port := range httpsPorts {
			if err := s.serveHTTP(ctx, s.config.address(host, port), site, s.certificate); err != nil {
				return err
			}
		}
		for _, port := range tcpPorts {
			if err := s.serveTCP(ctx, s.config.address(host, port)); err != nil {
				return err
			}
		}
		for _, port := range udpPorts {
			if err := s.serveUDP(ctx, s.config.address(host, port)); err != nil {
				return err
			}
		}
	}
	for _, host := range s.config.Resolvers {
		if err := s.serveDNS(ctx, s.config.address(host, 53)); err != nil {
			return err
		}
	}
	return s.serveControl(ctx)
}

func (s *servers) tcpListener(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	s.closeLater(l)
	return loggedListener{Listener: l, log: s.config.Log}, nil
}

// loggedListener logs connections as they are accepted.
type loggedListener struct {
	net.Listener
	log *Log
}

func (l loggedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	err = l.log.Add(Event{Kind: KindConnect, Server: conn.LocalAddr().String(), Client: conn.RemoteAddr().String()})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

type getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

func (s *servers) serveHTTP(ctx context.Context, address string, site http.Handler, certificate getCertificate) error {
	l, err := s.tcpListener(ctx, address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: site, ReadHeaderTimeout: 30 * time.Second}
	s.closeLater(server)
	if certificate == nil {
		s.run = append(s.run, func() error { return server.Serve(l) })
		return nil
	}
	server.TLSConfig = &tls.Config{GetCertificate: certificate, MinVersion: tls.VersionTLS12}
	s.run = append(s.run, func() error { return server.ServeTLS(l, "", "") })
	return nil
}

// certificate issues one for the name that the client asks for, or for the
// address it dialled.
func (s *servers) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	request := pki.Request{CommonName: name, DNSNames: []string{name}}
	if name == "" {
		host, _, err := net.SplitHostPort(hello.Conn.LocalAddr().String())
		if err != nil {
			return nil, err
		}
		name = host
		request = pki.Request{CommonName: name, IPs: []net.IP{net.ParseIP(host)}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.certificates[name]; c != nil {
		return c, nil
	}
	pair, err := s.config.Authority.Issue(request)
	if err != nil {
		return nil, err
	}
	c, err := pair.TLS()
	if err != nil {
		return nil, err
	}
	s.certificates[name] = &c
	return &c, nil
}

func (s *servers) serveTCP(ctx context.Context, address string) error {
	l, err := s.tcpListener(ctx, address)
	if err != nil {
		return err
	}
	s.run = append(s.run, func() error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			go s.echo(conn)
		}
	})
	return nil
}

func (s *servers) echo(conn net.Conn) {
	s.closeLater(conn)
	defer conn.Close()
	n, _ := io.Copy(conn, conn)
	_ = s.config.Log.Add(Event{
		Kind: KindTCP, Server: conn.LocalAddr().String(), Client: conn.RemoteAddr().String(), Bytes: n,
	})
}

func (s *servers) serveUDP(ctx context.Context, address string) error {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	if err != nil {
		return err
	}
	s.closeLater(conn)
	s.run = append(s.run, func() error {
		buffer := make([]byte, 64<<10)
		for {
			n, peer, err := conn.ReadFrom(buffer)
			if err != nil {
				return err
			}
			err = s.config.Log.Add(Event{Kind: KindUDP, Server: address, Client: peer.String(), Bytes: int64(n)})
			if err != nil {
				return err
			}
			_, _ = conn.WriteTo(buffer[:n], peer)
		}
	})
	return nil
}

func (s *servers) serveDNS(ctx context.Context, address string) error {
	handler := dnsHandler{zone: s.config.Zone, log: s.config.Log}
	packets, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	if err != nil {
		return err
	}
	s.closeLater(packets)
	l, err := s.tcpListener(ctx, address)
	if err != nil {
		return err
	}
	udp := &dns.Server{PacketConn: packets, Handler: handler}
	tcp := &dns.Server{Listener: l, Handler: handler}
	s.run = append(s.run, udp.ActivateAndServe, tcp.ActivateAndServe)
	return nil
}

func (s *servers) serveControl(ctx context.Context) error {
	if err := os.Remove(s.config.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.config.Control)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := &http.Server{Handler: controlHandler(s.config.Zone), ReadHeaderTimeout: 10 * time.Second}
	s.closeLater(server)
	s.run = append(s.run, func() error { return server.Serve(l) })
	return nil
}
