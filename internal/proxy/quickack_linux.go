package proxy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// delayHandshakeACK lets the last ACK of the TCP handshake ride on the first data
// (TCP_QUICKACK off, tcp(7)): one packet less per connection. Without data it goes out
// after 200 ms at most, which an origin that speaks first would have to wait for.
func delayHandshakeACK(c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// The connection works without it.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	})
}
