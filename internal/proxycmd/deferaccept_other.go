//go:build !linux

package proxycmd

import "syscall"

func deferAccept(_, _ string, _ syscall.RawConn) error { return nil }
