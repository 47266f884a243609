package limit

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// mount is one cgroup hierarchy that this process can see.
type mount struct {
	v2          bool
	controllers []string // v1
	point       string   // where it is mounted
	root        string   // which cgroup of the hierarchy is mounted there
}

// parseMounts reads cgroup mounts from mountinfo, proc_pid_mountinfo(5):
// "id parent major:minor root point options [optional...] - type source super".
func parseMounts(r io.Reader) ([]mount, error) {
	var mounts []mount
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		if !ok {
			continue
		}
		pre, post := strings.Fields(left), strings.Fields(right)
		if len(pre) < 6 || len(post) < 3 {
			continue
		}
		m := mount{root: unescape(pre[3]), point: unescape(pre[4])}
		switch post[0] {
		case "cgroup2":
			m.v2 = true
		case "cgroup":
			m.controllers = strings.Split(post[2], ",")
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts, sc.Err()
}

// unescape undoes the octal escapes that mountinfo uses for blanks.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// parseMembership reads /proc/self/cgroup: controller -> path, "" for v2.
func parseMembership(r io.Reader) (map[string]string, error) {
	paths := map[string]string{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		parts := strings.SplitN(sc.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, c := range strings.Split(parts[1], ",") {
			paths[c] = parts[2]
		}
	}
	return paths, sc.Err()
}

// dir is the directory of cgroup p below mount m. Inside a cgroup namespace both
// are relative to the container's cgroup; without one a container runtime mounts
// that cgroup itself (root), and p starts with it.
func (m mount) dir(p string) string {
	if m.root != "/" {
		if rest, ok := strings.CutPrefix(p, m.root); ok && (rest == "" || rest[0] == '/') {
			p = rest
		}
	}
	return path.Join(m.point, path.Join("/", p))
}

// findDir returns the directory of the cgroup of this process for a v1
// controller, or for v2 when controller is "". parent replaces the own cgroup.
func findDir(controller, parent string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	mounts, err := parseMounts(f)
	if err != nil {
		return "", fmt.Errorf("read /proc/self/mountinfo: %w", err)
	}
	g, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	defer func() { _ = g.Close() }()
	paths, err := parseMembership(g)
	if err != nil {
		return "", fmt.Errorf("read /proc/self/cgroup: %w", err)
	}
	return pickDir(mounts, paths, controller, parent)
}

func pickDir(mounts []mount, paths map[string]string, controller, parent string) (string, error) {
	for _, m := range mounts {
		if m.v2 != (controller == "") {
			continue
		}
		if !m.v2 && !contains(m.controllers, controller) {
			continue
		}
		if parent != "" {
			return path.Join(m.point, path.Join("/", parent)), nil
		}
		p, ok := paths[controller]
		if !ok {
			continue
		}
		return m.dir(p), nil
	}
	if controller == "" {
		return "", fmt.Errorf("no cgroup v2 is mounted: %w", ErrUnavailable)
	}
	return "", fmt.Errorf("no cgroup v1 %s controller is mounted: %w", controller, ErrUnavailable)
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
