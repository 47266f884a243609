package webhook

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// Paths of the handlers, as in config/webhook.
const (
	PathGuardPod              = "/mutate-pod-guard"
	PathMutatePod             = "/mutate-pod"
	PathValidatePod           = "/validate-pod"
	PathValidateSandboxEgress = "/validate-sandboxegress"
)

// Config of the handlers.
type Config struct {
	// Injector is what every sandbox gets; Image is required.
	Injector injector.Config
	// OperatorUser is the operator's own user name,
	// "system:serviceaccount:<namespace>:<name>". Its namespace, like kube-system, is left
	// out of admission, and so may hold no SandboxEgress.
	OperatorUser string
	// Metrics takes the counters; nil means controller-runtime's registry.
	Metrics prometheus.Registerer
}

// Setup registers the handlers on the manager's webhook server. Certificates, readiness
// and the webhook configurations are the manager's affair.
func Setup(mgr ctrl.Manager, cfg Config) error {
	if cfg.Injector.Image == "" {
		return errors.New("webhook: the image of relay and start gate is required")
	}
	namespace, err := operatorNamespace(cfg.OperatorUser)
	if err != nil {
		return err
	}
	registry := cfg.Metrics
	if registry == nil {
		registry = metrics.Registry
	}
	counters, err := newCounters(registry)
	if err != nil {
		return err
	}
	// Ask for the informer now, so that it is synced by the time the first pod comes.
	if _, err := mgr.GetCache().GetInformer(context.Background(), &v1alpha1.SandboxEgress{}, cache.BlockUntilSynced(false)); err != nil {
		return fmt.Errorf("webhook: watch SandboxEgress objects: %w", err)
	}

	policies := &policySource{cache: mgr.GetCache(), live: mgr.GetAPIReader(), patience: 2 * time.Second}
	decoder := admission.NewDecoder(mgr.GetScheme())
	server := mgr.GetWebhookServer()
	for path, h := range map[string]admission.Handler{
		PathGuardPod:    &podGuard{decoder: decoder, counters: counters},
		PathMutatePod:   &podMutator{decoder: decoder, counters: counters, policies: policies, injector: cfg.Injector, random: rand.Reader},
		PathValidatePod: &podValidator{decoder: decoder, counters: counters, policies: policies, injector: cfg.Injector},
		PathValidateSandboxEgress: &policyValidator{decoder: decoder, counters: counters, policies: policies,
			excluded: []string{"kube-system", namespace}},
	} {
		server.Register(path, &admission.Webhook{Handler: h})
	}
	return nil
}

func operatorNamespace(user string) (string, error) {
	parts := strings.Split(user, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return "", fmt.Errorf("webhook: operator user %q must be system:serviceaccount:<namespace>:<name>", user)
	}
	return parts[2], nil
}
