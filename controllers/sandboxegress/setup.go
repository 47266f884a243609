package sandboxegress

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// settle is how long events that only change counts and conditions are gathered. 500 pods
// that start at once raise thousands; each would cost a listing of all of them.
const settle = 250 * time.Millisecond

// SetupWithManager registers the controller. keysChanged raises a look at every policy.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, keysChanged <-chan event.GenericEvent) error {
	skipNames := true
	every := handler.EnqueueRequestsFromMapFunc(r.every)
	return ctrl.NewControllerManagedBy(mgr).
		Named("sandboxegress").
		For(&v1alpha1.SandboxEgress{}).
		Owns(&appsv1.Deployment{}).
		Owns(&policyv1.PodDisruptionBudget{}).
		Owns(&corev1.Service{}).
		Owns(&corev1.ServiceAccount{}).
		Owns(&corev1.ConfigMap{}).
		Owns(&rbacv1.Role{}).
		Owns(&rbacv1.RoleBinding{}).
		Owns(&networkingv1.NetworkPolicy{}).
		// The default-deny policy has no owner; its label says whose it is, also to the one
		// that finds it orphaned.
		Watches(&networkingv1.NetworkPolicy{}, handler.EnqueueRequestsFromMapFunc(byLabel)).
		Watches(&networkingv1.NetworkPolicy{}, r.later(r.inNamespace)).
		Watches(&corev1.Pod{}, r.later(r.inNamespace)).
		Watches(&discoveryv1.EndpointSlice{}, every).
		WatchesMetadata(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(r.ofNamespace)).
		WatchesRawSource(source.Channel(keysChanged, every)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 2, SkipNameValidation: &skipNames}).
		Complete(r)
}

func byLabel(_ context.Context, o client.Object) []reconcile.Request {
	if o.GetLabels()[v1alpha1.ComponentLabel] != v1alpha1.ComponentDefaultDeny {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[v1alpha1.PolicyKey]}}}
}

func (r *Reconciler) inNamespace(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, client.InNamespace(o.GetNamespace()))
}

func (r *Reconciler) ofNamespace(ctx context.Context, o client.Object) []reconcile.Request {
	return r.requests(ctx, client.InNamespace(o.GetName()))
}

func (r *Reconciler) every(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.requests(ctx)
}

func (r *Reconciler) requests(ctx context.Context, opts ...client.ListOption) []reconcile.Request {
	var list v1alpha1.SandboxEgressList
	if err := r.Client.List(ctx, &list, opts...); err != nil {
		return nil
	}
	out := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return out
}

// later enqueues what m returns after settle. The queue keeps one entry per object, with
// the earliest time, so a burst of events becomes one reconciliation.
func (r *Reconciler) later(m handler.MapFunc) handler.EventHandler {
	add := func(ctx context.Context, o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		for _, req := range m(ctx, o) {
			q.AddAfter(req, settle)
		}
	}
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc:  func(ctx context.Context, e event.CreateEvent, q queue) { add(ctx, e.Object, q) },
		UpdateFunc:  func(ctx context.Context, e event.UpdateEvent, q queue) { add(ctx, e.ObjectNew, q) },
		DeleteFunc:  func(ctx context.Context, e event.DeleteEvent, q queue) { add(ctx, e.Object, q) },
		GenericFunc: func(ctx context.Context, e event.GenericEvent, q queue) { add(ctx, e.Object, q) },
	}
}
