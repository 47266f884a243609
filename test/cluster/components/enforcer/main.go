// Command netpol-enforcer enforces NetworkPolicies on the packets that an
// iptables NFQUEUE rule hands to it. What a policy means is decided by SIG
// Network's own engine; only the packet plumbing is ours, because upstream's
// needs the kernel's nft_queue, which is less common than xt_NFQUEUE.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"
)

type options struct {
	kubeconfig string
	node       string
	queue      uint
	readyFile  string
}

func main() {
	var opts options
	klog.InitFlags(nil)
	flag.StringVar(&opts.kubeconfig, "kubeconfig", "", "how to reach the API server")
	flag.StringVar(&opts.node, "node", "", "name of the node whose pods are protected")
	flag.UintVar(&opts.queue, "queue", 100, "NFQUEUE number")
	flag.StringVar(&opts.readyFile, "ready-file", "", "written once the queue is served")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		klog.ErrorS(err, "netpol-enforcer failed")
		klog.Flush()
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	config, err := clientcmd.BuildConfigFromFlags("", opts.kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	namespaces := factory.Core().V1().Namespaces()
	pods := factory.Core().V1().Pods()
	policies := factory.Networking().V1().NetworkPolicies()
	byIP, err := podinfo.NewInformerResolver(pods.Informer())
	if err != nil {
		return fmt.Errorf("pod index: %w", err)
	}
	provider := podinfo.NewInformerProvider(pods, namespaces, nil, []podinfo.IPResolver{byIP})
	engine := networkpolicy.NewPolicyEngine(provider, []api.PolicyEvaluator{
		networkpolicy.NewStandardNetworkPolicy(opts.node, namespaces, pods, policies),
	})
	changed := make(chan struct{}, 1)
	engine.SetDataplaneSyncCallbacks(func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	factory.Start(ctx.Done())
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("informer of %v did not sync: %w", kind, context.Cause(ctx))
		}
	}

	queue, err := openQueue(ctx, uint16(opts.queue), engine)
	if err != nil {
		return err
	}
	defer func() { _ = queue.Close() }()
	if opts.readyFile != "" {
		if err := writeReady(opts.readyFile); err != nil {
			return err
		}
	}
	klog.InfoS("serving", "queue", opts.queue, "node", opts.node)

	recheck := make(chan os.Signal, 1)
	signal.Notify(recheck, syscall.SIGHUP)
	defer signal.Stop(recheck)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-recheck:
			if err := cutForbidden(ctx, engine); err != nil {
				klog.ErrorS(err, "established connections were not checked again")
			}
		case <-changed:
			// Several objects change together; one pass covers them.
			time.Sleep(50 * time.Millisecond)
			if err := cutForbidden(ctx, engine); err != nil {
				klog.ErrorS(err, "established connections were not checked again")
			}
		}
	}
}

func writeReady(path string) error {
	tmp := filepath.Join(filepath.Dir(path), ".ready")
	if err := os.WriteFile(tmp, nil, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
