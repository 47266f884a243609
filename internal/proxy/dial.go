package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// DialFunc connects to addr after check has allowed it. Implementations call check on the
// address that they really connect to, as late as possible; dialGuarded does so in
// net.Dialer.Control, after the kernel's address is known and before the first packet.
type DialFunc func(ctx context.Context, addr netip.AddrPort, check Control) (net.Conn, error)

// Control judges an address and prepares the socket for it. c is nil when there is no
// socket of the kernel's.
type Control func(addr netip.AddrPort, c syscall.RawConn) error

// dialGuarded is the DialFunc of production.
func dialGuarded(ctx context.Context, addr netip.AddrPort, check Control) (net.Conn, error) {
	d := net.Dialer{
		// The sweeper turns keep-alive on for connections that have become idle: four
		// system calls that most connections are too short to need.
		KeepAlive: -1,
		ControlContext: func(_ context.Context, _, address string, c syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return check(to, c)
		},
	}
	return d.DialContext(ctx, "tcp", addr.String())
}

// errLoop is what a check returns for the proxy's own listeners.
var errLoop = errors.New("the destination is this proxy itself")

// origin is a connection to where a request goes, or to the upstream proxy on the way.
type origin struct {
	*stream
	addr netip.Addr
}

// connect resolves, checks and dials the destination of an authorized request. clientFirst:
// the protocol has the client speak first.
func (s *Server) connect(ctx context.Context, p *policy.Policy, to hostname.Authority, clientFirst bool) (*origin, *refusal) {
	ctx, cancel := context.WithTimeout(ctx, s.opt.DialTimeout)
	defer cancel()
	if p.Upstream == nil {
		return s.connectDirect(ctx, p.Guard.Check, to, clientFirst)
	}
	// The name goes to the upstream unresolved; an address can be checked here all the same.
	if to.Host.IsIP() {
		if err := p.Guard.Check(to.Host.Addr()); err != nil {
			return nil, addressRefusal(err)
		}
	}
	return s.connectUpstream(ctx, p.Guard, p.Upstream, to)
}

func (s *Server) connectDirect(ctx context.Context, allowed func(netip.Addr) error, to hostname.Authority, clientFirst bool) (*origin, *refusal) {
	var one [1]netip.Addr
	addrs := one[:]
	if to.Host.IsIP() {
		one[0] = to.Host.Addr()
	} else {
		var refused *refusal
		if addrs, refused = s.dns.lookup(ctx, to.Host.Name()); refused != nil {
			return nil, refused
		}
	}
	// One forbidden address refuses the whole answer: honest hosts do not mix, and picking
	// the good ones would let an attacker probe which they are.
	for _, a := range addrs {
		if err := allowed(a); err != nil {
			return nil, addressRefusal(err)
		}
	}
	check := func(ap netip.AddrPort, c syscall.RawConn) error {
		if s.isOwn(ap) {
			return errLoop
		}
		if err := allowed(ap.Addr()); err != nil || !clientFirst || c == nil {
			return err
		}
		return delayHandshakeACK(c)
	}
	start := s.opt.Now()
	c, err := s.dialAny(ctx, addrs, to.Port, check)
	if err != nil {
		return nil, dialRefusal(to, err)
	}
	s.metrics.dialSeconds.Observe(s.opt.Now().Sub(start).Seconds())
	return &origin{stream: newStream(c.Conn), addr: c.addr}, nil
}

func addressRefusal(err error) *refusal {
	r := forbidden(ReasonAddressNotAllowed, err.Error())
	r.remedy = "To allow a private range, list it in spec.privateNetworks; loopback, link-local and metadata addresses stay closed."
	return r
}

func dialRefusal(to hostname.Authority, err error) *refusal {
	var denied *ipguard.DeniedError
	switch {
	case errors.As(err, &denied):
		return addressRefusal(denied)
	case errors.Is(err, errLoop):
		return forbidden(ReasonLoop, errLoop.Error())
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EADDRNOTAVAIL):
		return failure(503, ReasonOverloaded, "the proxy has no socket left; try again")
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return failure(504, ReasonConnectTimeout, "the connection to "+to.String()+" timed out")
	}
	return failure(502, ReasonConnectFailed, "the connection to "+to.String()+" failed: "+plainError(err))
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// plainError names the cause without addresses of this side.
func plainError(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return "no route or no answer"
}

