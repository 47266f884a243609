package match_test

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

func policy(name string, s *metav1.LabelSelector) v1alpha1.SandboxEgress {
	return v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec:       v1alpha1.SandboxEgressSpec{PodSelector: s},
	}
}

func TestSelects(t *testing.T) {
	all := &metav1.LabelSelector{}
	notDB := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"db"}},
	}}
	app := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "sandbox"}}
	spoof := map[string]string{"app": "sandbox", v1alpha1.ComponentLabel: v1alpha1.ComponentProxy}
	for name, tc := range map[string]struct {
		selector *metav1.LabelSelector
		labels   map[string]string
		want     bool
	}{
		"a missing selector means app=sandbox":                      {nil, map[string]string{"app": "sandbox"}, true},
		"a missing selector matches nothing else":                   {nil, map[string]string{"app": "web"}, false},
		"the empty selector matches an unlabelled pod":              {all, nil, true},
		"the empty selector leaves the proxy's pods out":            {all, match.ProxyPodLabels("p"), false},
		"the empty selector leaves another policy's proxy out":      {all, match.ProxyPodLabels("other"), false},
		"a negative selector leaves the proxy's pods out":           {notDB, match.ProxyPodLabels("p"), false},
		"a negative selector matches others":                        {notDB, map[string]string{"app": "web"}, true},
		"a label selector still catches a pod that plays the proxy": {app, spoof, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := policy("p", tc.selector)
			got, err := match.Selects(&p, tc.labels)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("Selects(%v) = %v, want %v", tc.labels, got, tc.want)
			}
		})
	}
}

func TestSelectsReportsABrokenSelector(t *testing.T) {
	p := policy("p", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}})
	if _, err := match.Selects(&p, nil); err == nil {
		t.Fatal("an unknown operator was accepted")
	}
}

func TestPodSelectorDoesNotChangeThePolicy(t *testing.T) {
	p := policy("p", &metav1.LabelSelector{})
	if _, err := match.PodSelector(&p); err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.PodSelector.MatchExpressions) != 0 {
		t.Fatal("the policy's own selector was changed")
	}
}

func TestPoliciesAreSorted(t *testing.T) {
	list := []v1alpha1.SandboxEgress{policy("z", nil), policy("m", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}), policy("a", &metav1.LabelSelector{})}
	if got := match.Policies(list, map[string]string{"app": "sandbox"}); !slices.Equal(got, []string{"a", "z"}) {
		t.Fatalf("Policies = %v", got)
	}
}

func TestExample(t *testing.T) {
	in := metav1.LabelSelectorRequirement{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{"b", "c"}}
	exists := metav1.LabelSelectorRequirement{Key: "run", Operator: metav1.LabelSelectorOpExists}
	absent := metav1.LabelSelectorRequirement{Key: "run", Operator: metav1.LabelSelectorOpDoesNotExist}
	for name, tc := range map[string]struct {
		sel  metav1.LabelSelector
		want map[string]string
		ok   bool
	}{
		"labels and expressions": {
			metav1.LabelSelector{MatchLabels: map[string]string{"app": "s"}, MatchExpressions: []metav1.LabelSelectorRequirement{in, exists}},
			map[string]string{"app": "s", "tier": "b", "run": ""}, true,
		},
		"everything":    {metav1.LabelSelector{}, map[string]string{}, true},
		"contradiction": {metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{exists, absent}}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := match.Example(&tc.sel)
			if ok != tc.ok || len(got) != len(tc.want) {
				t.Fatalf("Example = %v, %v", got, ok)
			}
			for k, v := range tc.want {
				if got[k] != v {
					t.Errorf("label %s = %q, want %q", k, got[k], v)
				}
			}
		})
	}
}
