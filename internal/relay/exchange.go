package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// answerTimeout bounds writing one of the relay's own answers.
	answerTimeout = 5 * time.Second
	// lingerTimeout lets a client that still sends read its answer before the reset.
	lingerTimeout = time.Second
	// maxReplayBytes of a body are kept for the one retry after a 407.
	maxReplayBytes = 64 << 10
)

// conn is a TCP connection. The dynamic type stays *net.TCPConn, whose copies use splice(2).
type conn interface {
	net.Conn
	CloseWrite() error
}

// exchange is one client connection: one request, and what follows from it.
type exchange struct {
	s      *Server
	client conn
	in     *bufio.Reader // on client
	req    *request
	sent   replay
}

// run reads the request, asks the proxy, retries once when a newer token than the refused
// one is there, and copies the answer.
func (x *exchange) run(ctx context.Context) error {
	x.client.SetReadDeadline(time.Now().Add(x.s.cfg.HeadTimeout))
	head, err := readHead(x.in)
	if err == nil {
		x.req, err = parseRequest(head)
	}
	switch {
	case errors.Is(err, errBadRequest):
		return x.answer(failure{400, "malformed_request", err.Error()})
	case errors.Is(err, errHeadTooLarge):
		return x.answer(failure{431, "header_too_large", err.Error()})
	case err != nil:
		return nil //nolint:nilerr // closed, or silent for too long: there is nobody to answer
	}
	x.client.SetReadDeadline(time.Time{})

	refused := ""
	for {
		token, err := x.s.token.read()
		if err != nil {
			return x.fail(failure{503, "token_unavailable", "the relay cannot read its token; the operator has not issued it yet, or the sandbox was quarantined"}, err)
		}
		up, err := x.s.dial(ctx)
		if err != nil {
			return x.fail(failure{502, "proxy_unreachable", fmt.Sprintf("the egress proxy %s does not answer; see the status of the SandboxEgress", x.s.cfg.Proxy)}, err)
		}
		again, err := x.try(ctx, up, token, refused == "")
		up.Close()
		if !again {
			return err
		}
		refused = token
	}
}

// try sends the request once. again means: the proxy answered 407, a newer token is in
// the file by now, and nothing has reached the client yet.
func (x *exchange) try(ctx context.Context, up conn, token string, mayRetry bool) (again bool, err error) {
	stop := context.AfterFunc(ctx, func() { up.Close(); x.client.Close() })
	defer stop()

	if _, err := up.Write(x.req.render(basic(x.s.cfg.ContainerID, token))); err != nil {
		return false, x.fail(failure{502, "proxy_unreachable", "the egress proxy closed the connection"}, err)
	}
	sending := x.send(up)
	defer sending.stop()

	out := bufio.NewReader(up)
	for {
		head, status, err := readStatus(out)
		if err != nil {
			sending.stop()
			if sending.gone() {
				return false, nil
			}
			return false, x.fail(failure{502, "proxy_unreachable", "the egress proxy closed the connection without an answer"}, err)
		}
		switch {
		case status == 407 && mayRetry:
			if fresh, err := x.s.token.read(); err == nil && fresh != token {
				sending.stop()
				if !x.sent.lost && !sending.gone() {
					return true, nil
				}
			}
		case status < 200 && status != 101:
			if _, err := x.client.Write(head); err != nil {
				return false, nil
			}
			continue
		}
		// With a body on its way the sender is the client's direction already.
		tunnel := !x.req.body && (status == 101 || x.req.method == "CONNECT" && status < 300)
		if tunnel {
			sending.stop()
		}
		if _, err := x.client.Write(head); err != nil {
			return false, nil
		}
		if tunnel {
			x.splice(up, out)
			return false, nil
		}
		_ = copyRest(x.client, up, out) // whoever fails, the connection ends here
		sending.stop()
		x.linger()
		return false, nil
	}
}

func readStatus(r *bufio.Reader) ([]byte, int, error) {
	head, err := readHead(r)
	if err != nil {
		return nil, 0, err
	}
	status, err := parseStatus(head)
	return head, status, err
}

// splice copies both ways until both sides are done; an end of stream is passed on as
// such (half-close), an error ends both. Bytes that came early with either head go first.
func (x *exchange) splice(up conn, out *bufio.Reader) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		finish(up, x.client, copyRest(up, x.client, x.in))
	}()
	finish(x.client, up, copyRest(x.client, up, out))
	<-done
}

// copyRest copies what is buffered and then the rest of src. From one TCP connection to
// another the kernel moves the bytes (splice(2)).
func copyRest(dst, src conn, buffered *bufio.Reader) error {
	if n := buffered.Buffered(); n > 0 {
		if _, err := io.CopyN(dst, buffered, int64(n)); err != nil {
			return err
		}
	}
	_, err := io.Copy(dst, src)
	return err
}

func finish(dst, src conn, err error) {
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}

// answer sends one of the relay's own answers.
func (x *exchange) answer(f failure) error {
	if f.writeTo(x.client) == nil {
		x.linger()
	}
	return nil
}

func (x *exchange) fail(f failure, cause error) error {
	_ = x.answer(f)
	return fmt.Errorf("%s: %w", f.reason, cause)
}

// linger ends the answer and reads on for a moment: closing with unread input resets the
// connection, and the reset can overtake the answer.
func (x *exchange) linger() {
	if x.client.CloseWrite() != nil {
		return
	}
	x.client.SetReadDeadline(time.Now().Add(lingerTimeout))
	_, _ = io.Copy(io.Discard, x.client)
}
