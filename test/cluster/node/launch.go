package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/namespaces"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
)

// launch starts a component in its namespaces and records it.
func (c *Cluster) launch(component component) error {
	if file := c.readyFile(component.name); file != "" {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	holder := clusterHolder
	if component.internet {
		holder = internetHolder
	}
	ns, err := c.namespaces(holder)
	if err != nil {
		return err
	}
	ns.Mount = !component.internet
	cmd := exec.Command(filepath.Join(c.bin, component.name), component.args...)
	return c.start(component.name, cmd, ns.Do)
}

// hold starts the process that keeps new namespaces alive.
func (c *Cluster) hold(name string, flags uintptr) (namespaces.Of, error) {
	cmd := exec.Command(filepath.Join(c.bin, build.Pause))
	// Unshareflags, unlike Cloneflags, also cuts mount propagation to the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
	if err := c.start(name, cmd, func(fn func() error) error { return fn() }); err != nil {
		return namespaces.Of{}, fmt.Errorf("new namespaces (CAP_SYS_ADMIN is needed): %w", err)
	}
	return c.namespaces(name)
}

// start starts cmd through do, detached from our session, and records it.
func (c *Cluster) start(name string, cmd *exec.Cmd, do func(func() error) error) error {
	for _, dir := range []string{c.state("logs"), c.state("processes")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(c.LogPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	// Nothing of the caller's environment: a proxy variable would redirect the
	// components, a KUBECONFIG confuse them.
	cmd.Env = []string{
		marker + "=" + c.config.StateDir,
		"PATH=" + c.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LC_ALL=C.UTF-8",
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := do(cmd.Start); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	id, err := process.Find(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // reaps it, should it end while we live
	if err != nil {
		return fmt.Errorf("%s ended at once: %w", name, c.logTail(name))
	}
	content, err := json.Marshal(id)
	if err != nil {
		return err
	}
	tmp := c.state("processes", "."+name)
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.state("processes", name+".json"))
}
