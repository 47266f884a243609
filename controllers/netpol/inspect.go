package netpol

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// Isolates reports whether np denies egress by default to exactly the sandboxes of p.
func Isolates(np *networkingv1.NetworkPolicy, p *v1alpha1.SandboxEgress) bool {
	sel, err := match.PodSelector(p)
	return err == nil &&
		slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) &&
		equality.Semantic.DeepEqual(&np.Spec.PodSelector, sel)
}

// AddsEgress reports whether np opens any egress at all.
func AddsEgress(np *networkingv1.NetworkPolicy) bool {
	// Without policyTypes, Egress is implied by egress rules.
	return len(np.Spec.Egress) > 0 &&
		(len(np.Spec.PolicyTypes) == 0 || slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress))
}

// SelectsAny reports whether np selects a pod with any of these label sets.
func SelectsAny(np *networkingv1.NetworkPolicy, pods []map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	return err == nil && slices.ContainsFunc(pods, func(l map[string]string) bool { return sel.Matches(labels.Set(l)) })
}
