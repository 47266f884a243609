// Package sandboxegress turns a SandboxEgress into the objects that enforce it: first the
// NetworkPolicy that isolates its sandboxes, then the proxy with everything around it.
package sandboxegress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/controllers/effective"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/lastgood"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// Keys gives the keys to publish; *signingkey.Keeper implements it.
type Keys interface {
	// Ring is nil until the keys are loaded.
	Ring() *token.Ring
}

// Reconciler reconciles SandboxEgress objects.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// Live reads from the API server. It is asked before anything that isolates is removed.
	Live     client.Reader
	Keys     Keys
	Resolver *effective.Resolver
	Network  netpol.Config
	Proxy    ProxyConfig
	Clock    clock.PassiveClock
}

// A SandboxEgress may be in any namespace, so these are cluster-wide.
//
// sandboxegresses patch: the finalizer. finalizers update: owner references that block the
// owner's deletion, where OwnerReferencesPermissionEnforcement is on.
// +kubebuilder:rbac:groups=egress.sandbox.dev,resources=sandboxegresses,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=egress.sandbox.dev,resources=sandboxegresses/status,verbs=patch
// +kubebuilder:rbac:groups=egress.sandbox.dev,resources=sandboxegresses/finalizers,verbs=update
//
// The proxy's objects: create and patch for server-side apply, delete when the policy goes
// or an immutable field has to change, get, list and watch to repair drift.
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=services;serviceaccounts;configmaps,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=roles;rolebindings,verbs=get;list;watch;create;patch;delete
//
// namespaces patch: the label that sends every pod of the namespace through the webhook.
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch;patch
//
// endpointslices: the addresses of the API server, for the proxy's own NetworkPolicy. The
// watch is limited to the kubernetes Service by its selector.
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
//
// events: the proxy's Role grants it, and RBAC lets nobody grant what they do not have.
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var p v1alpha1.SandboxEgress
	if err := r.Client.Get(ctx, req.NamespacedName, &p); apierrors.IsNotFound(err) {
		return r.releaseOrphan(ctx, req.NamespacedName)
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("read SandboxEgress: %w", err)
	}
	if !p.DeletionTimestamp.IsZero() {
		return r.finalize(ctx, &p)
	}
	o, err := r.enforce(ctx, &p)
	if err != nil && o.ready == nil {
		o.ready = &problem{ReasonApplyFailed, err.Error()}
	}
	return reconcile.Result{}, errors.Join(err, r.writeStatus(ctx, &p, o))
}

// enforce writes what p asks for. The default-deny policy is the first write of all, also
// before the finalizer: without it nothing else may exist.
func (r *Reconciler) enforce(ctx context.Context, p *v1alpha1.SandboxEgress) (outcome, error) {
	var o outcome
	inForce, err := r.Resolver.Resolve(ctx, p)
	if err != nil {
		// Isolation does not wait for a cache.
		inForce = effective.Policy{Object: p, Invalid: err}
	}
	if inForce.Compiled != nil {
		o.inForce = &inForce.Object.Spec
	}
	if !inForce.Current() {
		o.enforced = &problem{ReasonInvalidSpec, invalidMessage(inForce)}
	}
	if problem := checkSelector(p); problem != nil {
		o.enforced = problem
		return o, nil
	}
	if err := r.isolate(ctx, inForce.Object, inForce.Compiled == nil); err != nil {
		o.enforced = &problem{ReasonApplyFailed, err.Error()}
		return o, err
	}
	if err := r.addFinalizer(ctx, p); err != nil {
		return o, err
	}
	if err := r.labelNamespace(ctx, p.Namespace); err != nil {
		return o, err
	}
	if r.Keys.Ring() == nil {
		o.ready = &problem{ReasonKeysMissing, "the operator has no signing key yet; see its log and the Secret sandbox-egress-signing-key"}
	} else if err := r.publish(ctx, p, inForce); err != nil {
		return o, err
	}
	if inForce.Compiled == nil {
		return o, nil
	}
	return o, r.ensureProxy(ctx, inForce)
}

// checkSelector reports a selector that cannot be read, which the CRD lets through and the
// webhook does not. It is immutable, so only another object helps, and trying again does not.
func checkSelector(p *v1alpha1.SandboxEgress) *problem {
	if _, err := match.PodSelector(p); err != nil {
		return &problem{ReasonInvalidSelector, err.Error() + "; nothing is isolated: delete this SandboxEgress and create it with a valid selector"}
	}
	return nil
}

func invalidMessage(p effective.Policy) string {
	state := "the last valid spec stays in force: "
	if p.Compiled == nil {
		state = "no valid spec is known, so the sandboxes have no egress: "
	}
	const most = 1024
	m := state + p.Invalid.Error()
	if len(m) > most {
		m = m[:most] + "…"
	}
	return m
}

func (r *Reconciler) isolate(ctx context.Context, p *v1alpha1.SandboxEgress, closed bool) error {
	deny, err := netpol.DefaultDeny(p, r.Network, closed)
	if err != nil {
		return err
	}
	if err := r.renew(ctx, p); err != nil {
		return err
	}
	_, err = apply.NetworkPolicies.Ensure(ctx, r.Client, deny)
	return err
}

