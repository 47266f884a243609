package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/namespaces"
)

// kubeletDir is compiled into the kubelet's device manager and into drivers.
const kubeletDir = "/var/lib/kubelet"

// private maps directories to what replaces them, below the data directory:
// the kubelet links every container's log into /var/log, the CNI library keeps
// results in /var/lib/cni.
var private = map[string]string{kubeletDir: "kubelet", "/var/log": "log", "/var/lib/cni": "cni"}

// makeMounts gives the cluster's mount namespace private versions of the
// directories whose names the components have compiled in, so that they leave
// nothing in the host's.
func (c *Cluster) makeMounts(cluster namespaces.Of) error {
	cluster.Mount = true
	for dir := range private {
		if err := c.makeMountPoint(dir); err != nil {
			return err
		}
	}
	return cluster.Do(func() error {
		state, err := unix.Open(c.config.StateDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(state) }()
		if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("private /run: %w", err)
		}
		if err := os.MkdirAll(c.config.StateDir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", state), c.config.StateDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("state directory in the private /run: %w", err)
		}
		for point, source := range private {
			if err := os.MkdirAll(c.data(source), 0o755); err != nil {
				return err
			}
			if err := unix.Mount(c.data(source), point, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("private %s: %w", point, err)
			}
		}
		// The kubelet wants volumes to propagate into containers; what is shared
		// stays inside this namespace.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			return fmt.Errorf("mount propagation: %w", err)
		}
		return nil
	})
}

// makeMountPoint creates a directory of the host that must exist to be mounted
// over, and notes that it was not there, for removeMountPoints.
func (c *Cluster) makeMountPoint(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	note := c.state("mount-points", filepath.Base(dir))
	if err := os.MkdirAll(filepath.Dir(note), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(note, []byte(dir), 0o644); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

func (c *Cluster) removeMountPoints() error {
	notes, err := filepath.Glob(c.state("mount-points", "*"))
	if err != nil {
		return err
	}
	for _, note := range notes {
		dir, err := os.ReadFile(note)
		if err != nil {
			return err
		}
		// Only if it is empty: what somebody else put there is not ours.
		if err := unix.Rmdir(string(dir)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing %s: %w", dir, err)
		}
	}
	return nil
}

// snapshotter returns what containerd can keep its containers' files in:
// overlayfs, or plain copies where an overlay cannot be mounted (for example
// on top of another one).
func (c *Cluster) snapshotter(cluster namespaces.Of) (string, error) {
	probe := c.data("overlay-probe")
	for _, dir := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(probe, dir), 0o755); err != nil {
			return "", err
		}
	}
	defer os.RemoveAll(probe)
	name := "native"
	cluster.Mount = true
	err := cluster.Do(func() error {
		merged := filepath.Join(probe, "merged")
		options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", probe)
		if unsupported := unix.Mount("overlay", merged, "overlay", 0, options); unsupported == nil {
			name = "overlayfs"
			return unix.Unmount(merged, 0)
		}
		return nil
	})
	return name, err
}
