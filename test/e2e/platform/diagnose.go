package platform

import (
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Diagnose writes what is needed to understand a failure: the components, pods, policies,
// Events, descriptions of pods that are not Ready, and the ends of the operator's and the
// proxies' logs.
func (p *Platform) Diagnose(ctx context.Context, w io.Writer) {
	fmt.Fprintln(w, "=== components")
	for _, s := range p.Cluster.Status(ctx) {
		fmt.Fprintf(w, "%-24s running=%v %s\n", s.Name, s.Running, s.Problem)
	}
	p.dump(ctx, w, "get", "pods", "-A", "-o", "wide")
	p.dump(ctx, w, "get", "sandboxegresses", "-A", "-o", "yaml")
	p.dump(ctx, w, "get", "networkpolicies,secrets", "-A")
	p.dump(ctx, w, "get", "events", "-A", "--sort-by=.lastTimestamp")
	var pods corev1.PodList
	if err := p.Client.List(ctx, &pods); err != nil {
		fmt.Fprintln(w, "listing pods:", err)
		return
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if PodReady(pod) != nil && pod.Status.Phase != corev1.PodSucceeded {
			p.dump(ctx, w, "-n", pod.Namespace, "describe", "pod", pod.Name)
		}
		if pod.Namespace == SystemNamespace || pod.Labels["egress.sandbox.dev/component"] == "proxy" {
			p.dump(ctx, w, "-n", pod.Namespace, "logs", pod.Name, "--all-containers", "--prefix=false", "--tail=60")
		}
	}
}

func (p *Platform) dump(ctx context.Context, w io.Writer, args ...string) {
	fmt.Fprintln(w, "=== kubectl", args)
	out, err := p.Cluster.Kubectl(ctx, args...)
	_, _ = w.Write(out)
	if err != nil {
		fmt.Fprintln(w, err)
	}
}

// ProxyPods returns the proxy's pods of a policy.
func (p *Platform) ProxyPods(ctx context.Context, namespace, policy string) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := p.Client.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{
		"egress.sandbox.dev/component": "proxy", "egress.sandbox.dev/policy": policy,
	})
	return list.Items, err
}
