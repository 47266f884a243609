package signingkey

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// maxWait bounds the time between two looks at the Secret, whatever the rotation interval.
const maxWait = time.Hour

// Reconciler syncs the Keeper on every change of the Secret and when a rotation is due.
type Reconciler struct {
	Keeper   *Keeper
	Recorder events.EventRecorder
}

// The signing key Secret lives in the operator's namespace, so these are rules of a Role:
// get to read the key material (the cache holds metadata only), create and update to save
// a new ring. There is no delete: nothing in the operator may remove the only key.
// +kubebuilder:rbac:groups="",namespace=sandbox-egress-system,resources=secrets,verbs=get;create;update

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	next, err := r.Keeper.Sync(ctx)
	if err != nil {
		if errors.Is(err, ErrUnreadable) {
			ref := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.Keeper.Secret.Namespace, Name: r.Keeper.Secret.Name}}
			r.Recorder.Eventf(ref, nil, corev1.EventTypeWarning, "SigningKeyUnreadable", "Load", "%v", err)
		}
		return reconcile.Result{}, err
	}
	wait := next.Sub(r.Keeper.Clock.Now())
	return reconcile.Result{RequeueAfter: min(max(wait, time.Second), maxWait)}, nil
}

// SetupWithManager registers the controller. It also runs once without any event, or a
// cluster without the Secret would never get one.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	first := make(chan event.TypedGenericEvent[types.NamespacedName], 1)
	first <- event.TypedGenericEvent[types.NamespacedName]{Object: r.Keeper.Secret}
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool {
		return client.ObjectKeyFromObject(o) == r.Keeper.Secret
	})
	skipNames := true
	return ctrl.NewControllerManagedBy(mgr).
		Named("signing-key").
		WatchesMetadata(&corev1.Secret{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(ours)).
		WatchesRawSource(source.Channel(first, handler.TypedEnqueueRequestsFromMapFunc(
			func(_ context.Context, key types.NamespacedName) []reconcile.Request {
				return []reconcile.Request{{NamespacedName: key}}
			}))).
		WithOptions(controller.Options{SkipNameValidation: &skipNames}).
		Complete(r)
}
