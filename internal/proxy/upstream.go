package proxy

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// upstreamNetworks are open to the upstream proxy, which usually stands in the company's
// own network. Whoever writes the policy names it, so loopback, link-local and metadata
// addresses stay closed.
func upstreamGuard() (*ipguard.Guard, error) {
	return ipguard.New([]netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("fc00::/7"),
	})
}

// upstreamCheck opens the usual private networks besides what the policy opens.
func (s *Server) upstreamCheck(guard *ipguard.Guard) func(netip.Addr) error {
	return func(a netip.Addr) error {
		if guard.Check(a) == nil {
			return nil
		}
		return s.upstreamGuard.Check(a)
	}
}

const maxUpstreamHead = 16 << 10

// connectUpstream asks the upstream proxy for a tunnel to the destination.
func (s *Server) connectUpstream(ctx context.Context, guard *ipguard.Guard, up *policy.Upstream, to hostname.Authority) (*origin, *refusal) {
	o, refused := s.connectDirect(ctx, s.upstreamCheck(guard), up.Authority, true)
	if refused != nil {
		// The sandbox asked for something else; what failed is on the way. The refusal may
		// be shared with the DNS cache, hence the copy.
		r := failure(max(refused.status, 502), refused.reason, "the upstream proxy could not be reached: "+refused.detail)
		if r.reason != ReasonConnectTimeout && r.reason != ReasonDNSTimeout && r.reason != ReasonOverloaded {
			r.reason = ReasonUpstreamFailed
		}
		return nil, r
	}
	if err := s.negotiate(ctx, o, to); err != nil {
		_ = o.Close()
		return nil, err
	}
	return o, nil
}

func (s *Server) negotiate(ctx context.Context, o *origin, to hostname.Authority) *refusal {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(s.opt.DialTimeout)
	}
	_ = o.SetDeadline(deadline)
	req := "CONNECT " + to.String() + " HTTP/1.1\r\nHost: " + to.String() + "\r\n"
	if c := s.upstreamAuth.Load(); c != nil {
		req += "Proxy-Authorization: Basic " + *c + "\r\n"
	}
	if _, err := io.WriteString(o, req+"\r\n"); err != nil {
		return upstreamError(err)
	}
	for {
		h, err := readHead(o.stream, maxUpstreamHead, nil)
		if err != nil {
			return upstreamError(err)
		}
		res, refused := parseResponseHead(h)
		switch {
		case refused != nil:
			return failure(502, ReasonUpstreamFailed, "the upstream proxy's answer is not valid HTTP")
		case res >= 100 && res < 200:
			continue
		case res == 407:
			return failure(502, ReasonUpstreamRefused, "the upstream proxy does not accept this proxy's credentials")
		case res < 200 || res > 299:
			return failure(502, ReasonUpstreamRefused, fmt.Sprintf("the upstream proxy answered %d to CONNECT %s", res, to))
		}
		_ = o.SetDeadline(time.Time{})
		return nil
	}
}

// parseResponseHead returns the status code alone: a CONNECT answer has no body to frame.
func parseResponseHead(h head) (int, *refusal) {
	_, rest, _ := strings.Cut(h.start, " ")
	code, _, _ := strings.Cut(rest, " ")
	n, ok := parseLength(code)
	if !ok || len(code) != 3 || !strings.HasPrefix(h.start, "HTTP/1.") {
		return 0, failure(502, ReasonUpstreamFailed, "bad status line")
	}
	return int(n), nil
}

func upstreamError(err error) *refusal {
	if isTimeout(err) {
		return failure(504, ReasonConnectTimeout, "the upstream proxy did not answer in time")
	}
	return failure(502, ReasonUpstreamFailed, "the upstream proxy closed the connection")
}

// SetUpstreamCredentials puts user name and password for the upstream proxy in force; empty
// ones send none.
func (s *Server) SetUpstreamCredentials(user, password string) error {
	if user == "" && password == "" {
		s.upstreamAuth.Store(nil)
		return nil
	}
	if strings.ContainsAny(user, ":\r\n\x00") || strings.ContainsAny(password, "\r\n\x00") {
		return errors.New("upstream user name or password contains a character that Basic authentication cannot carry (RFC 7617 section 2)")
	}
	c := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	s.upstreamAuth.Store(&c)
	return nil
}
