package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/lastgood"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// builder makes States and remembers what did not change between two of them.
type builder struct {
	opt Options
	log *slog.Logger

	compiled compiled
	keys     *token.KeySet
	keysFrom string
	pods     map[types.UID]knownPod
}

// compiled is the policy in force and which object it came from.
type compiled struct {
	uid        types.UID
	generation int64
	policy     *policy.Policy
	// record is what was tried while there is no policy.
	record string
}

type knownPod struct {
	version, organization string
	pod                   *policy.Pod
}

func newBuilder(o Options, log *slog.Logger) *builder {
	return &builder{opt: o, log: log, pods: map[types.UID]knownPod{}}
}

// update builds a State from what reader holds and puts it in force. Before the policy and
// the keys have been read once there is none, so that the proxy does not become ready.
func (b *builder) update(ctx context.Context, reader client.Reader, store *policy.Store) error {
	var cm corev1.ConfigMap
	err := reader.Get(ctx, client.ObjectKey{Namespace: b.opt.Namespace, Name: b.opt.ConfigMap}, &cm)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read ConfigMap %s: %w", b.opt.ConfigMap, err)
	}
	b.readKeys(&cm)
	var object v1alpha1.SandboxEgress
	err = reader.Get(ctx, client.ObjectKey{Namespace: b.opt.Namespace, Name: b.opt.Policy}, &object)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read SandboxEgress %s: %w", b.opt.Policy, err)
	}
	gone := apierrors.IsNotFound(err) || !object.DeletionTimestamp.IsZero()
	if gone {
		b.compiled = compiled{}
	} else {
		b.compile(&object, cm.Data[lastgood.ConfigMapKey])
	}
	if !store.Ready() && (b.keys == nil || b.compiled.policy == nil) {
		return nil
	}
	state := policy.Config{PodsKnown: true, Keys: b.keys}
	if b.compiled.policy != nil {
		state.Policies = []*policy.Policy{b.compiled.policy}
		if state.Pods, err = b.readPods(ctx, reader, &object); err != nil {
			return err
		}
	}
	store.Swap(policy.NewState(state))
	return nil
}

// readKeys keeps the keys it has when the new ones cannot be read: a publishing mistake
// must not cut every sandbox off, and to take a key away is to publish a set without it.
func (b *builder) readKeys(cm *corev1.ConfigMap) {
	text := cm.Data[v1alpha1.ConfigMapKeyJWKS]
	if text == b.keysFrom {
		return
	}
	b.keysFrom = text
	if text == "" {
		b.log.Warn("the ConfigMap with the public keys is missing or empty; the last keys stay in force", "configMap", b.opt.ConfigMap)
		return
	}
	keys, err := token.ParseJWKS([]byte(text))
	if err != nil {
		b.log.Error("the public keys cannot be read; the last ones stay in force", "configMap", b.opt.ConfigMap, "error", err)
		return
	}
	b.keys = keys
	b.log.Info("public keys in force", "kids", keys.KIDs())
}

// compile puts the spec of s in force, if it is valid. If not, what was in force for the
// same object stays; a proxy that has just started asks the operator's record.
func (b *builder) compile(s *v1alpha1.SandboxEgress, record string) {
	same := b.compiled.uid == s.UID && b.compiled.generation == s.Generation
	if same && (b.compiled.policy != nil || b.compiled.record == record) {
		return
	}
	p, err := manifest.Compile(s)
	if err == nil {
		b.compiled = compiled{uid: s.UID, generation: s.Generation, policy: p}
		b.log.Info("policy in force", "policy", p.Ref, "generation", p.Generation, "mode", p.Mode.String())
		return
	}
	b.log.Error("the policy is invalid; the last valid one stays in force, if there is one",
		"policy", s.Namespace+"/"+s.Name, "generation", s.Generation, "error", err)
	if b.compiled.uid == s.UID && b.compiled.policy != nil {
		b.compiled.generation = s.Generation
		return
	}
	b.compiled = compiled{uid: s.UID, generation: s.Generation, record: record}
	old, err := lastgood.Decode(record, s)
	if err != nil || old == nil {
		return
	}
	if p, err := manifest.Compile(old); err == nil {
		b.compiled = compiled{uid: s.UID, generation: s.Generation, policy: p}
		b.log.Warn("policy in force, from the operator's record of the last valid one", "policy", p.Ref, "generation", p.Generation)
	}
}

