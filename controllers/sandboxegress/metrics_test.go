package sandboxegress_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/sandboxegress"
)

func TestCollectorExportsConditionsAndCounts(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	p := &v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agents"},
		Status: v1alpha1.SandboxEgressStatus{
			Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionFalse}, {Type: "IsolationWidened", Status: metav1.ConditionTrue}},
			Sandboxes:  v1alpha1.SandboxCounts{Matched: 3, Ready: 2, Uninjected: 1},
		},
	}
	c := sandboxegress.NewCollector(fake.NewClientBuilder().WithScheme(scheme).WithObjects(p).Build())
	want := `
# HELP sandbox_egress_operator_condition 1 while the condition of the SandboxEgress is True, 0 while it is False or Unknown.
# TYPE sandbox_egress_operator_condition gauge
sandbox_egress_operator_condition{condition="IsolationWidened",namespace="ns",policy="agents"} 1
sandbox_egress_operator_condition{condition="Ready",namespace="ns",policy="agents"} 0
# HELP sandbox_egress_operator_sandboxes Sandboxes of the SandboxEgress that run or will run, by state: matched (all of them), ready, uninjected.
# TYPE sandbox_egress_operator_sandboxes gauge
sandbox_egress_operator_sandboxes{namespace="ns",policy="agents",state="matched"} 3
sandbox_egress_operator_sandboxes{namespace="ns",policy="agents",state="ready"} 2
sandbox_egress_operator_sandboxes{namespace="ns",policy="agents",state="uninjected"} 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
