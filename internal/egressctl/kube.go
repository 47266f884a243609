package egressctl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// proxyContainer is the name the operator gives it; a mesh may add others to the pod.
const proxyContainer = "egress-proxy"

// kubeLogs is the proxy pods of one policy, through the Kubernetes API.
type kubeLogs struct {
	client            kubernetes.Interface
	namespace, policy string
}

// connect uses the kubeconfig as kubectl does.
func (a *App) connect(kubeconfig, kubeContext, namespace, policy string) (logSource, error) {
	if a.logs != nil {
		return a.logs(namespace, policy), nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: kubeContext})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, fmt.Errorf("--namespace: %w", err)
		}
	}
	config.UserAgent = "egressctl/" + a.Version
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return &kubeLogs{client: client, namespace: namespace, policy: policy}, nil
}

func (k *kubeLogs) pods(ctx context.Context) ([]string, error) {
	selector, err := labels.ValidatedSelectorFromSet(match.ProxyLabels(k.policy))
	if err != nil {
		return nil, fmt.Errorf("POLICY %q is no name of a SandboxEgress: %w", clipText(k.policy), err)
	}
	list, err := k.client.CoreV1().Pods(k.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("list the proxy pods of %s/%s: %w", k.namespace, k.policy, err)
	}
	var names []string
	for i := range list.Items {
		if list.Items[i].Status.Phase != corev1.PodPending {
			names = append(names, list.Items[i].Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (k *kubeLogs) open(ctx context.Context, pod string, from time.Time, follow bool) (io.ReadCloser, error) {
	options := &corev1.PodLogOptions{Container: proxyContainer, Follow: follow}
	if !from.IsZero() {
		since := metav1.NewTime(from)
		options.SinceTime = &since
	}
	return k.client.CoreV1().Pods(k.namespace).GetLogs(pod, options).Stream(ctx)
}
