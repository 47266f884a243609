// Package pod gives every sandbox its identity: a Secret with a token and, under per-pod
// granularity, the NetworkPolicy that opens DNS and the proxy to it. It takes both away when
// the sandbox ends, is quarantined, or loses its policy.
package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/controllers/effective"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// retry is how long to wait for something whose arrival raises no event here.
const retry = time.Second

// Keys gives the signing keys; *signingkey.Keeper implements it.
type Keys interface {
	// Ring is nil until the keys are loaded.
	Ring() *token.Ring
	// Retain keeps a key published for a token that lives longer than most.
	Retain(ctx context.Context, kid string, exp time.Time) error
}

// Reconciler reconciles the identity of one pod.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client   client.Client
	Keys     Keys
	Resolver *effective.Resolver
	Network  netpol.Config
	Clock    clock.PassiveClock
	Jitter   Jitter
	Metrics  *Metrics
	Recorder events.EventRecorder
	// MaxTokenTTL is the longest life of a token that keys are retained for without being
	// told, as in token.RingPolicy.
	MaxTokenTTL time.Duration
	// Concurrency is the number of pods reconciled at a time.
	Concurrency int

	notify *notifier
}

// Sandboxes run in any namespace, so these are cluster-wide.
//
// pods get, list, watch: to find the sandboxes of a policy; the cache keeps labels, our
// annotations, addresses and the phase, nothing else. patch: to add the id label to a pod
// that was admitted under Shared granularity when the policy changes to PerPod.
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;patch
//
// secrets list, watch: a watch of the metadata of those with our component label, to
// repair drift; RBAC cannot restrict it to the label. There is no get: the operator never
// reads a token back. create, patch: server-side apply of identity Secrets. delete: to take
// an identity away.
// +kubebuilder:rbac:groups="",resources=secrets,verbs=list;watch;create;patch;delete
//
// networkpolicies create, patch, delete: the sandbox's own policy. list, watch: to repair
// drift and to find policies of others that widen a sandbox's egress. get is part of
// reading through a cache that has no informer yet.
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=get;list;watch;create;patch;delete
//
// services: the proxy's ClusterIP goes into the proxy URL.
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch
//
// events: kubectl describe pod has to say why a sandbox has no egress.
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := r.Client.Get(ctx, req.NamespacedName, &pod); apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.revoke(ctx, req.NamespacedName, keep{}, revokeDeleted)
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("read pod: %w", err)
	}
	v, err := r.judge(ctx, &pod)
	if err != nil {
		return reconcile.Result{}, err
	}
	if v.revoke != "" {
		return reconcile.Result{}, r.revoke(ctx, req.NamespacedName, keep{}, v.revoke)
	}
	// Identities of an earlier pod of the same name, as StatefulSets have.
	if err := r.revoke(ctx, req.NamespacedName, keep{uid: pod.UID, name: v1alpha1.IdentityName(v.id)}, revokeDeleted); err != nil {
		return reconcile.Result{}, err
	}
	return r.provide(ctx, &pod, v)
}

// provide brings Secret, NetworkPolicy and label of a sandbox up to date. The Secret comes
// first: the start gate cannot pass before the NetworkPolicy is there, so a container never
// starts without its token.
func (r *Reconciler) provide(ctx context.Context, pod *corev1.Pod, v verdict) (reconcile.Result, error) {
	var svc corev1.Service
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: v1alpha1.ProxyName(v.policy.Name)}, &svc)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read the proxy's Service: %w", err)
	}
	address := serviceAddress(&svc) // empty when there is no Service
	if address == "" || r.Keys.Ring() == nil {
		// The Service and the keys raise events when they come; this is for a lost one.
		return reconcile.Result{RequeueAfter: retry}, nil
	}
	owner, err := r.secretMeta(ctx, pod.Namespace, v1alpha1.IdentityName(v.id))
	if err != nil {
		return reconcile.Result{}, err
	}
	if other, err := r.otherOwner(ctx, pod, owner); err != nil {
		return reconcile.Result{}, err
	} else if other != "" {
		r.refuse(pod, EventDuplicateID, v.id, "the id %s belongs to pod %s; delete this pod, its id was not set by the admission webhook", v.id, other)
		return reconcile.Result{}, nil
	}
	want := newIdentity(v.policy, v.containerID, address)
	meta, err := r.ensureSecret(ctx, pod, v, want, owner)
	if err != nil {
		r.notify.warn(pod, EventIdentityFailed, v.id, "Mint", "no token yet: %v", err)
		return reconcile.Result{}, err
	}
	r.notify.forget(pod, EventIdentityFailed, v.id)
	wait, err := r.ensureNetwork(ctx, pod, v)
	if err != nil || wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, err
	}
	return reconcile.Result{RequeueAfter: r.next(pod, meta)}, nil
}

