package process

import (
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultPassEnv are the variables of the server's own environment that children
// get: what the operator injects so that programs find the egress proxy, and the
// locale. Nothing else, so that a secret in the server's environment stays there.
var DefaultPassEnv = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	"GIT_HTTP_PROXY_AUTHMETHOD", "NODE_USE_ENV_PROXY", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY",
	"GLOBAL_AGENT_HTTP_PROXY", "JAVA_TOOL_OPTIONS", "LANG", "LC_ALL", "TZ",
}

// childEnv builds a child's environment, sorted: PATH, HOME and USER of its
// account, the passed variables, TERM with a terminal, and the request's own,
// which win.
func childEnv(pass []string, lookup func(string) (string, bool), a account, tty bool, extra map[string]string) []string {
	env := map[string]string{"PATH": defaultPath, "HOME": a.home}
	if a.name != "" {
		env["USER"], env["LOGNAME"] = a.name, a.name
	}
	if tty {
		env["TERM"] = "xterm-256color"
	}
	for _, name := range pass {
		if v, ok := lookup(name); ok {
			env[name] = v
		}
	}
	for name, v := range extra {
		env[name] = v
	}
	list := make([]string, 0, len(env))
	for name, v := range env {
		list = append(list, name+"="+v)
	}
	sort.Strings(list)
	return list
}

func envValue(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// lookPath finds an executable the way the child would, by the child's PATH and
// working directory. The error is a *FieldError for field.
func lookPath(field, name, dir, pathList string) (string, error) {
	if strings.Contains(name, "/") {
		full := name
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if err := executable(full); err != nil {
			return "", fieldErrorf(field, "%.200q: %v", name, err)
		}
		return full, nil
	}
	for _, d := range filepath.SplitList(pathList) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		if full := filepath.Join(d, name); executable(full) == nil {
			return full, nil
		}
	}
	return "", fieldErrorf(field, "%.200q is not in PATH (%.200s)", name, pathList)
}

var errNotExecutable = errors.New("is not an executable file")

func executable(name string) error {
	st, err := os.Stat(name)
	if err != nil {
		return errors.Unwrap(err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		return errNotExecutable
	}
	return nil
}

func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return fieldErrorf("cwd", "%.200q: %v", dir, errors.Unwrap(err))
	case !st.IsDir():
		return fieldErrorf("cwd", "%.200q is not a directory", dir)
	}
	return nil
}

// hardenSelf keeps sandboxed processes of the same user out of this process: not
// dumpable means no ptrace(2), and /proc/self/{mem,environ,fd} belong to root. No
// core dumps, here and (inherited) in children: they fill the disk.
func hardenSelf() error {
	return errors.Join(
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
	)
}
