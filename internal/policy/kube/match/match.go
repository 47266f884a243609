// Package match decides which pods a SandboxEgress isolates. The controllers, the admission
// webhook and the proxy all ask here, so that they cannot disagree.
package match

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// defaultLabels stand in for a nil selector, as the API server's default would.
var defaultLabels = map[string]string{"app": "sandbox"}

// ProxyLabels are the labels that select the proxy pods of a policy.
func ProxyLabels(policy string) map[string]string {
	return map[string]string{
		v1alpha1.ComponentLabel: v1alpha1.ComponentProxy,
		v1alpha1.PolicyKey:      policy,
	}
}

// ProxyPodLabels are all labels that the operator puts on the proxy pods of a policy.
func ProxyPodLabels(policy string) map[string]string {
	l := ProxyLabels(policy)
	l["app.kubernetes.io/name"] = "egress-proxy"
	l["app.kubernetes.io/instance"] = policy
	l["app.kubernetes.io/managed-by"] = "sandbox-egress"
	return l
}

// PodSelector is the label selector of the sandboxes of p, for use in NetworkPolicies.
//
// A selector that would catch the proxy's own pods, such as {}, gets a requirement that
// leaves them out. Any other selector stays as it is: the requirement would let a sandbox
// escape that carries the proxy's label.
func PodSelector(p *v1alpha1.SandboxEgress) (*metav1.LabelSelector, error) {
	base := p.Spec.PodSelector
	if base == nil {
		base = &metav1.LabelSelector{MatchLabels: defaultLabels}
	}
	sel, err := metav1.LabelSelectorAsSelector(base)
	if err != nil {
		return nil, fmt.Errorf("spec.podSelector: %w", err)
	}
	out := base.DeepCopy()
	if sel.Matches(labels.Set(ProxyPodLabels(p.Name))) {
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: v1alpha1.ComponentLabel, Operator: metav1.LabelSelectorOpNotIn, Values: []string{v1alpha1.ComponentProxy},
		})
	}
	return out, nil
}

// Selector is PodSelector in the form that matches label sets.
func Selector(p *v1alpha1.SandboxEgress) (labels.Selector, error) {
	s, err := PodSelector(p)
	if err != nil {
		return nil, err
	}
	return metav1.LabelSelectorAsSelector(s)
}

// Selects reports whether a pod with podLabels in the namespace of p is a sandbox of p.
func Selects(p *v1alpha1.SandboxEgress, podLabels map[string]string) (bool, error) {
	sel, err := Selector(p)
	if err != nil {
		return false, err
	}
	return sel.Matches(labels.Set(podLabels)), nil
}

// Policies returns the names of those policies, all of one namespace, that select a pod
// with podLabels, sorted. A policy whose selector cannot be read selects nothing here; the
// API server and the webhook refuse such a selector.
func Policies(list []v1alpha1.SandboxEgress, podLabels map[string]string) []string {
	var names []string
	for i := range list {
		if ok, err := Selects(&list[i], podLabels); err == nil && ok {
			names = append(names, list[i].Name)
		}
	}
	slices.Sort(names)
	return names
}

// Hosts splits the value of the allowed-hosts annotation.
func Hosts(annotation string) []string {
	var hosts []string
	for h := range strings.SplitSeq(annotation, ",") {
		if h = strings.TrimSpace(h); h != "" {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Example returns labels that the selector matches and that hold no more than it asks for,
// to judge other selectors before any pod exists; ok is false when it matches nothing.
func Example(s *metav1.LabelSelector) (example map[string]string, ok bool) {
	out := map[string]string{}
	for k, v := range s.MatchLabels {
		out[k] = v
	}
	for _, r := range s.MatchExpressions {
		switch _, have := out[r.Key]; {
		case have:
		case r.Operator == metav1.LabelSelectorOpIn && len(r.Values) > 0:
			out[r.Key] = r.Values[0]
		case r.Operator == metav1.LabelSelectorOpExists:
			out[r.Key] = ""
		}
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || !sel.Matches(labels.Set(out)) {
		return nil, false
	}
	return out, true
}
