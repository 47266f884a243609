package limit

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
)

// proc is a row of the process table, proc_pid_stat(5).
type proc struct {
	pid, ppid, session int
	state              byte
	threads            uint64
	start              uint64 // clock ticks after boot: with the pid, an identity
	rss                uint64 // bytes
}

var errStat = errors.New("malformed stat line")

// parseStat reads "pid (comm) state ppid pgrp session ...". comm may hold
// anything, brackets and newlines too, so the fields count from its last ')'.
func parseStat(b []byte, pageSize uint64) (proc, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return proc{}, errStat
	}
	f := strings.Fields(string(b[end+1:]))
	// Field 3 of the manual page is f[0]; the last one read is 24, rss.
	if len(f) < 22 || len(f[0]) != 1 {
		return proc{}, errStat
	}
	p := proc{state: f[0][0]}
	var errs [5]error
	p.pid, errs[0] = strconv.Atoi(strings.TrimSpace(string(b[:open])))
	p.ppid, errs[1] = strconv.Atoi(f[1])
	p.session, errs[2] = strconv.Atoi(f[3])
	p.threads, errs[3] = strconv.ParseUint(f[17], 10, 31)
	p.start, errs[4] = strconv.ParseUint(f[19], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return proc{}, errors.Join(errStat, err)
	}
	// Negative for a moment while counters of threads are summed up.
	if pages, err := strconv.ParseUint(f[21], 10, 63); err == nil {
		p.rss = pages * pageSize
	}
	return p, nil
}

// readTable reads every process that /proc shows.
func readTable() (map[int]proc, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, err
	}
	page := uint64(os.Getpagesize()) //nolint:gosec // positive
	table := make(map[int]proc, len(names))
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // gone in the meantime
		}
		if p, err := parseStat(b, page); err == nil {
			table[p.pid] = p
		}
	}
	return table, nil
}

// proportional returns the proportional set size of a process in bytes: pages
// shared with n others count 1/n.
func proportional(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Pss:" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("smaps_rollup has no Pss line")
}

// environ returns the entries (NAME=value) of one variable in the environment that
// a process was started with; an environment may hold a name more than once.
func environ(pid int, name string) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	var entries []string
	for entry := range bytes.SplitSeq(b, []byte{0}) {
		if bytes.HasPrefix(entry, []byte(name+"=")) {
			entries = append(entries, string(entry))
		}
	}
	return entries
}
