package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// health says whether the API server answers the lists and watches of the cache. It looks
// at the transport: client-go retries a refused connection without telling anyone.
type health struct {
	log *slog.Logger

	mu     sync.Mutex
	failed map[string]error // by path: one per watched resource
	since  time.Time
}

// wrap observes the requests that go through next.
func (h *health) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		switch {
		case err != nil && (req.Context().Err() != nil || errors.Is(err, context.Canceled)):
			// The proxy ends; nothing is wrong with the API server.
		case err != nil:
			h.lost(req.URL.Path, err)
		case res.StatusCode >= http.StatusBadRequest && res.StatusCode != http.StatusGone:
			// Gone is how an old resource version is answered; a new list follows.
			h.lost(req.URL.Path, fmt.Errorf("%s answered %s", req.URL.Path, res.Status))
		default:
			h.found(req.URL.Path)
		}
		return res, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (h *health) lost(path string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) == 0 {
		h.failed, h.since = map[string]error{}, time.Now()
		h.log.Warn("degraded: the API server cannot be watched; the last policy, pods and keys stay in force", "error", err)
	}
	h.failed[path] = err
}

func (h *health) found(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.failed[path]; !ok {
		return
	}
	if delete(h.failed, path); len(h.failed) == 0 {
		h.log.Info("the API server is watched again", "after", time.Since(h.since).Round(time.Millisecond).String())
	}
}

func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range h.failed {
		return err
	}
	return nil
}

// Degraded returns why the API server cannot be watched, or nil. The last state stays in
// force meanwhile: what has changed since is not known.
func (s *Source) Degraded() error { return s.health.err() }
