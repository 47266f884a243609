// Package platform brings the test cluster up with Sandbox Egress in it, for the end-to-end
// tests and for the demo: the product's image from its own binaries, the chart by Helm,
// sandboxes, and what they and the test internet saw.
package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
)

// SystemNamespace is where the chart is installed.
const SystemNamespace = "sandbox-egress-system"

// Options of Start.
type Options struct {
	// StateDir and DataDir are those of node.Config; "" means the default cluster.
	StateDir, DataDir string
	// Reuse a cluster that is already up; otherwise it is ended first.
	Reuse bool
	// Log receives progress, one line each; it is called from several goroutines, one at a
	// time.
	Log func(line string)
}

// Platform is a cluster that the product's images are loaded into.
type Platform struct {
	Cluster *node.Cluster
	// Client is the cluster's administrator.
	Client client.Client

	// root is the repository, work a directory for temporary files, tag the image's.
	root, work, tag string
	egressctl       string // the program's path
	config          node.Config
	log             func(string)
}

// Start brings the cluster up and loads the images; Install installs the chart. When it
// fails or ctx ends nothing is left behind.
func Start(ctx context.Context, o Options) (_ *Platform, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed: the cluster makes network namespaces, mounts and containers")
	}
	p := &Platform{log: oneAtATime(o.Log)}
	p.log("starting a single-node cluster without an uplink, and building the images")
	p.config = node.Config{StateDir: o.StateDir, DataDir: o.DataDir, Log: p.log}
	if p.root, err = build.FindRoot(); err != nil {
		return nil, err
	}
	if p.work, err = os.MkdirTemp("", "sandbox-egress-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// The cause may be that ctx has ended: clean up regardless.
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, p.Stop(cleanup))
		}
	}()

	// What a crashed run has left, or a cluster somebody kept that is not to be reused.
	if _, attachErr := node.Attach(p.config); attachErr != nil || !o.Reuse {
		if err := node.Down(ctx, p.config); err != nil {
			return nil, err
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.bringUp(groupCtx) })
	group.Go(func() error { return p.buildHelm(groupCtx) })
	var archive string
	group.Go(func() (err error) {
		archive, err = p.projectImage(groupCtx)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := p.loadImages(ctx, archive); err != nil {
		return nil, err
	}
	return p, p.connect()
}

// oneAtATime serialises calls of log.
func oneAtATime(log func(string)) func(string) {
	if log == nil {
		return func(string) {}
	}
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		log(line)
	}
}

func (p *Platform) bringUp(ctx context.Context) (err error) {
	if p.Cluster, err = node.Attach(p.config); err == nil {
		p.log("using the cluster that is already up")
		return nil
	}
	p.Cluster, err = node.Up(ctx, p.config)
	return err
}

func (p *Platform) connect() error {
	scheme := runtime.NewScheme()
	err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme))
	if err != nil {
		return err
	}
	config, err := p.Cluster.RESTConfig()
	if err != nil {
		return err
	}
	p.Client, err = client.New(config, client.Options{Scheme: scheme})
	return err
}

// Stop ends the cluster and removes everything of it.
func (p *Platform) Stop(ctx context.Context) error {
	return errors.Join(node.Down(ctx, p.config), p.Detach())
}

// Detach removes the temporary files and leaves the cluster up.
func (p *Platform) Detach() error { return os.RemoveAll(p.work) }

// Usage says how to use a cluster that is left up.
func (p *Platform) Usage(ctx context.Context) string {
	use, flag := "go run ./test/cluster kubectl get pods -A", ""
	if dir := p.config.StateDir; dir != "" && dir != node.DefaultStateDir {
		kubectl := p.Cluster.KubectlCommand(ctx, "get", "pods", "-A")
		for _, s := range p.Cluster.Status(ctx) {
			if s.Name == node.APIServer {
				use = fmt.Sprintf("nsenter --net=/proc/%d/ns/net %s --kubeconfig=%s get pods -A", s.PID, kubectl.Path, p.Cluster.Kubeconfig())
			}
		}
		flag = " --state-dir=" + dir
	}
	return fmt.Sprintf("the cluster is left up\n  use it:  %s\n  end it:  go run ./test/cluster down%s", use, flag)
}
