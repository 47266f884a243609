package proxy

import (
	"context"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// watch puts new keys in force and checks the live flows whenever the state changes.
func (s *Server) watch(ctx context.Context, changed <-chan struct{}) {
	for {
		st := s.store.Load()
		s.auth.SetKeys(st.Keys())
		now := s.opt.Now()
		s.flows.each(func(f *flow) { f.revoke(st, now) })
		select {
		case _, open := <-changed:
			if !open {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// keepAliveAfter is when a silent flow gets TCP keep-alive.
const keepAliveAfter = time.Minute

// sweep ends flows that are idle or have outlived their token, and forgets what is over.
// Activity is seen by comparing byte counts, so that the copy loops need no clock.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(s.opt.SweepInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := s.opt.Now()
		s.flows.each(func(f *flow) { f.sweep(now) })
		if n%16 == 0 {
			s.quotas.forget(now)
			s.identities.forget(now)
			if s.firstUse != nil {
				s.firstUse.forget(now)
			}
		}
	}
}

func (f *flow) sweep(now time.Time) {
	if f.expired(now) {
		f.cut(ReasonTokenExpired, "the token has expired", audit.Deny)
		return
	}
	if n := f.sent.Load() + f.received.Load(); n != f.seen || f.busy.Load() {
		f.seen, f.seenAt = n, now
		return
	}
	idle := now.Sub(f.seenAt)
	if idle > f.srv.opt.IdleTimeout {
		f.cut(ReasonIdle, "", audit.Allow)
		return
	}
	if idle > keepAliveAfter && !f.keepAlive {
		f.keepAlive = true
		f.turnKeepAliveOn()
	}
}

func (f *flow) turnKeepAliveOn() {
	f.mu.Lock()
	ends := f.ends
	f.mu.Unlock()
	for _, s := range ends {
		if s == nil {
			continue
		}
		if c, ok := tcpOf(s.Conn); ok {
			_ = c.SetKeepAlive(true)
			_ = c.SetKeepAlivePeriod(30 * time.Second)
		}
	}
}
