package process

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

// openIO makes the streams of a process: three pipes, or one terminal.
func (p *Process) openIO(attr *syscall.ProcAttr, drain time.Duration, count func(byte, int)) (*childIO, error) {
	if p.spec.tty {
		return p.openTTY(attr, drain, count)
	}
	c := &childIO{}
	fail := func(err error) (*childIO, error) {
		c.closeChild()
		c.closeParent()
		return nil, err
	}
	var stdin *os.File
	if p.spec.open || len(p.spec.stdin) > 0 {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		stdin = r
		c.child, c.parent = append(c.child, r), append(c.parent, w)
		p.in = &input{file: w}
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return fail(err)
		}
		stdin = null
		c.child = append(c.child, null)
	}
	attr.Files = []uintptr{stdin.Fd()}
	for _, ch := range []byte{frame.Stdout, frame.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		c.child, c.parent = append(c.child, w), append(c.parent, r)
		attr.Files = append(attr.Files, w.Fd())
		p.pumps = append(p.pumps, &pump{file: r, channel: ch, out: p.out, grace: drain, count: count})
	}
	return c, nil
}

func (p *Process) openTTY(attr *syscall.ProcAttr, drain time.Duration, count func(byte, int)) (*childIO, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	c := &childIO{child: []*os.File{slave}}
	polled, err := pollable(master)
	if err != nil {
		c.closeChild()
		return nil, err
	}
	c.parent = []*os.File{polled}
	if err := setSize(polled, p.spec.size); err != nil {
		c.closeChild()
		c.closeParent()
		return nil, err
	}
	if cred := p.spec.account.cred; cred != nil {
		// As login(1) does: the terminal belongs to who uses it.
		_ = slave.Chown(int(cred.Uid), -1)
	}
	fd := slave.Fd()
	attr.Files = []uintptr{fd, fd, fd}
	attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	p.pty, p.in = polled, &input{file: polled, tty: true}
	p.pumps = []*pump{{file: polled, channel: frame.Stdout, out: p.out, grace: drain, count: count}}
	return c, nil
}

// pollable replaces f by a non-blocking duplicate. The pty package puts the
// terminal into blocking mode (os.File.Fd), in which deadlines do not work and
// every read occupies a thread.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "ptmx"), nil
}

// setSize sets the terminal's size without leaving non-blocking mode.
func setSize(f *os.File, s Size) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Columns})
	})
	return errors.Join(ctlErr, err)
}