// otherOwner names the live pod that owns the Secret, if it is not pod itself.
func (r *Reconciler) otherOwner(ctx context.Context, pod *corev1.Pod, meta *metav1.PartialObjectMetadata) (string, error) {
	if meta == nil {
		return "", nil
	}
	ref := metav1.GetControllerOf(meta)
	if ref == nil || ref.UID == pod.UID {
		return "", nil
	}
	var other corev1.Pod
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: ref.Name}, &other)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read pod %s: %w", ref.Name, err)
	}
	if err == nil && other.UID == ref.UID {
		return ref.Name, nil
	}
	// A second controlling owner cannot be applied, so the orphan goes first.
	return "", client.IgnoreNotFound(r.Client.Delete(ctx, meta, client.Preconditions{UID: &meta.UID}))
}

func (r *Reconciler) secretMeta(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	meta := secretMetadata()
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, meta)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the identity Secret: %w", err)
	}
	return meta, nil
}

func secretMetadata() *metav1.PartialObjectMetadata {
	m := new(metav1.PartialObjectMetadata)
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	return m
}

// ensureSecret mints when needed and returns the metadata that is in force.
func (r *Reconciler) ensureSecret(ctx context.Context, pod *corev1.Pod, v verdict, want identity, meta *metav1.PartialObjectMetadata) (*metav1.PartialObjectMetadata, error) {
	ring := r.Keys.Ring()
	now := r.Clock.Now()
	known := func(kid string) bool { return ring.KeySet().Lookup(kid) != nil }
	reason := check(meta, want, pod, now, known)
	if reason == "" {
		return meta, nil
	}
	expires, renew := lifetime(now, want.TTL, pod, r.Jitter())
	key := ring.Active()
	if expires.After(now.Add(r.MaxTokenTTL)) {
		if err := r.Keys.Retain(ctx, key.KID, expires); err != nil {
			return nil, err
		}
	}
	raw, err := mint(key, want, v, now, expires)
	if err != nil {
		return nil, err
	}
	annotations := map[string]string{
		annotationIssuedAt:    now.UTC().Format(time.RFC3339),
		annotationExpiresAt:   expires.UTC().Format(time.RFC3339),
		annotationKeyID:       key.KID,
		annotationFingerprint: want.fingerprint(),
	}
	if !renew.IsZero() {
		annotations[annotationRenewAt] = renew.UTC().Format(time.RFC3339)
	}
	if meta != nil && meta.Annotations[annotationExpiresAt] != "" {
		annotations[annotationPreviousExpires] = meta.Annotations[annotationExpiresAt]
	}
	secret := corev1ac.Secret(v1alpha1.IdentityName(v.id), pod.Namespace).
		WithLabels(netpol.Labels(v.policy.Name, v1alpha1.ComponentIdentity)).
		WithAnnotations(annotations).
		WithOwnerReferences(netpol.PodOwner(pod.Name, pod.UID)).
		WithType(corev1.SecretTypeOpaque).
		WithData(map[string][]byte{
			v1alpha1.SecretKeyToken:    []byte(raw),
			v1alpha1.SecretKeyProxyURL: []byte(want.proxyURL(raw)),
		})
	if err := r.Client.Apply(ctx, secret, client.FieldOwner(apply.FieldOwner), client.ForceOwnership); err != nil {
		return nil, fmt.Errorf("apply the identity Secret: %w", err)
	}
	r.Metrics.Minted.WithLabelValues(string(reason)).Inc()
	out := secretMetadata()
	out.Annotations = annotations
	return out, nil
}

// mint signs the token of one sandbox.
func mint(key *token.SigningKey, want identity, v verdict, now, expires time.Time) (string, error) {
	claims, err := token.NewClaims(token.MintOptions{
		Now: now, TTL: expires.Sub(now),
		ContainerID: want.ContainerID, Organization: want.Organization,
		AllowedHosts: v.allowedHosts(), EgressPolicy: want.Policy,
		HIPAARegulated: want.HIPAA, ContainerBinding: want.Binding, CentralizedEgress: want.Centralized,
	})
	if err != nil {
		return "", err
	}
	raw, err := key.Mint(claims)
	if errors.Is(err, token.ErrTooLarge) {
		// The copy is for information only, the live policy decides.
		claims.AllowedHosts = ""
		raw, err = key.Mint(claims)
	}
	return raw, err
}

