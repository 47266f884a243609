package kube

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// health says whether the API server can be reached.
type health struct {
	mu    sync.Mutex
	err   error
	since time.Time
}

func (h *health) lost(err error) {
	// An expired resource version is answered by a new list and means nothing.
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.since = time.Now()
	}
	h.err = err
}

func (h *health) get() (error, time.Time) { //nolint:revive // the error is data here
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err, h.since
}

func (h *health) found() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = nil
}

// Degraded returns why the API server cannot be reached, or nil. The last state stays in
// force: what changed since is not known.
func (s *Source) Degraded() error {
	err, _ := s.health.get()
	return err
}

// watchHealth says when the API server is lost and when it is back. A watch that works
// again says nothing, hence the question.
func (s *Source) watchHealth(ctx context.Context, c client.Client) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	said := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err, since := s.health.get()
		if err == nil {
			continue
		}
		if !said {
			s.log.Warn("degraded: the API server cannot be watched; the last policy, pods and keys stay in force", "error", err)
			said = true
		}
		try, cancel := context.WithTimeout(ctx, probeEvery)
		err = c.Get(try, client.ObjectKey{Namespace: s.opt.Namespace, Name: s.opt.Policy}, new(v1alpha1.SandboxEgress))
		cancel()
		if err == nil || apierrors.IsNotFound(err) {
			s.health.found()
			s.log.Info("the API server is back", "after", time.Since(since).Round(time.Second).String())
			said = false
		}
	}
}
