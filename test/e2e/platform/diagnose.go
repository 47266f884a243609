package platform

import (
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// Diagnose writes what is needed to understand a failure: the components, all pods and
// policies, and of the operator's and the given namespaces the Events, the pods that are not
// Ready, and the ends of the operator's and the proxies' logs.
func (p *Platform) Diagnose(ctx context.Context, w io.Writer, namespaces ...string) {
	fmt.Fprintln(w, "=== components")
	for _, s := range p.Cluster.Status(ctx) {
		fmt.Fprintf(w, "%-24s running=%v %s\n", s.Name, s.Running, s.Problem)
	}
	p.dump(ctx, w, "get", "pods", "-A", "-o", "wide")
	p.dump(ctx, w, "get", "sandboxegresses", "-A")
	for _, namespace := range append([]string{SystemNamespace}, namespaces...) {
		p.dump(ctx, w, "-n", namespace, "get", "sandboxegresses", "-o", "jsonpath={range .items[*]}{.metadata.name}{\" \"}{.status}{\"\\n\"}{end}")
		p.dump(ctx, w, "-n", namespace, "get", "networkpolicies,secrets,services,endpointslices")
		p.dump(ctx, w, "-n", namespace, "get", "events", "--sort-by=.lastTimestamp")
		var pods corev1.PodList
		if err := p.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			fmt.Fprintln(w, "listing pods:", err)
			return
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			if PodReady(pod) != nil && pod.Status.Phase != corev1.PodSucceeded {
				p.dump(ctx, w, "-n", namespace, "describe", "pod", pod.Name)
			}
			if namespace == SystemNamespace || pod.Labels[v1alpha1.ComponentLabel] == v1alpha1.ComponentProxy {
				p.dump(ctx, w, "-n", namespace, "logs", pod.Name, "--tail=40")
			}
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
		v1alpha1.ComponentLabel: v1alpha1.ComponentProxy, v1alpha1.PolicyKey: policy,
	})
	return list.Items, err
}
