package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/namespaces"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
)

// Cluster is a running cluster.
type Cluster struct {
	config Config
	// bin is the directory with the components' binaries.
	bin        string
	gitBackend string
}

// saved is what Attach needs to know of Up; its file appears when Up is done.
type saved struct {
	DataDir    string `json:"dataDir"`
	Bin        string `json:"bin"`
	GitBackend string `json:"gitBackend"`
}

// ErrNotRunning is returned by Attach when there is no running cluster.
var ErrNotRunning = errors.New("no cluster is running")

// Attach returns the running cluster of config.StateDir.
func Attach(config Config) (*Cluster, error) {
	config = config.withDefaults()
	c := &Cluster{config: config}
	content, err := os.ReadFile(c.state("up.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w below %s: start one with: go run ./test/cluster up", ErrNotRunning, config.StateDir)
	}
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", c.state("up.json"), err)
	}
	c.config.DataDir, c.bin, c.gitBackend = s.DataDir, s.Bin, s.GitBackend
	if !c.Running(clusterHolder) || !c.Running(internetHolder) {
		return nil, fmt.Errorf("%w: the one below %s has crashed, clean up with: go run ./test/cluster down", ErrNotRunning, config.StateDir)
	}
	return c, nil
}

// Kubeconfig is the path of the administrator's kubeconfig. Its server can
// only be reached from inside the cluster's network namespace.
func (c *Cluster) Kubeconfig() string { return c.state("kubeconfig") }

// LogPath is the log of a component.
func (c *Cluster) LogPath(component string) string { return c.state("logs", component+".log") }

// RESTConfig returns the administrator's client configuration, which dials
// from inside the cluster's network namespace.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Dial = c.Dial
	config.QPS, config.Burst = 200, 400
	return config, nil
}

// Dial connects from the node: to the API server, to pods and Services. The
// address is IP:port.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	ns, err := c.namespaces(clusterHolder)
	if err != nil {
		return nil, err
	}
	return ns.Dial(ctx, network, address)
}

// Start starts cmd on the node's network, without waiting for it.
func (c *Cluster) Start(cmd *exec.Cmd) error {
	ns, err := c.namespaces(clusterHolder)
	if err != nil {
		return err
	}
	ns.Mount = false
	return ns.Do(cmd.Start)
}

// Run runs cmd on the node's network: the host's files, the cluster's
// connections.
func (c *Cluster) Run(cmd *exec.Cmd) error {
	if err := c.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// KubectlCommand returns a kubectl of the cluster's version with its
// kubeconfig, for Run or Start.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, build.Kubectl), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "NO_PROXY=*", "no_proxy=*")
	return cmd
}

// Kubectl runs kubectl and returns its standard output; standard error is in
// the error.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return c.KubectlStdin(ctx, nil, args...)
}

// KubectlStdin is Kubectl with an input, e.g. for apply -f -.
func (c *Cluster) KubectlStdin(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := c.KubectlCommand(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	if err := c.Run(cmd); err != nil {
		return stdout.Bytes(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// LoadImage imports an image archive (see package image) into the node.
func (c *Cluster) LoadImage(ctx context.Context, archive string) error {
	_, err := c.ctr(ctx, "--namespace=k8s.io", "images", "import", archive)
	if err != nil {
		return fmt.Errorf("image %s: %w", filepath.Base(archive), err)
	}
	return nil
}

func (c *Cluster) ctr(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, build.Ctr), append([]string{"--address=" + c.state("containerd.sock")}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("ctr: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return out, nil
}

// Internet returns the handle of the test internet.
func (c *Cluster) Internet() *internet.Client {
	return &internet.Client{
		LogPath: c.state("internet", "requests.jsonl"),
		Control: c.state("internet", "control.sock"),
		CAPath:  c.state("internet", "ca.crt"),
	}
}

// StopComponent ends a component and waits until it is gone: SIGTERM and after
// grace SIGKILL; SIGKILL at once when grace is 0, as a crash does.
func (c *Cluster) StopComponent(ctx context.Context, name string, grace time.Duration) error {
	if _, err := c.component(name); err != nil {
		return err
	}
	id, err := c.process(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := process.Stop(ctx, grace, id); err != nil {
		return fmt.Errorf("stopping %s: %w", name, err)
	}
	return nil
}

// StartComponent starts a component that is not running and waits until it
// serves.
func (c *Cluster) StartComponent(ctx context.Context, name string) error {
	component, err := c.component(name)
	if err != nil {
		return err
	}
	if c.Running(name) {
		return nil
	}
	if err := c.launch(component); err != nil {
		return err
	}
	return c.waitReady(ctx, component)
}

// RestartComponent stops and starts a component.
func (c *Cluster) RestartComponent(ctx context.Context, name string) error {
	if err := c.StopComponent(ctx, name, 10*time.Second); err != nil {
		return err
	}
	return c.StartComponent(ctx, name)
}

// Running says whether the component's process is alive.
func (c *Cluster) Running(name string) bool {
	id, err := c.process(name)
	return err == nil && id.Alive()
}

// ComponentStatus is one line of Status.
type ComponentStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	// Problem says why a running component does not serve; "" when it does.
	Problem string `json:"problem,omitempty"`
}

// Status returns the state of every component.
func (c *Cluster) Status(ctx context.Context) []ComponentStatus {
	var all []ComponentStatus
	for _, component := range c.components() {
		id, _ := c.process(component.name)
		status := ComponentStatus{Name: component.name, PID: id.PID, Running: c.Running(component.name)}
		if status.Running && component.ready != nil {
			if err := component.ready(ctx); err != nil {
				status.Problem = err.Error()
			}
		}
		all = append(all, status)
	}
	return all
}

func (c *Cluster) namespaces(holder string) (namespaces.Of, error) {
	id, err := c.process(holder)
	if err != nil || !id.Alive() {
		return namespaces.Of{}, fmt.Errorf("%w below %s", ErrNotRunning, c.config.StateDir)
	}
	return namespaces.Of{PID: id.PID, Net: true}, nil
}

func (c *Cluster) process(name string) (process.ID, error) {
	content, err := os.ReadFile(c.state("processes", name+".json"))
	if err != nil {
		return process.ID{}, err
	}
	var id process.ID
	if err := json.Unmarshal(content, &id); err != nil {
		return process.ID{}, fmt.Errorf("process record of %s: %w", name, err)
	}
	return id, nil
}
