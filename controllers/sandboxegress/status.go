package sandboxegress

import (
	"context"
	"fmt"
	"net"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	v1alpha1ac "github.com/sandbox-egress/sandbox-egress/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/lastgood"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// Reasons of conditions.
const (
	ReasonReady            = "Ready"
	ReasonInForce          = "InForce"
	ReasonInvalidSpec      = "InvalidSpec"
	ReasonInvalidSelector  = "InvalidSelector"
	ReasonApplyFailed      = "ApplyFailed"
	ReasonKeysMissing      = "SigningKeyMissing"
	ReasonAvailable        = "ReplicaAvailable"
	ReasonUnavailable      = "NoReplicaAvailable"
	ReasonNoAddress        = "NoServiceAddress"
	ReasonForeignPolicy    = "ForeignNetworkPolicy"
	ReasonNoForeignPolicy  = "NoForeignNetworkPolicy"
	ReasonDeleting         = "Deleting"
	ReasonSandboxesRunning = "SandboxesStillRun"
)

// outcome is what a reconciliation found out, as the status tells it.
type outcome struct {
	// enforced: nil when the default-deny policy is in place; else why not, with its reason.
	enforced *problem
	// ready: further reasons not to be ready.
	ready *problem
	// inForce is the spec whose hash is reported; nil when no valid one is known.
	inForce *v1alpha1.SandboxEgressSpec
	// deleting replaces every other reason.
	deleting *problem
}

type problem struct{ reason, message string }

// pods are the pods of the namespace as the policy sees them.
type pods struct {
	counts v1alpha1.SandboxCounts
	// live are the names and labels of matched pods that run or will run.
	live   []string
	labels []map[string]string
	ids    map[string]bool
}

func (r *Reconciler) observePods(ctx context.Context, p *v1alpha1.SandboxEgress) (pods, error) {
	sel, err := match.Selector(p)
	if err != nil {
		return pods{}, nil //nolint:nilerr // reported on the status as InvalidSelector
	}
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.InNamespace(p.Namespace), client.MatchingLabelsSelector{Selector: sel}); err != nil {
		return pods{}, fmt.Errorf("list pods: %w", err)
	}
	out := pods{ids: map[string]bool{}}
	for i := range list.Items {
		pod := &list.Items[i]
		if terminal(pod) {
			continue
		}
		out.live = append(out.live, pod.Name)
		out.labels = append(out.labels, pod.Labels)
		out.counts.Matched++
		id := pod.Annotations[v1alpha1.IDKey]
		if id == "" || pod.Annotations[v1alpha1.InjectedAnnotation] == "" {
			out.counts.Uninjected++
			continue
		}
		out.ids[id] = true
		if podReady(pod) {
			out.counts.Ready++
		}
	}
	return out, nil
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// widening names the NetworkPolicies of others that add egress to a sandbox, or would to
// one that has no labels beyond what the selector asks for.
//
// Ours are told by their names, whose content this operator repairs, and not by labels,
// which anyone can copy.
func (r *Reconciler) widening(ctx context.Context, p *v1alpha1.SandboxEgress, seen pods) ([]string, error) {
	var policies networkingv1.NetworkPolicyList
	if err := r.Client.List(ctx, &policies, client.InNamespace(p.Namespace)); err != nil {
		return nil, fmt.Errorf("list NetworkPolicies: %w", err)
	}
	var all v1alpha1.SandboxEgressList
	if err := r.Client.List(ctx, &all, client.InNamespace(p.Namespace)); err != nil {
		return nil, fmt.Errorf("list SandboxEgress: %w", err)
	}
	ours := map[string]bool{}
	for i := range all.Items {
		ours[v1alpha1.DefaultDenyName(all.Items[i].Name)] = true
		ours[v1alpha1.ProxyName(all.Items[i].Name)] = true
	}
	for id := range seen.ids {
		ours[v1alpha1.IdentityName(id)] = true
	}
	candidates := seen.labels
	if sel, err := match.PodSelector(p); err == nil {
		if example, ok := match.Example(sel); ok {
			candidates = append(candidates[:len(candidates):len(candidates)], example)
		}
	}
	var names []string
	for i := range policies.Items {
		np := &policies.Items[i]
		if !ours[np.Name] && netpol.AddsEgress(np) && netpol.SelectsAny(np, candidates) {
			names = append(names, np.Name)
		}
	}
	return names, nil
}

// writeStatus computes the status from what is live and writes it when it differs.
func (r *Reconciler) writeStatus(ctx context.Context, p *v1alpha1.SandboxEgress, o outcome) error {
	seen, err := r.observePods(ctx, p)
	if err != nil {
		return err
	}
	foreign, err := r.widening(ctx, p, seen)
	if err != nil {
		return err
	}
	key := client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.ProxyName(p.Name)}
	var dep appsv1.Deployment
	if err := r.Client.Get(ctx, key, &dep); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read the proxy's Deployment: %w", err)
	}
	var svc corev1.Service
	if err := r.Client.Get(ctx, key, &svc); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read the proxy's Service: %w", err)
	}

	next := *p.Status.DeepCopy()
	next.ObservedGeneration = p.Generation
	next.Sandboxes = seen.counts
	next.ProxyAddress = proxyAddress(&svc)
	next.PolicyHash = ""
	if o.inForce != nil {
		if next.PolicyHash, err = lastgood.Hash(o.inForce); err != nil {
			return err
		}
	}
	set := func(kind string, ok bool, reason, message string) {
		status := metav1.ConditionFalse
		if ok {
			status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&next.Conditions, metav1.Condition{
			Type: kind, Status: status, Reason: reason, Message: message,
			ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(r.Clock.Now().Truncate(1e9)),
		})
	}
	available := dep.Status.AvailableReplicas > 0 && dep.DeletionTimestamp.IsZero()
	proxy := &problem{ReasonUnavailable, fmt.Sprintf("no proxy replica is available (%d wanted); see the pods of Deployment %s", wanted(&dep), key.Name)}
	if available {
		proxy = nil
		set(v1alpha1.ConditionProxyAvailable, true, ReasonAvailable, fmt.Sprintf("%d of %d proxy replicas are available", dep.Status.AvailableReplicas, wanted(&dep)))
	} else {
		set(v1alpha1.ConditionProxyAvailable, false, proxy.reason, proxy.message)
	}
	if o.enforced == nil {
		set(v1alpha1.ConditionPolicyEnforced, true, ReasonInForce, fmt.Sprintf("generation %d is in force", p.Generation))
	} else {
		set(v1alpha1.ConditionPolicyEnforced, false, o.enforced.reason, o.enforced.message)
	}
	if len(foreign) > 0 {
		set(v1alpha1.ConditionIsolationWidened, true, ReasonForeignPolicy,
			"these NetworkPolicies add egress to sandboxes, past the proxy: "+list(foreign))
	} else {
		set(v1alpha1.ConditionIsolationWidened, false, ReasonNoForeignPolicy, "no other NetworkPolicy adds egress to the sandboxes")
	}
	var noAddress *problem
	if next.ProxyAddress == "" {
		noAddress = &problem{ReasonNoAddress, "the proxy's Service has no ClusterIP yet"}
	}
	if why := first(o.deleting, o.enforced, o.ready, noAddress, proxy); why != nil {
		set(v1alpha1.ConditionReady, false, why.reason, why.message)
	} else {
		set(v1alpha1.ConditionReady, true, ReasonReady, "sandboxes can reach the allowed hosts through the proxy")
	}

	if equality.Semantic.DeepEqual(next, p.Status) {
		return nil
	}
	if err := r.Client.Status().Apply(ctx, statusConfig(p, next), client.FieldOwner(apply.FieldOwner), client.ForceOwnership); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

