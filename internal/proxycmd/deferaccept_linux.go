package proxycmd

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// deferAccept has the kernel hand out connections when their first bytes have come
// (TCP_DEFER_ACCEPT, tcp(7)): in all protocols here the client speaks first, and a wakeup
// for the bare connection is wasted. After the time a silent connection is handed out too.
func deferAccept(_, _ string, c syscall.RawConn) error {
	var err error
	if ctrlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 3)
	}); ctrlErr != nil {
		return ctrlErr
	}
	return err
}
