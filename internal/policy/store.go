package policy

import (
	"context"
	"sync"
	"sync/atomic"
)

// Source keeps a Store up to date until ctx ends. It calls Store.Swap for the first time
// only when it has seen everything (that is what makes the proxy ready), and keeps the
// last state when it loses its own source.
type Source interface {
	Run(ctx context.Context, store *Store) error
}

// Store holds the State in force. The zero value is ready for use and not Ready; Load on
// it returns a State that allows nothing.
type Store struct {
	cur  atomic.Pointer[State]
	mu   sync.Mutex
	subs map[chan struct{}]struct{}
}

var empty = NewState(Config{PodsKnown: true})

// Load returns the State in force; never nil.
func (s *Store) Load() *State {
	if st := s.cur.Load(); st != nil {
		return st
	}
	return empty
}

// Ready reports whether a first State has arrived.
func (s *Store) Ready() bool { return s.cur.Load() != nil }

// Swap puts st in force and signals every subscriber.
func (s *Store) Swap(st *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur.Store(st)
	for ch := range s.subs {
		select {
		case ch <- struct{}{}:
		default: // one signal is already waiting; the reader will load the newest State
		}
	}
}

// Subscribe returns a channel that carries one coalesced signal after one or more Swaps.
// It is closed when ctx ends.
func (s *Store) Subscribe(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	if s.subs == nil {
		s.subs = make(map[chan struct{}]struct{})
	}
	s.subs[ch] = struct{}{}
	s.mu.Unlock()
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, ch)
		close(ch)
	})
	return ch
}
