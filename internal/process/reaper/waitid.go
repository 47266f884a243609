package reaper

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The si_code values of SIGCHLD, sigaction(2).
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// childInfo is the SIGCHLD arm of siginfo_t on 64-bit Linux: the union starts at
// offset 16 because it holds pointers elsewhere.
type childInfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
}

// Fails to compile when the arm does not fit into the kernel's structure.
var _ [unsafe.Sizeof(unix.Siginfo{}) - unsafe.Sizeof(childInfo{})]byte

func waitid(idType, id int) (childInfo, bool) {
	const opts = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT | unix.WALL
	for {
		var si unix.Siginfo
		err := unix.Waitid(idType, id, &si, opts, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		ci := *(*childInfo)(unsafe.Pointer(&si)) //nolint:gosec // the size is checked above
		// pid 0: there are children, none of them has ended.
		return ci, err == nil && ci.pid != 0
	}
}

// peek tells whether the child pid has ended, and leaves it a zombie.
func peek(pid int) (Status, bool) {
	ci, ok := waitid(unix.P_PID, pid)
	if !ok {
		return Status{}, false
	}
	switch ci.code {
	case cldExited:
		return Status{Code: int(ci.status)}, true
	case cldKilled, cldDumped:
		return Status{Signal: syscall.Signal(ci.status), Core: ci.code == cldDumped}, true
	}
	return Status{}, false
}

// peekAny returns some child that has ended, and leaves it a zombie.
func peekAny() (int, bool) {
	ci, ok := waitid(unix.P_ALL, 0)
	return int(ci.pid), ok
}

// zombieChildren lists the zombies whose parent is ppid.
func zombieChildren(ppid int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// "pid (comm) state ppid ...": comm may itself hold spaces and brackets.
		end := bytes.LastIndexByte(stat, ')')
		if end < 0 {
			continue
		}
		fields := bytes.Fields(stat[end+1:])
		if len(fields) < 2 || string(fields[0]) != "Z" {
			continue
		}
		if parent, err := strconv.Atoi(string(fields[1])); err == nil && parent == ppid {
			pids = append(pids, pid)
		}
	}
	return pids
}
