package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/host"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
)

// recheck tells the enforcer to check established connections again.
const recheck = unix.SIGHUP

// Up builds what is missing, starts the cluster and returns when its node is
// ready and its DNS answers. If it fails or ctx ends, nothing is left behind.
func Up(ctx context.Context, config Config) (_ *Cluster, err error) {
	config = config.withDefaults()
	if err := host.Check(ctx, !config.NoInstall, config.Log); err != nil {
		return nil, err
	}
	if _, err := Attach(config); err == nil {
		return nil, fmt.Errorf("a cluster is already running below %s: use it, or end it with: go run ./test/cluster down", config.StateDir)
	}
	if config.Root == "" {
		if config.Root, err = build.FindRoot(); err != nil {
			return nil, err
		}
	}
	options := build.Options{Root: config.Root, Cache: config.Cache, Progress: config.Log}
	bin, err := build.Build(ctx, options, "cluster", build.Cluster())
	if err != nil {
		return nil, err
	}

	unlock, err := lock(config)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// What a crash has left.
	if err := clean(ctx, config); err != nil {
		return nil, fmt.Errorf("cleaning up after an earlier cluster: %w", err)
	}
	begin := time.Now()
	c := &Cluster{config: config, bin: bin}
	c.config.Log = func(line string) {
		config.Log(fmt.Sprintf("[%4.0fs] %s", time.Since(begin).Seconds(), line))
	}
	defer func() {
		if err == nil {
			return
		}
		// The cause may be that ctx has ended: clean up regardless.
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, clean(cleanup, config))
	}()
	if err := c.up(ctx); err != nil {
		return nil, err
	}
	c.config.Log("the cluster is up")
	return c, nil
}

// lock is held by whoever starts or stops the cluster. The file stays outside
// of the state directory, which goes.
func lock(config Config) (unlock func(), err error) {
	path := config.StateDir + ".lock"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	busy := fmt.Errorf("another process is starting or stopping the cluster (%s is locked)", path)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, busy
	}
	// Its last holder may have removed the file between our two steps.
	opened, err := f.Stat()
	if err == nil {
		var current os.FileInfo
		if current, err = os.Stat(path); err == nil && os.SameFile(opened, current) {
			return func() {
				_ = os.Remove(path)
				f.Close()
			}, nil
		}
	}
	f.Close()
	return nil, busy
}

