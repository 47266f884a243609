package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube"
)

// kubeSource is --policy-source=kube: the live objects of one SandboxEgress.
type kubeSource struct {
	policy, configMap string
}

func (k *kubeSource) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&k.policy, "policy", "", "for --policy-source=kube: the SandboxEgress, as namespace/name")
	fs.StringVar(&k.configMap, "jwks-configmap", "", "for --policy-source=kube: the ConfigMap with the public keys, in the same namespace")
}

func (k *kubeSource) New(log *slog.Logger) (policy.Source, audit.Sink, error) {
	namespace, name, ok := strings.Cut(k.policy, "/")
	if !ok || namespace == "" || name == "" {
		return nil, nil, fmt.Errorf("--policy: %q must be namespace/name", k.policy)
	}
	if k.configMap == "" {
		return nil, nil, errors.New("--jwks-configmap is missing")
	}
	// client-go and controller-runtime log through these two.
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	cfg, err := config.GetConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("find the API server: %w", err)
	}
	source, err := kube.New(cfg, kube.Options{Namespace: namespace, Policy: name, ConfigMap: k.configMap, Log: log})
	if err != nil {
		return nil, nil, err
	}
	instance, err := os.Hostname()
	if err != nil {
		return nil, nil, fmt.Errorf("find the name of this host: %w", err)
	}
	denials, err := source.Denials(instance)
	if err != nil {
		return nil, nil, err
	}
	return &withDenials{source, denials}, denials, nil
}

// withDenials writes Events for as long as the source runs.
type withDenials struct {
	source  policy.Source
	denials *kube.Denials
}

func (w *withDenials) Run(ctx context.Context, store *policy.Store) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { w.denials.Run(ctx); return nil })
	g.Go(func() error { return w.source.Run(ctx, store) })
	return g.Wait()
}
