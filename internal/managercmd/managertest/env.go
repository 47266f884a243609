// Package managertest runs the operator's manager in process against a real API server, for
// the envtest suites. There is no kubelet, no scheduler, no kube-controller-manager: what
// those would do is simulated by functions that say so in their names.
package managertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
)

// Env is one API server with the CRD installed.
type Env struct {
	// Client reads and writes without a cache.
	Client client.WithWatch
	Config *rest.Config
	env    *envtest.Environment
	dir    string
}

// Root is the root of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Start starts etcd and kube-apiserver from KUBEBUILDER_ASSETS. flags, "name=value", are
// added to the API server's.
func Start(flags map[string]string) (*Env, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS is not set: run the suites with make test-envtest, which builds etcd and kube-apiserver")
	}
	env := &envtest.Environment{
		CRDDirectoryPaths:        []string{filepath.Join(Root(), "config", "crd", "bases")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStopTimeout:  30 * time.Second,
		ControlPlaneStartTimeout: 2 * time.Minute,
	}
	args := env.ControlPlane.GetAPIServer().Configure()
	for name, value := range flags {
		args.Set(name, value)
	}
	cfg, err := env.Start()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the API server: %w", err), env.Stop())
	}
	// The API server's own fairness is what limits, as in production.
	cfg.QPS = -1
	scheme, err := managercmd.Scheme()
	if err != nil {
		return nil, errors.Join(err, env.Stop())
	}
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, errors.Join(err, env.Stop())
	}
	dir, err := os.MkdirTemp("", "managertest-")
	if err != nil {
		return nil, errors.Join(err, env.Stop())
	}
	e := &Env{Client: c, Config: cfg, env: env, dir: dir}
	if err := os.WriteFile(e.kubeconfig(), env.KubeConfig, 0o600); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	if err := e.createNamespace(context.Background(), managercmd.NewOptions().Namespace); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

// Stop stops the API server and etcd.
func (e *Env) Stop() error { return errors.Join(e.env.Stop(), os.RemoveAll(e.dir)) }

func (e *Env) kubeconfig() string { return filepath.Join(e.dir, "kubeconfig") }

// Kubectl runs kubectl as the cluster's administrator and returns what it says.
func (e *Env) Kubectl(ctx context.Context, args ...string) (string, error) {
	//nolint:gosec // the kubectl of the test's own assets
	cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+e.kubeconfig(), "HOME="+e.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (e *Env) createNamespace(ctx context.Context, name string) error {
	return e.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// Namespace makes a namespace with a fresh name.
func (e *Env) Namespace(ctx context.Context) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}
	err := e.Client.Create(ctx, ns)
	return ns.Name, err
}

// Options are those of a manager alone: no ports, no webhooks, no election.
func Options() managercmd.Options {
	o := managercmd.NewOptions()
	o.Image = "example.test/sandbox-egress:test"
	o.LeaderElect = false
	o.MetricsAddress = "0"
	o.HealthAddress = "0"
	o.WithoutWebhooks = true
	// Metrics of one process are registered once; here several managers run in it.
	o.Registerer = prometheus.NewRegistry()
	return o
}

// Clock is a settable clock that starts at the present.
func Clock() *clocktesting.FakePassiveClock {
	return clocktesting.NewFakePassiveClock(time.Now())
}

// Manager is a running manager.
type Manager struct {
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
	err    error
}

// StartManager builds and starts a manager.
func (e *Env) StartManager(o managercmd.Options) (*Manager, error) {
	ctx, cancel := context.WithCancel(context.Background())
	mgr, err := managercmd.New(ctx, rest.CopyConfig(e.Config), o)
	if err != nil {
		cancel()
		return nil, err
	}
	m := &Manager{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.err = mgr.Start(ctx)
	}()
	return m, nil
}

// Stop stops the manager, waits for it, and returns what it ended with.
func (m *Manager) Stop() error {
	m.once.Do(m.cancel)
	<-m.done
	return m.err
}

// Kill stops the manager without waiting, as a crash does.
func (m *Manager) Kill() { m.once.Do(m.cancel) }

// Done is closed when the manager has ended.
func (m *Manager) Done() <-chan struct{} { return m.done }

// Policy is a SandboxEgress with defaults and one allowed host.
func Policy(namespace, name string) *v1alpha1.SandboxEgress {
	return &v1alpha1.SandboxEgress{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.SandboxEgressSpec{AllowedHosts: []v1alpha1.HostPattern{"api.example.com"}},
	}
}

// Pod is a pod with the labels and nothing else.
func Pod(namespace, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			// The admission of service accounts is on, and nobody makes them here.
			AutomountServiceAccountToken: new(bool),
			Containers:                   []corev1.Container{{Name: "main", Image: "example.test/agent:1"}},
		},
	}
}

// Injected is a sandbox of p as the admission webhook admits it.
func Injected(p *v1alpha1.SandboxEgress, name string) (*corev1.Pod, error) {
	id, err := injector.NewID(rand.Reader)
	if err != nil {
		return nil, err
	}
	delivery := p.Spec.Delivery
	if delivery == "" {
		delivery = v1alpha1.DeliveryEnv
	}
	labels := map[string]string{"app": "sandbox"}
	if p.Spec.PodSelector != nil && len(p.Spec.PodSelector.MatchLabels) > 0 {
		labels = p.Spec.PodSelector.DeepCopy().MatchLabels
	}
	if p.Spec.NetworkPolicy.Granularity != v1alpha1.GranularityShared {
		labels[v1alpha1.IDKey] = id
	}
	pod := Pod(p.Namespace, name, labels)
	pod.Annotations = map[string]string{
		v1alpha1.IDKey:              id,
		v1alpha1.PolicyKey:          p.Name,
		v1alpha1.InjectedAnnotation: string(delivery),
	}
	return pod, nil
}

// SimulatePodStatus sets what a kubelet would.
func (e *Env) SimulatePodStatus(ctx context.Context, pod *corev1.Pod, change func(*corev1.PodStatus)) error {
	live := new(corev1.Pod)
	if err := e.Client.Get(ctx, client.ObjectKeyFromObject(pod), live); err != nil {
		return err
	}
	change(&live.Status)
	return e.Client.Status().Update(ctx, live)
}

// SimulateProxyAvailable sets the Deployment's status as its controller would with n
// replicas that serve.
func (e *Env) SimulateProxyAvailable(ctx context.Context, p *v1alpha1.SandboxEgress, n int32) error {
	var d appsv1.Deployment
	if err := e.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.ProxyName(p.Name)}, &d); err != nil {
		return err
	}
	d.Status.Replicas, d.Status.ReadyReplicas, d.Status.AvailableReplicas = n, n, n
	d.Status.ObservedGeneration = d.Generation
	return e.Client.Status().Update(ctx, &d)
}
