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
	home := filepath.Join(p.work, "helm")
	cmd := exec.CommandContext(ctx, p.helm(), args...)
	// Nothing of the user's own set-up, and nothing left in it.
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	return p.run(cmd)
}

// Egressctl runs the product's egressctl against the cluster with stdin, and returns its
// standard output; its messages are in the error.
func (p *Platform) Egressctl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.egressctl, args...)
	cmd.Env = os.Environ()
	cmd.Stdin = strings.NewReader(stdin)
	return p.run(cmd)
}

// Suggest asks egressctl for the patch of the manifest that allows what the records say was
// denied.
func (p *Platform) Suggest(ctx context.Context, manifest []byte, records string) (string, error) {
	file := filepath.Join(p.work, "policy.yaml")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		return "", err
	}
	return p.Egressctl(ctx, records, "suggest", "-f", file)
}

func (p *Platform) run(cmd *exec.Cmd) (string, error) {
	cmd.Env = append(cmd.Env, "KUBECONFIG="+p.Cluster.Kubeconfig(), "NO_PROXY=*", "no_proxy=*")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.Cluster.Run(cmd); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
