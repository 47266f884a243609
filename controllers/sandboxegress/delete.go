package sandboxegress

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// lookAgain is how often a blocked deletion is looked at without an event.
const lookAgain = 15 * time.Second

// finalize takes the policy down from the inside out: first every way out of a sandbox and
// the proxy, and last, when nothing that it isolates still runs, the default-deny policy.
func (r *Reconciler) finalize(ctx context.Context, p *v1alpha1.SandboxEgress) (reconcile.Result, error) {
	// A cache that lags shows an object that is finished with. Working on it would isolate and
	// release again, perhaps the sandboxes of a successor with the same name.
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if p.DeletionTimestamp.IsZero() || !controllerutil.ContainsFinalizer(p, v1alpha1.IsolationFinalizer) {
		return reconcile.Result{}, nil
	}
	sel, err := match.Selector(p)
	if err != nil {
		// It never isolated anything, so nothing is released.
		return reconcile.Result{}, errors.Join(r.deleteProxy(ctx, p), r.removeFinalizer(ctx, p))
	}
	// A namespace that is ending takes no new object: a default-deny policy that is gone cannot
	// come back, but no pod that it would isolate can start either. Those that run still hold it.
	err = r.isolate(ctx, p, true)
	if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return reconcile.Result{}, err
	}
	if err := r.deleteProxy(ctx, p); err != nil {
		return reconcile.Result{}, err
	}
	blocked, err := r.blocked(ctx, p, sel)
	if err != nil {
		return reconcile.Result{}, err
	}
	if blocked != nil {
		return reconcile.Result{RequeueAfter: lookAgain}, r.writeStatus(ctx, p, outcome{deleting: blocked})
	}
	if err := r.deleteOwned(ctx, p, apply.NetworkPolicies.New(), v1alpha1.ProxyName(p.Name)); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.release(ctx, client.ObjectKeyFromObject(p)); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.unlabelNamespace(ctx, p); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, r.removeFinalizer(ctx, p)
}

// blocked says what the default-deny policy still has to wait for. The last word is the API
// server's: a cache that lags would release a sandbox that has just started.
func (r *Reconciler) blocked(ctx context.Context, p *v1alpha1.SandboxEgress, sel labels.Selector) (*problem, error) {
	for _, reader := range []client.Reader{r.Client, r.Live} {
		running, err := running(ctx, reader, p.Namespace, sel)
		if err != nil {
			return nil, err
		}
		if len(running) > 0 {
			return &problem{ReasonSandboxesRunning, fmt.Sprintf(
				"waiting for %d sandbox(es) to end: %s; they stay isolated and have no egress", len(running), list(running))}, nil
		}
	}
	proxies, err := running(ctx, r.Client, p.Namespace, labels.SelectorFromSet(match.ProxyLabels(p.Name)))
	if err != nil {
		return nil, err
	}
	if len(proxies) > 0 {
		// Their own NetworkPolicy stays until they are gone.
		return &problem{ReasonDeleting, "waiting for the proxy pods to end: " + list(proxies)}, nil
	}
	var allows networkingv1.NetworkPolicyList
	err = r.Client.List(ctx, &allows, client.InNamespace(p.Namespace), client.MatchingLabels{
		v1alpha1.PolicyKey: p.Name, v1alpha1.ComponentLabel: v1alpha1.ComponentIdentity,
	})
	if err != nil {
		return nil, fmt.Errorf("list NetworkPolicies: %w", err)
	}
	if n := len(allows.Items); n > 0 {
		return &problem{ReasonDeleting, fmt.Sprintf("waiting for %d sandbox NetworkPolicies to go", n)}, nil
	}
	return nil, nil
}

func running(ctx context.Context, reader client.Reader, namespace string, sel labels.Selector) ([]string, error) {
	var pods corev1.PodList
	if err := reader.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: sel}); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var names []string
	for i := range pods.Items {
		if !terminal(&pods.Items[i]) {
			names = append(names, pods.Items[i].Name)
		}
	}
	return names, nil
}

// deleteProxy deletes everything of the proxy but its NetworkPolicy.
func (r *Reconciler) deleteProxy(ctx context.Context, p *v1alpha1.SandboxEgress) error {
	name := v1alpha1.ProxyName(p.Name)
	return errors.Join(
		r.deleteOwned(ctx, p, new(appsv1.Deployment), name),
		r.deleteOwned(ctx, p, new(policyv1.PodDisruptionBudget), name),
		r.deleteOwned(ctx, p, new(corev1.Service), name),
		r.deleteOwned(ctx, p, new(rbacv1.RoleBinding), name),
		r.deleteOwned(ctx, p, new(rbacv1.Role), name),
		r.deleteOwned(ctx, p, new(corev1.ServiceAccount), name),
		r.deleteOwned(ctx, p, new(corev1.ConfigMap), v1alpha1.JWKSName(p.Name)),
	)
}