func (b *builder) readPods(ctx context.Context, reader client.Reader, s *v1alpha1.SandboxEgress) ([]*policy.Pod, error) {
	sel, err := match.Selector(s)
	if err != nil {
		b.log.Error("the selector cannot be read, so no pod is known", "error", err)
		return nil, nil
	}
	var list corev1.PodList
	if err := reader.List(ctx, &list, client.InNamespace(b.opt.Namespace)); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	known := make(map[types.UID]knownPod, len(list.Items))
	out := make([]*policy.Pod, 0, len(list.Items))
	for i := range list.Items {
		pod := &list.Items[i]
		if !admitted(pod, b.opt.Policy, sel) {
			continue
		}
		k, ok := b.pods[pod.UID]
		if !ok || k.version != pod.ResourceVersion || k.organization != s.Spec.Token.Organization {
			k = knownPod{pod.ResourceVersion, s.Spec.Token.Organization, b.convert(pod, s.Spec.Token.Organization)}
		}
		known[pod.UID] = k
		out = append(out, k.pod)
	}
	b.pods = known
	return out, nil
}

// admitted reports whether pod is a sandbox that the webhook put under the policy and that
// the selector still matches.
func admitted(pod *corev1.Pod, policyName string, sel labels.Selector) bool {
	return pod.Annotations[v1alpha1.PolicyKey] == policyName &&
		pod.Annotations[v1alpha1.InjectedAnnotation] != "" &&
		injector.ValidID(pod.Annotations[v1alpha1.IDKey]) &&
		sel.Matches(labels.Set(pod.Labels))
}

func (b *builder) convert(pod *corev1.Pod, organization string) *policy.Pod {
	out := &policy.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
		ContainerID:  injector.ContainerID(pod),
		Organization: organization,
		Quarantined:  pod.Annotations[v1alpha1.QuarantineAnnotation] == "true",
		Terminal:     pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		PolicyRef:    pod.Namespace + "/" + pod.Annotations[v1alpha1.PolicyKey],
		IPs:          addresses(&pod.Status),
	}
	if text, ok := pod.Annotations[v1alpha1.AllowedHostsAnnotation]; ok {
		out.Narrow = b.narrow(pod, text)
	}
	return out
}

// addresses are all pod IPs, of both families.
func addresses(s *corev1.PodStatus) []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return
		}
		a = a.Unmap().WithZone("")
		for _, have := range out {
			if have == a {
				return
			}
		}
		out = append(out, a)
	}
	for _, ip := range s.PodIPs {
		add(ip.IP)
	}
	add(s.PodIP)
	return out
}

// narrow compiles the pod's own list; a broken one allows nothing.
func (b *builder) narrow(pod *corev1.Pod, text string) *allowlist.Matcher {
	m, err := allowlist.Compile(allowlist.Spec{AllowedHosts: match.Hosts(text)})
	if err != nil {
		b.log.Warn("the pod's allowed-hosts annotation is broken, so the pod reaches nothing", "pod", pod.Name, "error", err)
		return new(allowlist.Matcher)
	}
	return m
}

// stripPod keeps what a State is made of.
func stripPod(in any) (any, error) {
	pod, ok := in.(*corev1.Pod)
	if !ok {
		return in, nil
	}
	annotations := map[string]string{}
	for k, v := range pod.Annotations {
		if strings.HasPrefix(k, v1alpha1.Group+"/") {
			annotations[k] = v
		}
	}
	return &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			Labels: pod.Labels, Annotations: annotations,
		},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs},
	}, nil
}
