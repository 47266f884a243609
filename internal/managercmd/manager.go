package managercmd

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/effective"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/controllers/pod"
	"github.com/sandbox-egress/sandbox-egress/controllers/sandboxegress"
	"github.com/sandbox-egress/sandbox-egress/controllers/signingkey"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// reconcileTimeout frees a worker from an API server that does not answer.
const reconcileTimeout = time.Minute

// Scheme knows the built-in types and SandboxEgress.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register the built-in types: %w", err)
	}
	if err := v1alpha1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register SandboxEgress: %w", err)
	}
	return s, nil
}

// New builds the operator's manager; Start runs it.
func New(ctx context.Context, cfg *rest.Config, o Options) (manager.Manager, error) {
	p, err := o.parse()
	if err != nil {
		return nil, err
	}
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	caching, err := cacheOptions()
	if err != nil {
		return nil, fmt.Errorf("limit the cache: %w", err)
	}
	// The caches of a standby are warm when it becomes the leader.
	warm := true
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme:                  scheme,
		Cache:                   caching,
		NewClient:               o.NewClient,
		LeaderElection:          o.LeaderElect,
		LeaderElectionID:        leaderElectionID,
		LeaderElectionNamespace: o.Namespace,
		// main ends right after Start returns, which is what makes this safe.
		LeaderElectionReleaseOnCancel: true,
		HealthProbeBindAddress:        o.HealthAddress,
		Metrics: metricsserver.Options{
			BindAddress:    o.MetricsAddress,
			SecureServing:  true,
			FilterProvider: filters.WithAuthenticationAndAuthorization,
		},
		WebhookServer: webhook.NewServer(webhook.Options{Host: o.WebhookHost, Port: o.WebhookPort, CertDir: o.CertDir}),
		Controller:    config.Controller{EnableWarmup: &warm, ReconciliationTimeout: reconcileTimeout},
	})
	if err != nil {
		return nil, fmt.Errorf("build the manager: %w", err)
	}
	if err := addControllers(ctx, mgr, o, p); err != nil {
		return nil, err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("add the liveness check: %w", err)
	}
	if err := mgr.AddReadyzCheck("cache", cacheSynced(mgr)); err != nil {
		return nil, fmt.Errorf("add the cache readiness check: %w", err)
	}
	if o.WithoutWebhooks {
		return mgr, nil
	}
	return mgr, addWebhooks(mgr, o) //nolint:contextcheck // the webhooks live as long as the manager
}

func addControllers(ctx context.Context, mgr manager.Manager, o Options, p parsed) error {
	metrics, err := pod.NewMetrics(o.Registerer)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	if err := o.Registerer.Register(sandboxegress.NewCollector(mgr.GetCache())); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	network := netpol.Config{DNSNamespace: o.DNSNamespace, NodeLocalDNS: p.nodeLocalDNS, MetricsNamespaces: o.MetricsNamespaces}
	resolver := effective.NewResolver(mgr.GetClient())
	toPolicies, toPods := make(chan event.GenericEvent, 1), make(chan event.GenericEvent, 1)
	keeper := &signingkey.Keeper{
		Client: mgr.GetClient(), Reader: mgr.GetAPIReader(),
		Secret:  types.NamespacedName{Namespace: o.Namespace, Name: SigningKeySecret},
		Clock:   o.Clock,
		Policy:  token.RingPolicy{Interval: o.KeyRotation, Propagation: o.KeyPropagation, MaxTokenTTL: maxTokenTTL},
		Changed: func() { signal(toPolicies); signal(toPods) },
	}
	keys := &signingkey.Reconciler{Keeper: keeper, Recorder: mgr.GetEventRecorder("sandbox-egress")}
	if err := keys.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("add the signing key controller: %w", err)
	}
	policies := &sandboxegress.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Keys: keeper, Resolver: resolver, Network: network, Clock: o.Clock,
		Proxy: sandboxegress.ProxyConfig{
			Image: o.Image, ImagePullPolicy: corev1.PullPolicy(o.ImagePullPolicy), DrainTimeout: o.DrainTimeout,
		},
	}
	if err := policies.SetupWithManager(mgr, toPolicies); err != nil {
		return fmt.Errorf("add the SandboxEgress controller: %w", err)
	}
	sandboxes := &pod.Reconciler{
		Client: mgr.GetClient(), Keys: keeper, Resolver: resolver, Network: network, Clock: o.Clock, Jitter: o.Jitter,
		Metrics: metrics, Recorder: mgr.GetEventRecorder("sandbox-egress"),
		MaxTokenTTL: maxTokenTTL, Concurrency: o.PodConcurrency,
	}
	if err := sandboxes.SetupWithManager(ctx, mgr, toPods); err != nil {
		return fmt.Errorf("add the pod controller: %w", err)
	}
	return nil
}

// signal does not wait: one event that has not been read yet says the same.
func signal(ch chan<- event.GenericEvent) {
	select {
	case ch <- event.GenericEvent{Object: &v1alpha1.SandboxEgress{}}:
	default:
	}
}

func cacheSynced(mgr manager.Manager) healthz.Checker {
	return func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return fmt.Errorf("the cache is not in sync with the API server yet")
		}
		return nil
	}
}