// deleteOwned deletes the object if p controls it. Dependents follow in the background.
func (r *Reconciler) deleteOwned(ctx context.Context, p *v1alpha1.SandboxEgress, o client.Object, name string) error {
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: name}, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %T %s: %w", o, name, err)
	}
	if !metav1.IsControlledBy(o, p) || !o.GetDeletionTimestamp().IsZero() {
		return nil
	}
	uid := o.GetUID()
	err = r.Client.Delete(ctx, o, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s: %w", o, name, err)
	}
	return nil
}

// release deletes the default-deny policy of a SandboxEgress for good.
func (r *Reconciler) release(ctx context.Context, p types.NamespacedName) error {
	deny := new(networkingv1.NetworkPolicy)
	err := r.Live.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.DefaultDenyName(p.Name)}, deny)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the default-deny policy: %w", err)
	}
	if deny.DeletionTimestamp.IsZero() {
		if err := r.Client.Delete(ctx, deny, client.Preconditions{UID: &deny.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete the default-deny policy: %w", err)
		}
	}
	before := deny.DeepCopy()
	if !controllerutil.RemoveFinalizer(deny, v1alpha1.IsolationFinalizer) {
		return nil
	}
	if err := r.Client.Patch(ctx, deny, client.MergeFrom(before), client.FieldOwner(apply.FieldOwner)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("let the default-deny policy go: %w", err)
	}
	return nil
}

// renew replaces a default-deny policy that someone deleted. It is enforced as long as its
// finalizer holds it, so it is only let go when there is nothing that it isolates.
func (r *Reconciler) renew(ctx context.Context, p *v1alpha1.SandboxEgress) error {
	var deny networkingv1.NetworkPolicy
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.DefaultDenyName(p.Name)}, &deny)
	if err != nil || deny.DeletionTimestamp.IsZero() {
		return client.IgnoreNotFound(err)
	}
	sel, err := match.Selector(p)
	if err != nil {
		return err
	}
	names, err := running(ctx, r.Live, p.Namespace, sel)
	if err != nil || len(names) > 0 {
		return err
	}
	return r.release(ctx, client.ObjectKeyFromObject(p))
}

func (r *Reconciler) removeFinalizer(ctx context.Context, p *v1alpha1.SandboxEgress) error {
	before := p.DeepCopy()
	controllerutil.RemoveFinalizer(p, v1alpha1.IsolationFinalizer)
	if err := r.patchFinalizers(ctx, before, p); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer: %w", err)
	}
	return nil
}

// unlabelNamespace takes the label back when p is the last policy of its namespace.
func (r *Reconciler) unlabelNamespace(ctx context.Context, p *v1alpha1.SandboxEgress) error {
	var others v1alpha1.SandboxEgressList
	if err := r.Live.List(ctx, &others, client.InNamespace(p.Namespace)); err != nil {
		return fmt.Errorf("list SandboxEgress: %w", err)
	}
	for i := range others.Items {
		if others.Items[i].UID != p.UID {
			return nil
		}
	}
	ns := namespaceMetadata()
	if err := r.Client.Get(ctx, client.ObjectKey{Name: p.Namespace}, ns); err != nil {
		return client.IgnoreNotFound(err)
	}
	// An apply without the label gives it up; one that someone else set as well stays.
	want := corev1ac.Namespace(p.Namespace).WithUID(ns.UID)
	err := r.Client.Apply(ctx, want, client.FieldOwner(apply.FieldOwner), client.ForceOwnership)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("take the label off namespace %s: %w", p.Namespace, err)
	}
	return nil
}

// releaseOrphan deals with a default-deny policy whose SandboxEgress is gone because
// somebody took the finalizer off. It stays as long as what it selects runs.
func (r *Reconciler) releaseOrphan(ctx context.Context, key types.NamespacedName) (reconcile.Result, error) {
	var deny networkingv1.NetworkPolicy
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: v1alpha1.DefaultDenyName(key.Name)}, &deny)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if deny.Labels[v1alpha1.ComponentLabel] != v1alpha1.ComponentDefaultDeny || deny.Labels[v1alpha1.PolicyKey] != key.Name {
		return reconcile.Result{}, nil
	}
	// The cache of SandboxEgress may be behind that of NetworkPolicies.
	err = r.Live.Get(ctx, key, new(v1alpha1.SandboxEgress))
	if !apierrors.IsNotFound(err) {
		return reconcile.Result{RequeueAfter: time.Second}, err
	}
	sel, err := metav1.LabelSelectorAsSelector(&deny.Spec.PodSelector)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("selector of %s: %w", deny.Name, err)
	}
	names, err := running(ctx, r.Live, key.Namespace, sel)
	if err != nil {
		return reconcile.Result{}, err
	}
	if len(names) > 0 {
		log.FromContext(ctx).Info("keeping the default-deny policy of a SandboxEgress that is gone: pods still run under it",
			"pods", list(names))
		return reconcile.Result{RequeueAfter: lookAgain}, nil
	}
	return reconcile.Result{}, r.release(ctx, key)
}
