// Package origin is the one web site that the client matrix visits: a page, and just
// enough of a package index for pip, npm, apt, Maven and Go, and a git repository, over
// http and https. It remembers every request.
package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Greeting is in every page and package that a client can fetch.
const Greeting = "greetings from the test origin"

// Seen is one request that arrived.
type Seen struct {
	Host, Method, Path, From string
	TLS                      bool
	// ProxyAuthorization: the request carried the sandbox's credential, which is meant for
	// the proxy alone.
	ProxyAuthorization bool
}

// Server serves the site.
type Server struct {
	// CA is the certificate authority of the https side, PEM.
	CA []byte

	cert    tls.Certificate
	servers []*http.Server

	mu   sync.Mutex
	seen []Seen
}

// New prepares the site for the host names. dir gets its files.
func New(ctx context.Context, dir string, hosts []string) (*Server, http.Handler, error) {
	s := &Server{}
	var err error
	if s.CA, s.cert, err = issue(time.Now(), hosts); err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", page)
	for _, add := range []func(context.Context, *http.ServeMux, string) error{addPip, addNpm, addMaven, addGo, addApt, addGit} {
		if err := add(ctx, mux, dir); err != nil {
			return nil, nil, err
		}
	}
	return s, s.remember(mux), nil
}

// Serve serves h on l until Close; with overTLS, https.
func (s *Server) Serve(l net.Listener, h http.Handler, overTLS bool) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	s.servers = append(s.servers, srv)
	if overTLS {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	go func() { _ = srv.Serve(l) }()
}

// Close ends every server.
func (s *Server) Close() error {
	var errs []error
	for _, srv := range s.servers {
		errs = append(errs, srv.Close())
	}
	return errors.Join(errs...)
}

// Take returns the requests since the last call.
func (s *Server) Take() []Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

func (s *Server) remember(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, Seen{
			Host: r.Host, Method: r.Method, Path: r.URL.Path, From: r.RemoteAddr, TLS: r.TLS != nil,
			ProxyAuthorization: r.Header.Get("Proxy-Authorization") != "",
		})
		s.mu.Unlock()
		next.ServeHTTP(w, r)
	})
}

func page(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, "<!doctype html><title>origin</title><p>"+Greeting+"</p>\n")
}

// base is the origin of the request's own URL, for indexes that hold absolute URLs.
func base(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
