// Package sni reads the server name out of the TLS ClientHello at the head of a stream.
// crypto/tls does the parsing, so that split records, fragments and odd extensions are
// read the way a real server reads them; nothing is answered.
package sni

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// MaxHello bounds the bytes read for one ClientHello, record headers included. Hellos with
// post-quantum key shares are about 2 KiB; RFC 8446 would allow 64 KiB and more.
const MaxHello = 16 << 10

var (
	// ErrNotTLS means that the first bytes are not a TLS handshake record.
	ErrNotTLS = errors.New("the first bytes are not a TLS ClientHello")
	// ErrTooLarge means that there was no complete ClientHello within MaxHello.
	ErrTooLarge = fmt.Errorf("the TLS ClientHello is larger than %d bytes", MaxHello)
	// ErrMalformed means a TLS handshake record that does not hold a valid ClientHello.
	ErrMalformed = errors.New("the TLS ClientHello is malformed")
)

// Peek reads from r until it has seen a whole ClientHello and returns its server name, ""
// when it has none. read is everything taken from r, also on an error, for the caller to
// pass on; it is in buf as long as that is large enough. The error is ErrNotTLS,
// ErrTooLarge, ErrMalformed, or what r returned (io.EOF when r ended before the first byte,
// io.ErrUnexpectedEOF when it ended inside).
//
// The name is the outer one when the client uses Encrypted Client Hello.
func Peek(r io.Reader, buf []byte) (name string, read []byte, err error) {
	rec := &recorder{r: r, buf: buf[:0:min(len(buf), MaxHello)]}
	if err := rec.fill(2); err != nil {
		return "", rec.buf, err
	}
	// Record type handshake(22), then the major version that every TLS server insists on
	// (RFC 8446 section 5.1). The minor one varies and is ignored by servers.
	if rec.buf[0] != 0x16 || rec.buf[1] != 0x03 {
		return "", rec.buf, ErrNotTLS
	}
	err = tls.Server(rec, peekConfig).Handshake() //nolint:noctx // a context would cost a goroutine; r has its own deadline
	switch {
	case rec.done:
		return rec.name, rec.buf, nil
	case rec.err != nil:
		return "", rec.buf, rec.err
	}
	return "", rec.buf, fmt.Errorf("%w: %w", ErrMalformed, err)
}

var errSeen = errors.New("seen")

// peekConfig stops the handshake as soon as the ClientHello is parsed.
var peekConfig = &tls.Config{ //nolint:gosec // nothing is negotiated: the version is the origin's to judge
	MinVersion: tls.VersionTLS10,
	GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if rec, ok := h.Conn.(*recorder); ok {
			rec.name, rec.done = h.ServerName, true
		}
		return nil, errSeen
	},
}

// recorder is the net.Conn that crypto/tls reads from. It keeps what it read and swallows
// what crypto/tls would answer.
type recorder struct {
	r    io.Reader
	buf  []byte
	off  int // how much of buf crypto/tls has taken
	name string
	done bool
	err  error
}

// fill reads until buf holds n bytes. A first byte that rules TLS out ends it early: a
// client of another protocol may send one byte and wait.
func (c *recorder) fill(n int) error {
	for len(c.buf) < n {
		if err := c.more(); err != nil {
			return err
		}
		if c.buf[0] != 0x16 {
			return ErrNotTLS
		}
	}
	return nil
}

func (c *recorder) more() error {
	if len(c.buf) >= MaxHello {
		return ErrTooLarge
	}
	if len(c.buf) == cap(c.buf) {
		grown := make([]byte, len(c.buf), min(max(2*cap(c.buf), 2048), MaxHello))
		copy(grown, c.buf)
		c.buf = grown
	}
	n, err := c.r.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	switch {
	case n > 0:
		return nil // an error will come again
	case err == nil:
		return io.ErrNoProgress
	case err == io.EOF && len(c.buf) > 0:
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *recorder) Read(p []byte) (int, error) {
	if c.off == len(c.buf) {
		if err := c.more(); err != nil {
			c.err = err
			return 0, err
		}
	}
	n := copy(p, c.buf[c.off:])
	c.off += n
	return n, nil
}

func (c *recorder) Write(p []byte) (int, error)      { return len(p), nil }
func (c *recorder) Close() error                     { return nil }
func (c *recorder) LocalAddr() net.Addr              { return nil }
func (c *recorder) RemoteAddr() net.Addr             { return nil }
func (c *recorder) SetDeadline(time.Time) error      { return nil }
func (c *recorder) SetReadDeadline(time.Time) error  { return nil }
func (c *recorder) SetWriteDeadline(time.Time) error { return nil }
