package egressctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

const (
	// podPoll is how often new proxy pods are looked for, and how long a log that ended is left alone.
	podPoll = 2 * time.Second
	// overlap is how far a reopened log goes back: the kubelet filters by its own time
	// stamps, in whole seconds, which are a little later than the records'.
	overlap = 3 * time.Second
)

// logSource is the proxies of one policy.
type logSource interface {
	// pods returns the names of the proxy pods that have, or had, a running container.
	pods(ctx context.Context) ([]string, error)
	// open reads one pod's log from a time on; the zero time is all of it.
	open(ctx context.Context, pod string, from time.Time, follow bool) (io.ReadCloser, error)
}

// tail merges the logs of all pods of a source.
type tail struct {
	source logSource
	from   time.Time
	follow bool
	now    func() time.Time
	warn   func(error)
	poll   time.Duration
}

type tailed struct {
	line   string
	record audit.Record
}

// run calls show for every record, from one goroutine, until the context ends, show fails,
// or without follow the logs do. Interrupting it is no error. Order is kept per pod.
func (t *tail) run(ctx context.Context, show func(line string, r *audit.Record) error) error {
	if t.poll == 0 {
		t.poll = podPoll
	}
	names, err := t.source.pods(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 && !t.follow {
		return errors.New("no proxy pod found: check POLICY and --namespace")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	records := make(chan tailed)
	done := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(done)
		failed <- t.readAll(ctx, names, records)
	}()
	for {
		select {
		case rec := <-records:
			if err := show(rec.line, &rec.record); err != nil {
				stop()
				<-done
				return fmt.Errorf("write output: %w", err)
			}
		case <-done:
			return <-failed
		}
	}
}

// readAll keeps one reader per pod and returns when all have ended.
func (t *tail) readAll(ctx context.Context, names []string, out chan<- tailed) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if !t.follow {
		return t.readOnce(ctx, names, out)
	}
	if len(names) == 0 {
		t.warn(errors.New("no proxy pod found yet: waiting; check POLICY and --namespace if this lasts"))
	}
	running := map[string]context.CancelFunc{}
	for {
		current := map[string]struct{}{}
		for _, name := range names {
			current[name] = struct{}{}
			if _, ok := running[name]; ok {
				continue
			}
			podCtx, cancel := context.WithCancel(ctx)
			running[name] = cancel
			wg.Go(func() { t.followPod(podCtx, name, out) })
		}
		for name, cancel := range running {
			if _, ok := current[name]; !ok {
				cancel()
				delete(running, name)
			}
		}
		if !sleep(ctx, t.poll) {
			for _, cancel := range running {
				cancel()
			}
			return nil
		}
		fresh, err := t.source.pods(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			t.warn(err)
		default:
			names = fresh
		}
	}
}

// readOnce reads the logs one after the other; the first that cannot be read is the error.
func (t *tail) readOnce(ctx context.Context, names []string, out chan<- tailed) error {
	for _, name := range names {
		if err := t.readLog(ctx, name, t.from, nil, out); err != nil && ctx.Err() == nil {
			return fmt.Errorf("logs of pod %s: %w", name, err)
		}
	}
	return nil
}

// followPod reopens the log whenever it ends: containers restart, API servers close
// long streams.
func (t *tail) followPod(ctx context.Context, name string, out chan<- tailed) {
	seen := &recentLines{at: map[string]time.Time{}}
	from := t.from
	var lastErr string
	for {
		err := t.readLog(ctx, name, from, seen, out)
		if ctx.Err() != nil {
			return
		}
		// A pod that is starting gives the same error every time.
		if err != nil && err.Error() != lastErr {
			lastErr = err.Error()
			t.warn(fmt.Errorf("logs of pod %s: %w", name, err))
		}
		if !seen.last.IsZero() {
			lastErr = ""
			from = seen.last.Add(-overlap)
			if from.Before(t.from) {
				from = t.from
			}
		}
		if !sleep(ctx, t.poll) {
			return
		}
	}
}

func (t *tail) readLog(ctx context.Context, name string, from time.Time, seen *recentLines, out chan<- tailed) error {
	stream, err := t.source.open(ctx, name, from, t.follow)
	if err != nil {
		return err
	}
	defer stream.Close()
	_, err = readRecords(stream, func(line []byte, r audit.Record) {
		if r.Time.Before(from) || ctx.Err() != nil {
			return
		}
		text := string(line)
		if seen != nil && !seen.add(text, r.Time) {
			return
		}
		select {
		case out <- tailed{text, r}:
		case <-ctx.Done():
		}
	})
	return err
}

// recentLines tells what a reopened log repeats. It holds the lines of the last overlap
// only; used by one goroutine.
type recentLines struct {
	at     map[string]time.Time
	last   time.Time
	pruned time.Time
}

func (s *recentLines) add(line string, at time.Time) bool {
	if _, repeated := s.at[line]; repeated {
		return false
	}
	s.at[line] = at
	if at.After(s.last) {
		s.last = at
	}
	if s.last.Sub(s.pruned) > overlap {
		s.pruned = s.last
		for old, t := range s.at {
			if s.last.Sub(t) > 2*overlap {
				delete(s.at, old)
			}
		}
	}
	return true
}

// sleep returns false when the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
