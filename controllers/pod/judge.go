package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// verdict says what a pod is to get.
type verdict struct {
	// revoke is why it gets nothing; empty when it is a sandbox in good standing.
	revoke string
	// policy is in force for it.
	policy *v1alpha1.SandboxEgress
	// hosts are those of the policy, narrow those of the pod's annotation.
	hosts, narrow []string
	narrowed      bool
	id            string
	containerID   string
}

// judge decides whether pod is a sandbox in good standing, and says on the pod why not.
func (r *Reconciler) judge(ctx context.Context, pod *corev1.Pod) (verdict, error) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return verdict{revoke: revokeCompleted}, nil
	}
	var list v1alpha1.SandboxEgressList
	if err := r.Client.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
		return verdict{}, fmt.Errorf("list SandboxEgress: %w", err)
	}
	names := match.Policies(list.Items, pod.Labels)
	if len(names) == 0 {
		return verdict{revoke: revokePolicy}, nil
	}
	id := pod.Annotations[v1alpha1.IDKey]
	named := pod.Annotations[v1alpha1.PolicyKey]
	if id == "" || pod.Annotations[v1alpha1.InjectedAnnotation] == "" {
		r.refuse(pod, EventUninjected, names[0],
			"no egress: the pod matches SandboxEgress %s but did not pass its admission webhook, usually because it is older than the policy; delete and create it again", strings.Join(names, ", "))
		return verdict{revoke: revokePolicy}, nil
	}
	if len(names) > 1 {
		r.notify.warn(pod, EventOverlap, strings.Join(names, ","), "Isolate",
			"SandboxEgress %s all match this pod; it stays under %s; make their selectors disjoint", strings.Join(names, ", "), named)
	}
	at := slices.IndexFunc(list.Items, func(p v1alpha1.SandboxEgress) bool { return p.Name == named })
	if at < 0 || !slices.Contains(names, named) || !list.Items[at].DeletionTimestamp.IsZero() {
		r.refuse(pod, EventPolicyGone, named,
			"no egress: SandboxEgress %q, under which the pod was admitted, is gone, being deleted, or does not match it; delete and create the pod again", named)
		return verdict{revoke: revokePolicy}, nil
	}
	if !injector.ValidID(id) {
		r.refuse(pod, EventInvalidID, id, "no egress: the id %q was not set by the admission webhook; delete and create the pod again", id)
		return verdict{revoke: revokePolicy}, nil
	}
	if pod.Annotations[v1alpha1.QuarantineAnnotation] == "true" {
		r.refuse(pod, EventQuarantined, id, "quarantined: token and network access were taken away; remove the annotation %s to give them back", v1alpha1.QuarantineAnnotation)
		return verdict{revoke: revokeQuarantined}, nil
	}
	r.notify.forget(pod, EventQuarantined, id)
	v := verdict{id: id, containerID: injector.ContainerID(pod)}
	if err := token.ValidateContainerID(v.containerID); err != nil {
		r.refuse(pod, EventInvalidContainerID, v.containerID, "no egress: annotation %s %v", v1alpha1.ContainerIDAnnotation, err)
		return verdict{revoke: revokePolicy}, nil
	}
	if err := r.twins(ctx, pod, v.containerID); err != nil {
		return verdict{}, err
	}
	inForce, err := r.Resolver.Resolve(ctx, &list.Items[at])
	if err != nil {
		return verdict{}, err
	}
	v.policy = inForce.Object
	if inForce.Compiled != nil {
		v.hosts = inForce.Compiled.Matcher.Hosts()
	}
	v.narrow, v.narrowed = narrowing(pod)
	if _, err := allowlist.Compile(allowlist.Spec{AllowedHosts: v.narrow}); err != nil {
		r.notify.warn(pod, EventInvalidAllowedHosts, pod.Annotations[v1alpha1.AllowedHostsAnnotation], "Narrow",
			"no egress: annotation %s: %s", v1alpha1.AllowedHostsAnnotation, reasons(err))
	}
	return v, nil
}

// twins warns about another live pod with the same container id: the proxy refuses both,
// for it cannot tell which of them a token is for.
func (r *Reconciler) twins(ctx context.Context, pod *corev1.Pod, id string) error {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(pod.Namespace), client.MatchingFields{indexContainerID: id}); err != nil {
		return fmt.Errorf("list pods with container id %q: %w", id, err)
	}
	for i := range pods.Items {
		other := &pods.Items[i]
		if other.UID == pod.UID || other.Status.Phase == corev1.PodSucceeded || other.Status.Phase == corev1.PodFailed {
			continue
		}
		r.refuse(pod, EventDuplicateContainerID, other.Name,
			"no egress while pod %s has the same container id %q; give every pod its own in annotation %s", other.Name, id, v1alpha1.ContainerIDAnnotation)
		r.notify.warn(other, EventDuplicateContainerID, pod.Name, "Isolate",
			"no egress while pod %s has the same container id %q; give every pod its own in annotation %s", pod.Name, id, v1alpha1.ContainerIDAnnotation)
	}
	return nil
}

// narrowing splits the pod's own host list. An annotation that is there but empty narrows
// to nothing.
func narrowing(pod *corev1.Pod) (hosts []string, ok bool) {
	text, ok := pod.Annotations[v1alpha1.AllowedHostsAnnotation]
	return match.Hosts(text), ok
}

// allowedHosts is the copy for the allowed_hosts claim: of a narrowed pod only what the
// policy lists in the same words, so that it is never wider than the live decision.
func (v verdict) allowedHosts() []string {
	if !v.narrowed {
		return v.hosts
	}
	return slices.DeleteFunc(slices.Clone(v.narrow), func(h string) bool { return !slices.Contains(v.hosts, h) })
}

// reasons joins what is wrong with a host list without the field paths of a policy, which
// would mislead on a pod.
func reasons(err error) string {
	var fields allowlist.FieldErrors
	if !errors.As(err, &fields) {
		return err.Error()
	}
	out := make([]string, 0, len(fields))
	for _, f := range fields {
		out = append(out, fmt.Sprintf("%q: %s", f.Value, f.Reason))
	}
	return strings.Join(out, "; ")
}
