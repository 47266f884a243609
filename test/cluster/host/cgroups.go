package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupRoots returns the directory of cgroup name in every hierarchy of the
// host.
func cgroupRoots(name string) ([]string, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts := cgroupMounts(string(mountinfo))
	if len(mounts) == 0 {
		return nil, fmt.Errorf("no cgroups are mounted below %s", cgroupMount)
	}
	roots := make([]string, len(mounts))
	for i, mount := range mounts {
		roots[i] = filepath.Join(mount, name)
	}
	return roots, nil
}

// cgroupMounts returns the v2 hierarchy when it is mounted at the top, else all
// that are mounted below: the v1 ones, which the kubelet then uses, and in the
// hybrid layout a v2 without controllers, in which runc makes cgroups too.
func cgroupMounts(mountinfo string) []string {
	var mounts []string
	for line := range strings.Lines(mountinfo) {
		before, after, found := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		point := fields[4]
		switch {
		case kind[0] == "cgroup2" && point == cgroupMount:
			return []string{point}
		case (kind[0] == "cgroup" || kind[0] == "cgroup2") && filepath.Dir(point) == cgroupMount:
			mounts = append(mounts, point)
		}
	}
	slices.Sort(mounts)
	return slices.Compact(mounts)
}

// MakeCgroups creates the cgroup under which the kubelet keeps its pods.
func MakeCgroups(name string) error {
	roots, err := cgroupRoots(name)
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.Mkdir(root, 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	if filepath.Dir(roots[0]) == cgroupMount {
		return delegate(cgroupMount, roots[0])
	}
	return nil
}

// delegate makes the v2 controllers that the kubelet demands available below
// root.
func delegate(parent, root string) error {
	for _, controller := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
		// Some may not exist here; those that must are checked below.
		_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range []string{"cpuset", "cpu", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(available)), controller) {
			return fmt.Errorf("cgroup v2 controller %q is not available below %s: the kubelet needs it", controller, parent)
		}
	}
	return nil
}

// RemoveCgroups kills what still runs in our cgroups and removes them.
func RemoveCgroups(ctx context.Context, name string) error {
	roots, err := cgroupRoots(name)
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := removeCgroup(ctx, root); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(ctx context.Context, root string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		dirs, ids, err := cgroupTree(root)
		if err != nil {
			return err
		}
		if err := process.Stop(ctx, 0, ids...); err != nil {
			return err
		}
		var busy error
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				busy = fmt.Errorf("removing cgroup %s: %w", dir, err)
			}
		}
		// A process that has ended stays in its cgroup until it is reaped.
		if busy == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return busy
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// cgroupTree returns root and the cgroups below it, parents first, and the
// processes in them.
func cgroupTree(root string) (dirs []string, ids []process.ID, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		dirs = append(dirs, path)
		procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil //nolint:nilerr // removed since it was listed
		}
		for _, field := range strings.Fields(string(procs)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if id, err := process.Find(pid); err == nil {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return dirs, ids, err
}
