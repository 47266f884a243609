package webhook

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// policyCache is the part of the manager's cache that is used.
type policyCache interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
	List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error
}

// policySource finds the policies of a namespace in the manager's cache.
type policySource struct {
	cache policyCache
	live  client.Reader
	// patience is how long a request waits for the cache's first sync. A replica answers
	// as soon as it has its certificate, which may be a moment earlier.
	patience time.Duration
}

// list returns the policies of one namespace from the cache, or a refusal while the cache
// is not synced: an empty cache would let every pod pass.
func (s *policySource) list(ctx context.Context, namespace string) ([]v1alpha1.SandboxEgress, error) {
	informer, err := s.cache.GetInformer(ctx, &v1alpha1.SandboxEgress{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, &refusal{reasonUnavailable, true, fmt.Sprintf("SandboxEgress objects cannot be watched: %v; try again", err)}
	}
	err = wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, s.patience, true, func(context.Context) (bool, error) {
		return informer.HasSynced(), nil
	})
	if err != nil {
		return nil, &refusal{reasonUnavailable, true, "the operator has not read the SandboxEgress objects yet; try again"}
	}
	var list v1alpha1.SandboxEgressList
	if err := s.cache.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, &refusal{reasonUnavailable, true, fmt.Sprintf("SandboxEgress objects cannot be read: %v; try again", err)}
	}
	return list.Items, nil
}

// forPod returns the one policy that selects a pod with these labels; nil when there is
// none. Two are a refusal that names both.
//
// Before it says none it asks the API server: right after a policy was created (kubectl
// apply of policy and pods in one file) the cache may not have it, and the pod would start
// without isolation.
func (s *policySource) forPod(ctx context.Context, namespace string, labels map[string]string) (*v1alpha1.SandboxEgress, error) {
	items, err := s.list(ctx, namespace)
	if err != nil {
		return nil, err
	}
	policy, err := choose(items, labels)
	if policy != nil || err != nil {
		return policy, err
	}
	var list v1alpha1.SandboxEgressList
	if err := s.live.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, &refusal{reasonUnavailable, true, fmt.Sprintf("SandboxEgress objects cannot be read: %v; try again", err)}
	}
	return choose(list.Items, labels)
}

func choose(items []v1alpha1.SandboxEgress, labels map[string]string) (*v1alpha1.SandboxEgress, error) {
	var found *v1alpha1.SandboxEgress
	for i := range items {
		selected, err := match.Selects(&items[i], labels)
		if err != nil {
			// It may select the pod; nobody knows.
			return nil, &refusal{reasonBadPolicy, false, fmt.Sprintf("SandboxEgress %q is invalid: %v; delete it or ask its owner to", items[i].Name, err)}
		}
		switch {
		case !selected:
		case found != nil:
			names := match.Policies(items, labels)
			return nil, &refusal{reasonOverlap, false, fmt.Sprintf("the pod's labels match more than one SandboxEgress (%s); change its labels or the podSelector of one of them", strings.Join(names, ", "))}
		default:
			found = &items[i]
		}
	}
	return found, nil
}

// admitting is forPod for new pods: a policy that is going takes no more.
func (s *policySource) admitting(ctx context.Context, namespace string, labels map[string]string) (*v1alpha1.SandboxEgress, error) {
	policy, err := s.forPod(ctx, namespace, labels)
	if policy != nil && policy.DeletionTimestamp != nil {
		return nil, &refusal{reasonDeleting, false, fmt.Sprintf("SandboxEgress %q is being deleted and takes no new sandboxes; create another one, or change the pod's labels", policy.Name)}
	}
	return policy, err
}
