package process

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// account is who a process runs as.
type account struct {
	name string
	uid  int
	home string
	cred *syscall.Credential // nil: as this server
}

// resolveUser reads "name", "uid", "name:group" or "uid:gid"; empty is the
// server's own user. The error is a *FieldError.
func resolveUser(s string) (account, error) {
	if s == "" {
		a := account{uid: os.Geteuid(), home: "/"}
		if u, err := user.LookupId(strconv.Itoa(a.uid)); err == nil {
			a.name, a.home = u.Username, u.HomeDir
		}
		return a, nil
	}
	name, group, hasGroup := strings.Cut(s, ":")
	a := account{name: name, home: "/"}
	var uid, gid int
	var groups []uint32
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	switch n, numErr := strconv.ParseUint(name, 10, 31); {
	case err == nil:
		a.name, a.home = u.Username, u.HomeDir
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		groups = supplementary(u)
	case numErr == nil:
		// A uid that /etc/passwd does not know is fine, as in a container's runAsUser.
		uid, gid = int(n), int(n)
	default:
		return account{}, fieldErrorf("user", "%.64q is not in /etc/passwd", name)
	}
	if hasGroup {
		if gid, err = resolveGroup(group); err != nil {
			return account{}, err
		}
		groups = nil
	}
	a.uid = uid
	if uid == os.Geteuid() && gid == os.Getegid() {
		return a, nil
	}
	if os.Geteuid() != 0 {
		return account{}, fieldErrorf("user", "%.64q: the server runs as uid %d and cannot become another user", s, os.Geteuid())
	}
	a.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}
	return a, nil
}

func resolveGroup(s string) (int, error) {
	g, err := user.LookupGroup(s)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		if n, err := strconv.ParseUint(s, 10, 31); err == nil {
			return int(n), nil
		}
	}
	if err != nil {
		return 0, fieldErrorf("user", "group %.64q is not in /etc/group", s)
	}
	return strconv.Atoi(g.Gid)
}

func supplementary(u *user.User) []uint32 {
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}
	var out []uint32
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}
