package pod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

const (
	indexOwnerPod    = "egress-owner-pod"
	indexContainerID = "egress-container-id"
)

// SetupWithManager registers the controller. keysChanged raises a look at every sandbox.
func (r *Reconciler) SetupWithManager(ctx context.Context, mgr ctrl.Manager, keysChanged <-chan event.GenericEvent) error {
	r.notify = newNotifier(r.Recorder)
	if err := r.index(ctx, mgr); err != nil {
		return err
	}
	skipNames := true
	owner := handler.EnqueueRequestForOwner(mgr.GetScheme(), mgr.GetRESTMapper(), &corev1.Pod{}, handler.OnlyControllerOwner())
	sandboxes := handler.EnqueueRequestsFromMapFunc(r.sandboxes)
	return ctrl.NewControllerManagedBy(mgr).
		Named("pod").
		For(&corev1.Pod{}).
		// Status changes of the policy mean nothing here.
		Watches(&v1alpha1.SandboxEgress{}, sandboxes, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&networkingv1.NetworkPolicy{}, owner).
		Watches(&networkingv1.NetworkPolicy{}, sandboxes, builder.WithPredicates(component(v1alpha1.ComponentDefaultDeny))).
		WatchesMetadata(&corev1.Secret{}, owner).
		Watches(&corev1.Service{}, sandboxes, builder.WithPredicates(component(v1alpha1.ComponentProxy))).
		WatchesRawSource(source.Channel(keysChanged, handler.EnqueueRequestsFromMapFunc(r.everySandbox))).
		WithOptions(controller.Options{MaxConcurrentReconciles: max(r.Concurrency, 1), SkipNameValidation: &skipNames}).
		Complete(r)
}

func (r *Reconciler) index(ctx context.Context, mgr ctrl.Manager) error {
	byOwner := func(o client.Object) []string {
		if ref := metav1.GetControllerOf(o); ref != nil && ref.APIVersion == "v1" && ref.Kind == "Pod" {
			return []string{ref.Name}
		}
		return nil
	}
	indexer := mgr.GetFieldIndexer()
	if err := indexer.IndexField(ctx, &networkingv1.NetworkPolicy{}, indexOwnerPod, byOwner); err != nil {
		return err
	}
	if err := indexer.IndexField(ctx, secretMetadata(), indexOwnerPod, byOwner); err != nil {
		return err
	}
	return indexer.IndexField(ctx, &corev1.Pod{}, indexContainerID, func(o client.Object) []string {
		if pod, ok := o.(*corev1.Pod); ok && pod.Annotations[v1alpha1.InjectedAnnotation] != "" {
			return []string{injector.ContainerID(pod)}
		}
		return nil
	})
}

func component(value string) predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetLabels()[v1alpha1.ComponentLabel] == value })
}

// sandboxes maps a SandboxEgress, or an object that carries its name in a label, to the
// pods that it selects.
func (r *Reconciler) sandboxes(ctx context.Context, o client.Object) []reconcile.Request {
	p, ok := o.(*v1alpha1.SandboxEgress)
	if !ok {
		p = new(v1alpha1.SandboxEgress)
		key := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[v1alpha1.PolicyKey]}
		if err := r.Client.Get(ctx, key, p); err != nil {
			return nil
		}
	}
	sel, err := match.Selector(p)
	if err != nil {
		return nil
	}
	return r.requests(ctx, client.InNamespace(p.Namespace), client.MatchingLabelsSelector{Selector: sel})
}

func (r *Reconciler) everySandbox(ctx context.Context, _ client.Object) []reconcile.Request {
	var list v1alpha1.SandboxEgressList
	if err := r.Client.List(ctx, &list); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		out = append(out, r.sandboxes(ctx, &list.Items[i])...)
	}
	return out
}

func (r *Reconciler) requests(ctx context.Context, opts ...client.ListOption) []reconcile.Request {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, opts...); err != nil {
		return nil
	}
	out := make([]reconcile.Request, 0, len(pods.Items))
	for i := range pods.Items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&pods.Items[i])})
	}
	return out
}
