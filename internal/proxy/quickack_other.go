//go:build !linux

package proxy

import "syscall"

// delayHandshakeACK does nothing where there is no TCP_QUICKACK.
func delayHandshakeACK(syscall.RawConn) error { return nil }
