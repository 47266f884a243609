package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
)

// Names of the components, for StopComponent and StartComponent.
const (
	Etcd              = build.Etcd
	APIServer         = build.KubeAPIServer
	ControllerManager = build.KubeControllerManager
	Scheduler         = build.KubeScheduler
	Kubelet           = build.Kubelet
	KubeProxy         = build.KubeProxy
	Containerd        = build.Containerd
	Enforcer          = build.Enforcer
	Internet          = build.Internet

	// The processes that keep the namespaces alive are not for stopping.
	clusterHolder  = "cluster-namespaces"
	internetHolder = "internet-namespaces"
)

// component is a process of the cluster.
type component struct {
	name string
	args []string
	// internet: runs in the internet's network namespace.
	internet bool
	// ready returns nil once the component serves; nil: nothing to wait for.
	ready func(context.Context) error
}

func (c *Cluster) components() []component {
	pki := func(name string) string { return c.state("pki", name) }
	return []component{
		{
			name: Internet, internet: true,
			args: []string{
				"-ca=" + c.state("internet", "ca"),
				"-log=" + c.state("internet", "requests.jsonl"),
				"-control=" + c.state("internet", "control.sock"),
				"-git-backend=" + c.gitBackend,
				"-git-root=" + c.data("git"),
				"-ready-file=" + c.state("internet", "ready"),
			},
			ready: c.fileExists(c.state("internet", "ready")),
		},
		{
			name: Etcd,
			args: []string{
				"--name=" + NodeName,
				"--data-dir=" + c.data("etcd"),
				"--listen-client-urls=http://127.0.0.1:2379",
				"--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380",
				"--initial-advertise-peer-urls=http://127.0.0.1:2380",
				"--initial-cluster=" + NodeName + "=http://127.0.0.1:2380",
				// What a crash of the machine loses, nobody wants back.
				"--unsafe-no-fsync",
				"--log-level=warn",
			},
			ready: c.answers("http://127.0.0.1:2379/health"),
		},
		{
			name: APIServer,
			args: []string{
				"--advertise-address=" + NodeIP,
				"--bind-address=0.0.0.0",
				"--secure-port=6443",
				"--etcd-servers=http://127.0.0.1:2379",
				"--service-cluster-ip-range=" + ServiceCIDR,
				"--allow-privileged=true",
				"--authorization-mode=Node,RBAC",
				"--enable-admission-plugins=NodeRestriction",
				"--client-ca-file=" + pki("ca.crt"),
				"--tls-cert-file=" + pki("apiserver.crt"),
				"--tls-private-key-file=" + pki("apiserver.key"),
				"--kubelet-certificate-authority=" + pki("ca.crt"),
				"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"),
				"--kubelet-client-key=" + pki("apiserver-kubelet.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + pki("service-account.pub"),
				"--service-account-signing-key-file=" + pki("service-account.key"),
				"--cert-dir=" + c.data("apiserver"),
			},
			ready: c.answers(apiServerURL + "/readyz"),
		},
		{
			name: ControllerManager,
			args: []string{
				"--kubeconfig=" + c.state("kube-controller-manager.kubeconfig"),
				"--authentication-kubeconfig=" + c.state("kube-controller-manager.kubeconfig"),
				"--authorization-kubeconfig=" + c.state("kube-controller-manager.kubeconfig"),
				"--bind-address=127.0.0.1",
				"--leader-elect=false",
				"--use-service-account-credentials=true",
				"--root-ca-file=" + pki("ca.crt"),
				"--service-account-private-key-file=" + pki("service-account.key"),
				"--cluster-signing-cert-file=" + pki("ca.crt"),
				"--cluster-signing-key-file=" + pki("ca.key"),
				"--cluster-cidr=" + PodCIDR,
				"--service-cluster-ip-range=" + ServiceCIDR,
				"--node-monitor-grace-period=30s",
				"--cert-dir=" + c.data("controller-manager"),
			},
			ready: c.answers("https://127.0.0.1:10257/healthz"),
		},
		{
			name: Scheduler,
			args: []string{
				"--kubeconfig=" + c.state("kube-scheduler.kubeconfig"),
				"--authentication-kubeconfig=" + c.state("kube-scheduler.kubeconfig"),
				"--authorization-kubeconfig=" + c.state("kube-scheduler.kubeconfig"),
				"--bind-address=127.0.0.1",
				"--leader-elect=false",
			},
			ready: c.answers("https://127.0.0.1:10259/healthz"),
		},
		{
			name:  Containerd,
			args:  []string{"--config=" + c.state("containerd.toml")},
			ready: c.containerdReady,
		},
		{
			name: Kubelet,
			args: []string{
				"--config=" + c.state("kubelet.yaml"),
				"--kubeconfig=" + c.state("kubelet.kubeconfig"),
				"--hostname-override=" + NodeName,
				"--node-ip=" + NodeIP,
				"--root-dir=" + kubeletDir,
			},
			ready: c.answers("http://127.0.0.1:10248/healthz"),
		},
		{
			name:  KubeProxy,
			args:  []string{"--config=" + c.state("kube-proxy.yaml")},
			ready: c.answers("http://127.0.0.1:10256/livez"),
		},
		{
			name: Enforcer,
			args: []string{
				"-kubeconfig=" + c.state("netpol-enforcer.kubeconfig"),
				"-node=" + NodeName,
				"-queue=" + queueNumber,
				"-ready-file=" + c.state("enforcer-ready"),
			},
			ready: c.fileExists(c.state("enforcer-ready")),
		},
	}
}