func (r *Reconciler) addFinalizer(ctx context.Context, p *v1alpha1.SandboxEgress) error {
	before := p.DeepCopy()
	if !controllerutil.AddFinalizer(p, v1alpha1.IsolationFinalizer) {
		return nil
	}
	if err := r.patchFinalizers(ctx, before, p); err != nil {
		return fmt.Errorf("add the finalizer: %w", err)
	}
	return nil
}

// patchFinalizers writes the finalizers of after. The lock is needed: the list is replaced
// whole, and another controller's finalizer must not get lost.
func (r *Reconciler) patchFinalizers(ctx context.Context, before, after *v1alpha1.SandboxEgress) error {
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	return r.Client.Patch(ctx, after, patch, client.FieldOwner(apply.FieldOwner))
}

func namespaceMetadata() *metav1.PartialObjectMetadata {
	m := new(metav1.PartialObjectMetadata)
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return m
}

func (r *Reconciler) labelNamespace(ctx context.Context, name string) error {
	ns := namespaceMetadata()
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, ns); err != nil {
		return fmt.Errorf("read namespace %s: %w", name, err)
	}
	if ns.Labels[v1alpha1.EnforcedLabel] == "true" {
		return nil
	}
	want := corev1ac.Namespace(name).WithUID(ns.UID).WithLabels(map[string]string{v1alpha1.EnforcedLabel: "true"})
	if err := r.Client.Apply(ctx, want, client.FieldOwner(apply.FieldOwner), client.ForceOwnership); err != nil {
		return fmt.Errorf("label namespace %s: %w", name, err)
	}
	return nil
}

// publish writes the public keys, and the current spec when it is valid, for the proxies.
func (r *Reconciler) publish(ctx context.Context, p *v1alpha1.SandboxEgress, inForce effective.Policy) error {
	jwks, err := r.Keys.Ring().KeySet().MarshalJWKS()
	if err != nil {
		return fmt.Errorf("encode the JWKS: %w", err)
	}
	data := map[string]string{v1alpha1.ConfigMapKeyJWKS: string(jwks)}
	if inForce.Current() {
		good, fits, err := lastgood.Encode(p)
		if err != nil {
			return err
		}
		if fits {
			data[lastgood.ConfigMapKey] = good
		}
	} else {
		var live corev1.ConfigMap
		err := r.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.JWKSName(p.Name)}, &live)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("read the last good spec: %w", err)
		}
		if good := live.Data[lastgood.ConfigMapKey]; good != "" {
			data[lastgood.ConfigMapKey] = good
		}
	}
	_, err = apply.ConfigMaps.Ensure(ctx, r.Client, configMap(p, data))
	return err
}

// ensureProxy writes the proxy's objects; its NetworkPolicy comes before its Deployment, so
// that no proxy runs without it.
func (r *Reconciler) ensureProxy(ctx context.Context, inForce effective.Policy) error {
	p := inForce.Object
	if err := r.ensureProxyNetwork(ctx, inForce); err != nil {
		return err
	}
	// One that cannot be written must not keep the others from being repaired.
	var errs []error
	note := func(_ bool, err error) { errs = append(errs, err) }
	note(apply.ServiceAccounts.Ensure(ctx, r.Client, serviceAccount(p)))
	note(apply.Roles.Ensure(ctx, r.Client, role(p)))
	note(apply.RoleBindings.Ensure(ctx, r.Client, roleBinding(p)))
	note(apply.Services.Ensure(ctx, r.Client, service(p)))
	note(apply.Deployments.Ensure(ctx, r.Client, deployment(p, r.Proxy)))
	note(apply.PodDisruptionBudgets.Ensure(ctx, r.Client, disruptionBudget(p)))
	return errors.Join(errs...)
}

func (r *Reconciler) ensureProxyNetwork(ctx context.Context, inForce effective.Policy) error {
	p := inForce.Object
	if p.Spec.Proxy.NetworkPolicy == v1alpha1.Disabled {
		return r.deleteOwned(ctx, p, apply.NetworkPolicies.New(), v1alpha1.ProxyName(p.Name))
	}
	api, err := r.apiServer(ctx)
	if err != nil {
		return err
	}
	want, err := netpol.Proxy(p, r.Network, api, inForce.Compiled.Upstream)
	if err != nil {
		return err
	}
	_, err = apply.NetworkPolicies.Ensure(ctx, r.Client, want)
	return err
}

// apiServer lists the addresses behind the kubernetes Service, which is where the traffic
// of a proxy to the API server ends up after kube-proxy.
func (r *Reconciler) apiServer(ctx context.Context) ([]netip.AddrPort, error) {
	var slicesList discoveryv1.EndpointSliceList
	err := r.Client.List(ctx, &slicesList, client.InNamespace(metav1.NamespaceDefault),
		client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("list the API server's endpoints: %w", err)
	}
	var out []netip.AddrPort
	for _, s := range slicesList.Items {
		for _, port := range s.Ports {
			if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
				continue
			}
			for _, e := range s.Endpoints {
				for _, text := range e.Addresses {
					if a, err := netip.ParseAddr(text); err == nil {
						out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(*port.Port)))
					}
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out), nil
}
