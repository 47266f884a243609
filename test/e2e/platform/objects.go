package platform

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
)

// documentation are the ranges of RFC 5737 that the test internet uses. A proxy dials no
// special-purpose address unless its policy says so.
func documentation() []v1alpha1.CIDR { return []v1alpha1.CIDR{"198.51.100.0/24", "203.0.113.0/24"} }

// Policy returns a SandboxEgress that allows the hosts, for the test internet and a small
// machine. Change it before it is created.
func Policy(namespace, name string, hosts ...v1alpha1.HostPattern) *v1alpha1.SandboxEgress {
	return &v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.SandboxEgressSpec{
			PodSelector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}},
			AllowedHosts:    hosts,
			PrivateNetworks: documentation(),
			Proxy: v1alpha1.ProxySpec{
				Replicas: ptr.To[int32](1),
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
				},
			},
		},
	}
}

// Pod returns a pod of the sandbox image that does nothing; app is its label.
func Pod(namespace, name, app string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			// sleep as PID 1 does not heed SIGTERM.
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			Containers: []corev1.Container{{
				Name:            "main",
				Image:           image.SandboxRef,
				ImagePullPolicy: corev1.PullNever,
				Command:         []string{"sleep", "infinity"},
			}},
		},
	}
}

// Sandbox is a Pod with the label that policies select by default.
func Sandbox(namespace, name string) *corev1.Pod { return Pod(namespace, name, "sandbox") }

// PolicyReady says whether the policy is Ready for its current generation, or why not.
func PolicyReady(p *v1alpha1.SandboxEgress) error {
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Status != metav1.ConditionTrue || p.Status.ObservedGeneration != p.Generation {
		return fmt.Errorf("SandboxEgress %s/%s is not Ready: generation %d, observed %d, %+v", p.Namespace, p.Name, p.Generation, p.Status.ObservedGeneration, p.Status.Conditions)
	}
	return nil
}

// PodReady says whether the pod is Ready, or why not.
func PodReady(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod %s/%s is not Ready: %s, init %+v, containers %+v", pod.Namespace, pod.Name, pod.Status.Phase, pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
}

// webhookPatience is what kube-proxy gets to learn of webhook pods that have become ready
// or gone; until then connections to their Service are refused.
const webhookPatience = 30 * time.Second

// Create creates the object. Where admission cannot be asked yet, it tries again.
func (p *Platform) Create(ctx context.Context, object client.Object) error {
	for deadline := time.Now().Add(webhookPatience); ; {
		err := p.Client.Create(ctx, object)
		if err == nil || !strings.Contains(err.Error(), "failed calling webhook") || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// WaitReady waits until the policy or the pod is Ready.
func (p *Platform) WaitReady(ctx context.Context, object client.Object, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("waited %s", timeout))
	defer cancel()
	for {
		err := p.Client.Get(ctx, client.ObjectKeyFromObject(object), object)
		if err == nil {
			switch o := object.(type) {
			case *v1alpha1.SandboxEgress:
				err = PolicyReady(o)
			case *corev1.Pod:
				err = PodReady(o)
			default:
				return fmt.Errorf("cannot wait for a %T", object)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// NodeTargets are addresses that no sandbox may reach directly, by what they are; each
// answers a pod that no policy isolates.
func NodeTargets() map[string]string {
	return map[string]string{
		"allowed site by address": "tcp:198.51.100.10:80",
		"denied site by address":  "tcp:203.0.113.10:443",
		"node":                    "tcp:" + node.NodeIP + ":10250",
		"API server Service":      "tcp:" + node.APIServerIP + ":443",
		"API server":              "tcp:" + node.NodeIP + ":6443",
		"cloud metadata":          "tcp:169.254.169.254:80",
		"UDP":                     "udp:198.51.100.10:7",
		"QUIC port":               "udp:198.51.100.10:443",
		"another DNS server":      "dns:203.0.113.53:evil-site.example",
		"another DNS server, TCP": "dnstcp:203.0.113.53:evil-site.example",
	}
}
