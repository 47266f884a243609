package peer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
)

// What the ends say to each other. A tunnel begins with a real ClientHello, which the
// origin answers with as many bytes as a server's first flight usually has; a command may
// follow.
const (
	flightSize = 1200
	// streamCommand asks for bytes without end.
	streamCommand = 'D'
	// bodySize is the body of a plain response.
	bodySize = 1024
)

var errCaptured = errors.New("captured")

// capture keeps what is written first.
type capture struct {
	net.Conn
	written []byte
}

func (c *capture) Write(b []byte) (int, error) {
	c.written = append(c.written, b...)
	return 0, errCaptured
}

func (c *capture) Read([]byte) (int, error) { return 0, io.EOF }

func (c *capture) Close() error { return nil }

// clientHello returns the first bytes of a TLS handshake with host.
func clientHello(host string) ([]byte, error) {
	var c capture
	err := tls.Client(&c, &tls.Config{ServerName: host}).Handshake()
	if len(c.written) == 0 {
		return nil, err
	}
	return c.written, nil
}

func plainResponse() []byte {
	return []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(bodySize) + "\r\n\r\n" + strings.Repeat("x", bodySize))
}