func (c *Cluster) component(name string) (component, error) {
	var names []string
	for _, component := range c.components() {
		if component.name == name {
			return component, nil
		}
		names = append(names, component.name)
	}
	return component{}, fmt.Errorf("no component %q; there are %s", name, strings.Join(names, ", "))
}

// readyFiles are deleted before a start, so that they tell of this start.
func (c *Cluster) readyFile(name string) string {
	switch name {
	case Internet:
		return c.state("internet", "ready")
	case Enforcer:
		return c.state("enforcer-ready")
	}
	return ""
}

func (c *Cluster) fileExists(path string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(path)
		return err
	}
}

// answers asks for a 200 over the cluster's network namespace.
func (c *Cluster) answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		transport := &http.Transport{
			DialContext: c.Dial, DisableKeepAlives: true,
			// Several serve certificates that they signed themselves; what is asked
			// here is whether they answer at all.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
		}
		if strings.HasPrefix(url, apiServerURL) {
			ca, err := os.ReadFile(c.state("pki", "ca.crt"))
			if err != nil {
				return err
			}
			client, err := tls.LoadX509KeyPair(c.state("pki", "apiserver-kubelet.crt"), c.state("pki", "apiserver-kubelet.key"))
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca)
			transport.TLSClientConfig = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{client}}
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
			return fmt.Errorf("%s: %s: %s", url, response.Status, strings.TrimSpace(string(body)))
		}
		return nil
	}
}

func (c *Cluster) containerdReady(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.state("containerd.sock"))
	if err != nil {
		return err
	}
	conn.Close()
	_, err = c.ctr(ctx, "version")
	return err
}

// waitReady polls until the component serves, or has ended.
func (c *Cluster) waitReady(ctx context.Context, component component) error {
	if component.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, fmt.Errorf("not ready within %v", c.config.Timeout))
	defer cancel()
	for {
		err := component.ready(ctx)
		if err == nil {
			return nil
		}
		if !c.Running(component.name) {
			return fmt.Errorf("%s ended at once: %w", component.name, c.logTail(component.name))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w: %w", component.name, context.Cause(ctx), err, c.logTail(component.name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// logTail is the end of a component's log as an error text.
func (c *Cluster) logTail(name string) error {
	content, err := os.ReadFile(c.LogPath(name))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return errors.New("last of " + c.LogPath(name) + ":\n" + strings.Join(lines, "\n"))
}