func first(ps ...*problem) *problem {
	for _, p := range ps {
		if p != nil {
			return p
		}
	}
	return nil
}

func wanted(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 0
	}
	return *d.Spec.Replicas
}

// proxyAddress is what sandboxes are told; an IP, so that they need no DNS for it.
func proxyAddress(svc *corev1.Service) string {
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return ""
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(v1alpha1.ProxyPort)))
}

func statusConfig(p *v1alpha1.SandboxEgress, s v1alpha1.SandboxEgressStatus) *v1alpha1ac.SandboxEgressApplyConfiguration {
	out := v1alpha1ac.SandboxEgressStatus().
		WithObservedGeneration(s.ObservedGeneration).
		WithSandboxes(v1alpha1ac.SandboxCounts().
			WithMatched(s.Sandboxes.Matched).WithReady(s.Sandboxes.Ready).WithUninjected(s.Sandboxes.Uninjected))
	if s.ProxyAddress != "" {
		out.WithProxyAddress(s.ProxyAddress)
	}
	if s.PolicyHash != "" {
		out.WithPolicyHash(s.PolicyHash)
	}
	for _, c := range s.Conditions {
		out.WithConditions(metav1ac.Condition().
			WithType(c.Type).WithStatus(c.Status).WithReason(c.Reason).WithMessage(c.Message).
			WithObservedGeneration(c.ObservedGeneration).WithLastTransitionTime(c.LastTransitionTime))
	}
	// The UID keeps an apply that comes too late from meaning another object of that name.
	return v1alpha1ac.SandboxEgress(p.Name, p.Namespace).WithUID(p.UID).WithStatus(out)
}
