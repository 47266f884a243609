package platform

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Release is the name of the Helm release.
const Release = "sandbox-egress"

// Chart is the product's chart.
func (p *Platform) Chart() string { return filepath.Join(p.root, "charts/sandbox-egress") }

// Install installs the chart, or upgrades to it, and waits until the operator is ready.
// extra are further arguments, such as --set=replicas=1.
func (p *Platform) Install(ctx context.Context, chart string, extra ...string) error {
	args := append([]string{
		"upgrade", Release, chart, "--install", "--namespace", SystemNamespace, "--create-namespace",
		"--set", "image.repository=" + p.repository(),
		"--set", "image.tag=" + p.tag,
		// Nothing in the cluster can pull: a missing image must fail at once.
		"--set", "image.pullPolicy=Never",
		"--wait", "--timeout", "5m",
	}, extra...)
	_, err := p.Helm(ctx, args...)
	return err
}

// Uninstall removes the release and waits until its objects are gone.
func (p *Platform) Uninstall(ctx context.Context) error {
	_, err := p.Helm(ctx, "uninstall", Release, "--namespace", SystemNamespace, "--wait", "--timeout", "5m")
	return err
}

// Helm runs helm against the cluster and returns its standard output; its messages are in
// the error.
func (p *Platform) Helm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.helm(), args...)
	home := filepath.Join(p.work, "helm")
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+p.Cluster.Kubeconfig(), "NO_PROXY=*", "no_proxy=*",
		// Nothing of the user's own set-up, and nothing left in it.
		"HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home,
	)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.Cluster.Run(cmd); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
