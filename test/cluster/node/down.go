package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/host"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
)

// Down ends the cluster and removes everything of it, also what a crash has
// left. It is no error if there is none.
func Down(ctx context.Context, config Config) error {
	config = config.withDefaults()
	if os.Geteuid() != 0 {
		return errors.New("ending the cluster needs root")
	}
	unlock, err := lock(config)
	if err != nil {
		return err
	}
	defer unlock()
	return clean(ctx, config)
}

// clean removes processes, cgroups and directories, in the order in which one
// could bring the other back. It goes on after an error, to leave little.
func clean(ctx context.Context, config Config) error {
	c := &Cluster{config: config}
	if content, err := os.ReadFile(c.state("up.json")); err == nil {
		var s saved
		if err := json.Unmarshal(content, &s); err == nil {
			c.config.DataDir = s.DataDir
		}
	}
	// No longer up from here on, even if this is interrupted.
	err := os.Remove(c.state("up.json"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err,
		c.killAll(ctx),
		c.removeOwnCgroups(ctx),
		host.RestoreSysctls(c.state("sysctls.json")),
		c.removeMountPoints(),
		host.Discard(c.config.DataDir, c.config.StateDir),
		host.Discard(c.config.StateDir, c.config.StateDir),
	)
}

// killAll ends every process that carries our mark, and repeats until there is
// none, since one may have started another meanwhile. The components go at
// once: what they would write down in an orderly end is deleted anyway.
func (c *Cluster) killAll(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		ids, err := process.WithEnv(marker + "=" + c.config.StateDir)
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := process.Stop(ctx, 0, ids...); err != nil {
			return fmt.Errorf("ending the cluster's processes: %w", err)
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("the cluster's processes keep coming back: %v", ids)
		}
	}
}

// removeOwnCgroups ends the containers. Only a cluster that was claimed has
// any; on a host without ours there is nothing to look for.
func (c *Cluster) removeOwnCgroups(ctx context.Context) error {
	if !host.Owned(c.config.StateDir, c.config.StateDir) {
		return nil
	}
	return host.RemoveCgroups(ctx, c.config.cgroup())
}