func (c *Cluster) up(ctx context.Context) error {
	if err := c.prepare(ctx); err != nil {
		return err
	}
	if err := c.startAll(ctx); err != nil {
		return err
	}
	err := c.retry(ctx, "CoreDNS", func() error {
		out, err := c.Kubectl(ctx, "-n", "kube-system", "get", "deployment", "coredns", "-o", "jsonpath={.status.readyReplicas}")
		if err == nil && string(out) != "1" {
			err = errors.New("no replica is ready")
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.record()
}

// startAll starts the components, each as soon as what it needs is there.
func (c *Cluster) startAll(ctx context.Context) error {
	runtime := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.StartComponent(ctx, Internet) })
	group.Go(func() error {
		defer close(runtime)
		return c.startRuntime(ctx)
	})
	group.Go(func() error {
		if err := c.startAPI(ctx); err != nil {
			return err
		}
		for _, name := range []string{ControllerManager, Scheduler, Enforcer} {
			group.Go(func() error { return c.StartComponent(ctx, name) })
		}
		<-runtime
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.startNode(ctx)
	})
	return group.Wait()
}

// prepare makes everything that is not a component.
func (c *Cluster) prepare(ctx context.Context) error {
	c.config.Log("preparing namespaces, network and credentials")
	for _, dir := range []string{c.config.StateDir, c.config.DataDir} {
		if err := host.Claim(dir, c.config.StateDir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.state("internet"), 0o755); err != nil {
		return err
	}
	if err := host.SaveSysctls(c.state("sysctls.json")); err != nil {
		return err
	}
	if err := host.MakeCgroups(c.config.cgroup()); err != nil {
		return err
	}
	cluster, err := c.hold(clusterHolder, unix.CLONE_NEWNET|unix.CLONE_NEWNS)
	if err != nil {
		return err
	}
	world, err := c.hold(internetHolder, unix.CLONE_NEWNET)
	if err != nil {
		return err
	}
	if err := c.makeNetwork(ctx, cluster, world); err != nil {
		return err
	}
	if err := c.makeMounts(cluster); err != nil {
		return err
	}
	snapshotter, err := c.snapshotter(cluster)
	if err != nil {
		return err
	}
	if c.gitBackend, err = c.makeRepository(ctx); err != nil {
		return err
	}
	if err := c.writeCredentials(); err != nil {
		return err
	}
	return c.writeConfig(snapshotter)
}

// startRuntime starts containerd with the images that the cluster itself needs.
func (c *Cluster) startRuntime(ctx context.Context) error {
	if err := c.StartComponent(ctx, Containerd); err != nil {
		return err
	}
	specs := []image.Spec{
		{
			Ref:        PauseImage,
			Files:      map[string]string{"/pause": filepath.Join(c.bin, build.Pause)},
			Entrypoint: []string{"/pause"},
			User:       "65535:65535",
		},
		{
			Ref:        CoreDNSImage,
			Files:      map[string]string{"/coredns": filepath.Join(c.bin, build.CoreDNS)},
			Entrypoint: []string{"/coredns"},
		},
	}
	for i, spec := range specs {
		archive := c.data(fmt.Sprintf("image-%d.tar", i))
		if err := image.Write(spec, archive); err != nil {
			return err
		}
		if err := c.LoadImage(ctx, archive); err != nil {
			return err
		}
		if err := os.Remove(archive); err != nil {
			return err
		}
	}
	c.config.Log("containerd runs, images are loaded")
	return nil
}

func (c *Cluster) startAPI(ctx context.Context) error {
	for _, name := range []string{Etcd, APIServer} {
		if err := c.StartComponent(ctx, name); err != nil {
			return err
		}
	}
	c.config.Log("the API server answers")
	return c.retry(ctx, "the cluster's own objects", func() error {
		_, err := c.Kubectl(ctx, "apply", "--server-side", "-f", c.state("cluster.yaml"))
		return err
	})
}

func (c *Cluster) startNode(ctx context.Context) error {
	if err := c.StartComponent(ctx, Kubelet); err != nil {
		return err
	}
	err := c.waitNode(ctx, `{.status.addresses[?(@.type=="InternalIP")].address}`, NodeIP)
	if err != nil {
		return err
	}
	// Only now: kube-proxy ends when the addresses of its node change.
	if err := c.StartComponent(ctx, KubeProxy); err != nil {
		return err
	}
	if err := c.waitNode(ctx, `{.status.conditions[?(@.type=="Ready")].status}`, "True"); err != nil {
		return err
	}
	c.config.Log("the node is ready")
	return nil
}

func (c *Cluster) waitNode(ctx context.Context, jsonpath, want string) error {
	return c.retry(ctx, "node "+NodeName, func() error {
		out, err := c.Kubectl(ctx, "get", "node", NodeName, "-o", "jsonpath="+jsonpath)
		if err == nil && string(out) != want {
			err = fmt.Errorf("%s is %q, want %q", jsonpath, out, want)
		}
		return err
	})
}

// retry repeats try until it succeeds, ctx ends or the time is up.
func (c *Cluster) retry(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, fmt.Errorf("not within %v", c.config.Timeout))
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *Cluster) record() error {
	content, err := json.Marshal(saved{DataDir: c.config.DataDir, Bin: c.bin, GitBackend: c.gitBackend})
	if err != nil {
		return err
	}
	tmp := c.state(".up.json")
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.state("up.json"))
}