// ensureNetwork opens DNS and the proxy to the sandbox under PerPod, and only once the
// default-deny policy stands: an allow policy alone would mean that everything else is
// open. It returns how long to wait for that.
func (r *Reconciler) ensureNetwork(ctx context.Context, pod *corev1.Pod, v verdict) (time.Duration, error) {
	name := client.ObjectKey{Namespace: pod.Namespace, Name: v1alpha1.IdentityName(v.id)}
	if v.policy.Spec.NetworkPolicy.Granularity == v1alpha1.GranularityShared {
		var np networkingv1.NetworkPolicy
		err := r.Client.Get(ctx, name, &np)
		if err != nil {
			return 0, client.IgnoreNotFound(err)
		}
		return 0, client.IgnoreNotFound(r.Client.Delete(ctx, &np, client.Preconditions{UID: &np.UID}))
	}
	isolated, err := r.isolated(ctx, v.policy)
	if err != nil {
		return 0, err
	}
	if !isolated {
		return retry, nil
	}
	if _, err := apply.NetworkPolicies.Ensure(ctx, r.Client, netpol.Pod(v.policy, r.Network, pod, v.id)); err != nil {
		return 0, err
	}
	if pod.Labels[v1alpha1.IDKey] == v.id {
		return 0, nil
	}
	patch := client.MergeFromWithOptions(pod.DeepCopy(), client.MergeFromWithOptimisticLock{})
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[v1alpha1.IDKey] = v.id
	return 0, client.IgnoreNotFound(r.Client.Patch(ctx, pod, patch, client.FieldOwner(apply.FieldOwner)))
}

// isolated reports whether the default-deny policy of p is in place, with its selector.
func (r *Reconciler) isolated(ctx context.Context, p *v1alpha1.SandboxEgress) (bool, error) {
	var np networkingv1.NetworkPolicy
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.DefaultDenyName(p.Name)}, &np)
	if err != nil {
		return false, client.IgnoreNotFound(err)
	}
	// One that is being deleted is enforced as long as the finalizer holds it.
	held := np.DeletionTimestamp.IsZero() || slices.Contains(np.Finalizers, v1alpha1.IsolationFinalizer)
	return held && netpol.Isolates(&np, p), nil
}

// next is the time until the token has to be renewed or its holder warned, at most an hour:
// clocks get corrected, and a far timer is easily lost.
func (r *Reconciler) next(pod *corev1.Pod, meta *metav1.PartialObjectMetadata) time.Duration {
	now := r.Clock.Now()
	at := nextLook(meta)
	if expires := envExpiry(pod, meta); !expires.IsZero() {
		about := expires.UTC().Format(time.RFC3339)
		switch warnAt := expires.Add(-expiryWarning); {
		case !now.Before(expires):
			r.notify.warn(pod, EventTokenExpired, about, "Renew",
				"the token in the environment expired at %s and the proxy answers 407 token_expired; restart the container to pick the new one up, and use delivery Relay for long-lived sandboxes", about)
		case !now.Before(warnAt):
			r.notify.warn(pod, EventTokenExpiring, about, "Renew",
				"the token in the environment expires at %s; restart the container to pick the new one up, and use delivery Relay for long-lived sandboxes", about)
			at = earlier(at, expires)
		default:
			at = earlier(at, warnAt)
		}
	}
	if at.IsZero() {
		return time.Hour
	}
	return min(max(at.Sub(now), retry), time.Hour)
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// keep is the identity that revoke leaves alone.
type keep struct {
	uid  types.UID
	name string
}

// revoke removes the Secrets and NetworkPolicies that belong to a pod name, but for the
// one to keep. NetworkPolicy first: it cuts the network off, the Secret only the future.
func (r *Reconciler) revoke(ctx context.Context, pod types.NamespacedName, except keep, reason string) error {
	in := []client.ListOption{client.InNamespace(pod.Namespace), client.MatchingFields{indexOwnerPod: pod.Name}}
	var policies networkingv1.NetworkPolicyList
	if err := r.Client.List(ctx, &policies, in...); err != nil {
		return fmt.Errorf("list NetworkPolicies: %w", err)
	}
	var gone []client.Object
	for i := range policies.Items {
		gone = append(gone, &policies.Items[i])
	}
	secrets := new(metav1.PartialObjectMetadataList)
	secrets.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
	if err := r.Client.List(ctx, secrets, in...); err != nil {
		return fmt.Errorf("list identity Secrets: %w", err)
	}
	for i := range secrets.Items {
		secrets.Items[i].SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
		gone = append(gone, &secrets.Items[i])
	}
	gone = slices.DeleteFunc(gone, func(o client.Object) bool {
		ref := metav1.GetControllerOf(o)
		return o.GetName() == except.name && ref != nil && ref.UID == except.uid
	})
	for _, o := range gone {
		uid := o.GetUID()
		err := r.Client.Delete(ctx, o, client.Preconditions{UID: &uid})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("revoke %s: %w", o.GetName(), err)
		}
	}
	if len(gone) > 0 {
		r.Metrics.Revoked.WithLabelValues(reason).Inc()
	}
	return nil
}

func (r *Reconciler) refuse(pod *corev1.Pod, reason, about, note string, args ...any) {
	r.Metrics.Refused.WithLabelValues(reason).Inc()
	r.notify.warn(pod, reason, about, "Isolate", note, args...)
}
