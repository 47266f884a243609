// Package kube is the proxy's live policy source: one SandboxEgress, the pods of its
// namespace, and the ConfigMap with the public keys, watched through a cache and turned
// into one immutable policy.State after another.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// gather is how long changes are gathered after one has been put in force. It bounds the
// cost of a namespace in which hundreds of pods start; a single change waits for nothing.
const gather = 20 * time.Millisecond

// Options name what is watched.
type Options struct {
	// Namespace and Policy name the SandboxEgress.
	Namespace, Policy string
	// ConfigMap has the public keys and the last good spec.
	ConfigMap string
	// Log gets what a person has to know; nil discards it.
	Log *slog.Logger
}

// Source implements policy.Source.
type Source struct {
	opt    Options
	log    *slog.Logger
	cfg    *rest.Config
	scheme *runtime.Scheme
	mapper meta.RESTMapper

	health *health
}

// New makes a source; Run starts it. It does not talk to the API server yet.
func New(cfg *rest.Config, o Options) (*Source, error) {
	if o.Namespace == "" || o.Policy == "" || o.ConfigMap == "" {
		return nil, errors.New("kube source: namespace, policy and ConfigMap are required")
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, eventsv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("kube source: %w", err)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{opt: o, log: o.Log, cfg: cfg, scheme: scheme, mapper: mapper(), health: &health{log: o.Log}}, nil
}

// mapper knows the few kinds that are read, so that discovery, which is the first thing to
// fail while an API server is upgraded, is not needed.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	add := func(gv schema.GroupVersion, kind, plural, singular string) {
		// The cache maps lists by the kind of the list.
		for _, k := range []string{kind, kind + "List"} {
			m.AddSpecific(gv.WithKind(k), gv.WithResource(plural), gv.WithResource(singular), meta.RESTScopeNamespace)
		}
	}
	add(corev1.SchemeGroupVersion, "Pod", "pods", "pod")
	add(corev1.SchemeGroupVersion, "ConfigMap", "configmaps", "configmap")
	add(eventsv1.SchemeGroupVersion, "Event", "events", "event")
	add(v1alpha1.SchemeGroupVersion, v1alpha1.Kind, "sandboxegresses", "sandboxegress")
	return m
}

// Run keeps store up to date until ctx ends. The first State comes when policy and keys
// have been read. With the API server away the last one stays in force.
func (s *Source) Run(ctx context.Context, store *policy.Store) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	c, err := s.cache()
	if err != nil {
		return err
	}
	dirty := make(chan struct{}, 1)
	for _, o := range []client.Object{&v1alpha1.SandboxEgress{}, &corev1.ConfigMap{}, &corev1.Pod{}} {
		informer, err := c.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
		if _, err := informer.AddEventHandler(marker(dirty)); err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
	}
	failed := make(chan error, 1)
	wg.Go(func() {
		if err := c.Start(ctx); err != nil {
			failed <- err
		}
	})
	if !c.WaitForCacheSync(ctx) {
		select {
		case err := <-failed:
			return fmt.Errorf("start the cache: %w", err)
		default:
			return nil // ctx has ended
		}
	}
	b := newBuilder(s.opt, s.log)
	for {
		if err := b.update(ctx, c, store); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("the cache ended: %w", err)
		case <-time.After(gather):
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("the cache ended: %w", err)
		case <-dirty:
		}
	}
}

func (s *Source) cache() (cache.Cache, error) {
	shared := true
	named := func(name string) cache.ByObject {
		return cache.ByObject{Namespaces: map[string]cache.Config{
			s.opt.Namespace: {FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)},
		}}
	}
	cfg := rest.CopyConfig(s.cfg)
	cfg.Wrap(s.health.wrap)
	c, err := cache.New(cfg, cache.Options{
		Scheme: s.scheme,
		Mapper: s.mapper,
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.SandboxEgress{}: named(s.opt.Policy),
			&corev1.ConfigMap{}:       named(s.opt.ConfigMap),
			&corev1.Pod{}:             {Namespaces: map[string]cache.Config{s.opt.Namespace: {}}, Transform: stripPod},
		},
		DefaultTransform: cache.TransformStripManagedFields(),
		// Nothing here changes an object, and a copy of every pod per change is most of the cost.
		DefaultUnsafeDisableDeepCopy: &shared,
	})
	if err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	return c, nil
}

// marker marks that something has changed; one mark stands for any number of changes.
func marker(dirty chan<- struct{}) toolscache.ResourceEventHandler {
	mark := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { mark() },
		UpdateFunc: func(_, _ any) { mark() },
		DeleteFunc: func(any) { mark() },
	}
}
