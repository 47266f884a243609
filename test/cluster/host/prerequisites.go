package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// requirement is something that the host must have and a Debian package that
// brings it.
type requirement struct {
	// paths are the places where it may be; a name without a slash is looked up
	// in the search path.
	paths []string
	pkg   string
}

var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

func requirements() []requirement {
	needed := []requirement{
		{[]string{"runc"}, "runc"},
		{[]string{"iptables"}, "iptables"},
		{[]string{"ip6tables"}, "iptables"},
		{[]string{"ip"}, "iproute2"},
		{[]string{"mount"}, "mount"},
		{[]string{"git"}, "git"},
	}
	for _, plugin := range []string{"ptp", "host-local", "loopback"} {
		var paths []string
		for _, dir := range cniDirs {
			paths = append(paths, filepath.Join(dir, plugin))
		}
		needed = append(needed, requirement{paths, "containernetworking-plugins"})
	}
	return needed
}

func (r requirement) find() (string, bool) {
	for _, path := range r.paths {
		if found, err := LookPath(path); err == nil {
			return found, true
		}
	}
	return "", false
}

// LookPath also looks where root's tools live, which an unprivileged search
// path may leave out.
func LookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// missingPackages returns the Debian packages that would bring what is missing.
func missingPackages(needed []requirement) []string {
	var packages []string
	for _, r := range needed {
		if _, ok := r.find(); !ok {
			packages = append(packages, r.pkg)
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

// Check makes sure that the cluster can run here, installing missing Debian
// packages when mayInstall is set; log is told so.
func Check(ctx context.Context, mayInstall bool, log func(string)) error {
	if os.Geteuid() != 0 {
		return errors.New("the cluster needs root (namespaces, cgroups, mounts): run it as root, e.g. with sudo")
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("this kernel is too old: Linux 5.3 or newer is needed (pidfd_open: %w)", err)
	}
	_ = unix.Close(fd)

	missing := missingPackages(requirements())
	if len(missing) == 0 {
		return nil
	}
	advice := fmt.Errorf("missing Debian packages: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	if !mayInstall {
		return advice
	}
	if _, err := LookPath("apt-get"); err != nil {
		return fmt.Errorf("%w (no apt-get here: install what they contain)", advice)
	}
	log("installing " + strings.Join(missing, " "))
	if err := install(ctx, missing); err != nil {
		return fmt.Errorf("%w (tried it: %w)", advice, err)
	}
	if still := missingPackages(requirements()); len(still) > 0 {
		return fmt.Errorf("installed, but what is needed from %s is still not found", strings.Join(still, " "))
	}
	return nil
}

func install(ctx context.Context, packages []string) error {
	args := append([]string{"install", "-qq", "-y", "--no-install-recommends"}, packages...)
	err := aptGet(ctx, args...)
	if err == nil {
		return nil
	}
	if updateErr := aptGet(ctx, "update", "-qq"); updateErr != nil {
		return errors.Join(err, updateErr)
	}
	return aptGet(ctx, args...)
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lines[len(lines)-1])
	}
	return nil
}

// CNIDir returns the directory with the CNI plugins.
func CNIDir() (string, error) {
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no CNI plugins found: apt-get install containernetworking-plugins")
}
