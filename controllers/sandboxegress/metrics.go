package sandboxegress

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// collectTimeout bounds a scrape; the list comes from the cache.
const collectTimeout = 2 * time.Second

// Collector exports what the status of every SandboxEgress says, so that an alert can be
// made of it. It reads the cache at each scrape: nothing is left behind by a policy that
// is gone. Every replica exports the same.
type Collector struct {
	reader    client.Reader
	condition *prometheus.Desc
	sandboxes *prometheus.Desc
}

// NewCollector reads from reader, which must be a cache.
func NewCollector(reader client.Reader) *Collector {
	return &Collector{
		reader: reader,
		condition: prometheus.NewDesc("sandbox_egress_operator_condition",
			"1 while the condition of the SandboxEgress is True, 0 while it is False or Unknown.",
			[]string{"namespace", "policy", "condition"}, nil),
		sandboxes: prometheus.NewDesc("sandbox_egress_operator_sandboxes",
			"Sandboxes of the SandboxEgress that run or will run, by state: matched (all of them), ready, uninjected.",
			[]string{"namespace", "policy", "state"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.condition
	ch <- c.sandboxes
}

// Collect implements prometheus.Collector. Before the cache has started there is nothing.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	var list v1alpha1.SandboxEgressList
	if err := c.reader.List(ctx, &list); err != nil {
		return
	}
	for i := range list.Items {
		p := &list.Items[i]
		gauge := func(d *prometheus.Desc, v float64, label string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, p.Namespace, p.Name, label)
		}
		for _, cond := range p.Status.Conditions {
			value := 0.0
			if cond.Status == metav1.ConditionTrue {
				value = 1
			}
			gauge(c.condition, value, cond.Type)
		}
		gauge(c.sandboxes, float64(p.Status.Sandboxes.Matched), "matched")
		gauge(c.sandboxes, float64(p.Status.Sandboxes.Ready), "ready")
		gauge(c.sandboxes, float64(p.Status.Sandboxes.Uninjected), "uninjected")
	}
}