type dialled struct {
	net.Conn
	addr netip.Addr
}

// attemptDelay is the Connection Attempt Delay of RFC 8305 section 5.
const attemptDelay = 250 * time.Millisecond

// maxAttempts bounds the addresses of one name that are tried.
const maxAttempts = 8

// dialAny tries the addresses in the manner of RFC 8305: families take turns, each attempt
// starts when the one before has failed or not answered in time, the first connection wins.
func (s *Server) dialAny(ctx context.Context, addrs []netip.Addr, port uint16, check Control) (dialled, error) {
	if len(addrs) == 1 {
		c, err := s.opt.Dial(ctx, netip.AddrPortFrom(addrs[0], port), check)
		return dialled{c, addrs[0]}, err
	}
	addrs = interleave(addrs)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		dialled
		err error
	}
	results := make(chan result, len(addrs))
	next, pending := 0, 0
	start := func() {
		a := addrs[next]
		next++
		pending++
		go func() {
			c, err := s.opt.Dial(ctx, netip.AddrPortFrom(a, port), check)
			results <- result{dialled{c, a}, err}
		}()
	}
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	start()
	var first error
	for {
		select {
		case r := <-results:
			pending--
			if r.err == nil {
				cancel()
				go func(n int) { // connections that came second
					for range n {
						if late := <-results; late.err == nil {
							_ = late.Close()
						}
					}
				}(pending)
				return r.dialled, nil
			}
			if first == nil {
				first = r.err
			}
			switch {
			case next < len(addrs):
				start()
				timer.Reset(attemptDelay)
			case pending == 0:
				return dialled{}, first
			}
		case <-timer.C:
			if next < len(addrs) {
				start()
				timer.Reset(attemptDelay)
			}
		}
	}
}

// interleave lets the families take turns, the first answer's family first.
func interleave(addrs []netip.Addr) []netip.Addr {
	var a, b []netip.Addr
	for _, x := range addrs {
		if x.Is4() == addrs[0].Is4() {
			a = append(a, x)
		} else {
			b = append(b, x)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := 0; len(out) < min(len(addrs), maxAttempts); i++ {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out[:min(len(out), maxAttempts)]
}

// isOwn reports whether ap is one of this proxy's listeners, seen from this host.
func (s *Server) isOwn(ap netip.AddrPort) bool {
	own := s.own.Load()
	if own == nil {
		return false
	}
	if _, ok := own.exact[ap]; ok {
		return true
	}
	_, port := own.ports[ap.Port()]
	_, addr := own.addrs[ap.Addr()]
	return port && (addr || ap.Addr().IsLoopback())
}

type ownAddrs struct {
	exact map[netip.AddrPort]struct{}
	ports map[uint16]struct{}
	addrs map[netip.Addr]struct{}
}

// learnOwn puts the addresses of this host's interfaces and of the listeners together.
func learnOwn(listeners []net.Addr, extra []netip.AddrPort) *ownAddrs {
	o := &ownAddrs{exact: map[netip.AddrPort]struct{}{}, ports: map[uint16]struct{}{}, addrs: map[netip.Addr]struct{}{}}
	for _, ap := range extra {
		o.exact[ap] = struct{}{}
	}
	for _, l := range listeners {
		ap, err := netip.ParseAddrPort(l.String())
		if err != nil {
			continue
		}
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		o.exact[ap] = struct{}{}
		if ap.Addr().IsUnspecified() {
			o.ports[ap.Port()] = struct{}{}
		}
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return o // the guard still refuses loopback; exact listeners are known
	}
	for _, i := range interfaces {
		text, _, _ := strings.Cut(i.String(), "/")
		if a, err := netip.ParseAddr(text); err == nil {
			o.addrs[a.Unmap().WithZone("")] = struct{}{}
		}
	}
	return o
}
