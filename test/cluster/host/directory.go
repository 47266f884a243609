// Package host checks what a test cluster needs of the machine that it runs on,
// and puts back or removes what it changes there.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ownerFile marks a directory as a cluster's, and holds that cluster's state
// directory; nothing else is ever deleted.
const ownerFile = ".sandbox-egress-cluster"

// Claim creates dir for the cluster of stateDir, or takes it over when it is
// empty or was that cluster's already.
func Claim(dir, stateDir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.Count(dir, "/") < 2 {
		return fmt.Errorf("directory %q must be a clean absolute path below a top-level directory", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 && !Owned(dir, stateDir) {
		return fmt.Errorf("%s is not empty and does not belong to the cluster of %s: choose another directory or remove it", dir, stateDir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), []byte(stateDir), 0o644)
}

// Owned says whether dir belongs to the cluster of stateDir.
func Owned(dir, stateDir string) bool {
	owner, err := os.ReadFile(filepath.Join(dir, ownerFile))
	return err == nil && string(owner) == stateDir
}

// Discard unmounts what is mounted below dir and deletes it, if it
// belongs to the cluster of stateDir.
func Discard(dir, stateDir string) error {
	if !Owned(dir, stateDir) {
		return nil
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	// The mark goes last, so that an interrupted deletion can be resumed.
	for _, entry := range entries {
		if entry.Name() == ownerFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

func unmountBelow(dir string) error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points := mountsBelow(string(mountinfo), dir)
	// The latest mount may hide earlier ones.
	slices.Reverse(points)
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return nil
}

// mountsBelow returns the mount points at or below dir, in the order of
// proc_pid_mountinfo(5), whose fifth field has blanks as octal escapes.
func mountsBelow(mountinfo, dir string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points
}
