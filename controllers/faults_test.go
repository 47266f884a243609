package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
)

// writes sits between a manager and the API server and sees every write about one
// namespace: objects in it, and the Namespace itself.
type writes struct {
	namespace string
	// fail is asked before the nth write, counted from 1.
	fail func(n int64, what string) error
	n    atomic.Int64
	mu   sync.Mutex
	log  []string
}

var errInjected = errors.New("injected fault")

func (w *writes) before(verb, kind, namespace, name string) error {
	if namespace != w.namespace && (kind != "Namespace" || name != w.namespace) {
		return nil
	}
	what := verb + " " + kind + " " + generic(name)
	n := w.n.Add(1)
	w.mu.Lock()
	w.log = append(w.log, what)
	w.mu.Unlock()
	if w.fail != nil {
		return w.fail(n, what)
	}
	return nil
}

// generic replaces the random part of names.
func generic(name string) string {
	if strings.HasPrefix(name, "egress-") {
		return "egress-ID"
	}
	if strings.HasPrefix(name, "t-") {
		return "NS"
	}
	return name
}

func (w *writes) object(verb string, c client.Client, o client.Object) error {
	gvk, err := c.GroupVersionKindFor(o)
	if err != nil {
		return err
	}
	return w.before(verb, gvk.Kind, o.GetNamespace(), o.GetName())
}

func (w *writes) config(verb string, c runtime.ApplyConfiguration) error {
	a := c.(interface {
		GetKind() *string
		GetName() *string
		GetNamespace() *string
	})
	namespace := ""
	if a.GetNamespace() != nil {
		namespace = *a.GetNamespace()
	}
	return w.before(verb, *a.GetKind(), namespace, *a.GetName())
}

// newClient is a client.NewClientFunc.
func (w *writes) newClient(cfg *rest.Config, o client.Options) (client.Client, error) {
	c, err := client.NewWithWatch(cfg, o)
	if err != nil {
		return nil, err
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := w.object("create", c, o); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			if err := w.object("update", c, o); err != nil {
				return err
			}
			return c.Update(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := w.object("patch", c, o); err != nil {
				return err
			}
			return c.Patch(ctx, o, p, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if err := w.object("delete", c, o); err != nil {
				return err
			}
			return c.Delete(ctx, o, opts...)
		},
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if err := w.config("apply", o); err != nil {
				return err
			}
			return c.Apply(ctx, o, opts...)
		},
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			if err := w.config("apply "+sub, o); err != nil {
				return err
			}
			return c.SubResource(sub).Apply(ctx, o, opts...)
		},
	}), nil
}

func (w *writes) made() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.log...)
}

// guard watches the NetworkPolicies of one namespace in the order in which the API server
// stored them, and remembers every moment at which one allowed egress to sandboxes while
// the default-deny policy was not there.
type guard struct {
	mu       sync.Mutex
	breaches []string
	events   int
	stop     func()
}

func watchIsolation(ctx context.Context, ns, policy string) *guard {
	GinkgoHelper()
	w, err := env.Client.Watch(ctx, &networkingv1.NetworkPolicyList{}, client.InNamespace(ns))
	Expect(err).NotTo(HaveOccurred())
	g := new(guard)
	done := make(chan struct{})
	g.stop = func() { w.Stop(); <-done }
	go func() {
		defer close(done)
		live := map[string]*networkingv1.NetworkPolicy{}
		for e := range w.ResultChan() {
			np, ok := e.Object.(*networkingv1.NetworkPolicy)
			if !ok {
				continue
			}
			if e.Type == watch.Deleted {
				delete(live, np.Name)
			} else {
				live[np.Name] = np
			}
			g.check(live, policy)
		}
	}()
	return g
}

func (g *guard) check(live map[string]*networkingv1.NetworkPolicy, policy string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events++
	deny := live[v1alpha1.DefaultDenyName(policy)]
	for name, np := range live {
		if name != v1alpha1.ProxyName(policy) && np != deny && len(np.Spec.Egress) > 0 && deny == nil {
			g.breaches = append(g.breaches, fmt.Sprintf("event %d: %s allows egress without a default-deny policy", g.events, name))
		}
	}
}

func (g *guard) verdict() []string {
	g.stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.events == 0 {
		return []string{"the guard saw nothing"}
	}
	return g.breaches
}

// endState describes all that the operator made in ns, without what differs between runs.
func endState(ctx context.Context, ns string) ([]string, error) {
	var out []string
	for _, list := range []client.ObjectList{
		&networkingv1.NetworkPolicyList{}, &corev1.SecretList{}, &corev1.ConfigMapList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{},
		&appsv1.DeploymentList{}, &policyv1.PodDisruptionBudgetList{}, &rbacv1.RoleList{}, &rbacv1.RoleBindingList{}, &v1alpha1.SandboxEgressList{},
	} {
		if err := env.Client.List(ctx, list, client.InNamespace(ns)); err != nil {
			return nil, err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			o := item.(client.Object)
			if o.GetName() == "kube-root-ca.crt" {
				continue
			}
			line := fmt.Sprintf("%T %s labels=%d owners=%d finalizers=%v", o, generic(o.GetName()), len(o.GetLabels()), len(o.GetOwnerReferences()), o.GetFinalizers())
			switch o := o.(type) {
			case *networkingv1.NetworkPolicy:
				line += fmt.Sprintf(" egress=%d ingress=%d", len(o.Spec.Egress), len(o.Spec.Ingress))
			case *v1alpha1.SandboxEgress:
				c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady)
				if c == nil {
					return nil, errors.New("no status yet")
				}
				line += fmt.Sprintf(" %s/%s %v %v", c.Status, c.Reason, o.Status.Sandboxes, o.Status.ProxyAddress != "")
			}
			out = append(out, line)
		}
	}
	sort.Strings(out)
	return out, nil
}

var _ = Describe("A manager that fails", func() {
	start := func(w *writes) *managertest.Manager {
		GinkgoHelper()
		o := managertest.Options()
		o.Clock = clock
		if w != nil {
			o.NewClient = w.newClient
		}
		m, err := env.StartManager(o)
		Expect(err).NotTo(HaveOccurred())
		// For a spec that fails: a manager that it leaves would work on the next one's objects.
		DeferCleanup(func() { _ = m.Stop() })
		return m
	}
	type phase struct {
		name string
		do   func(ctx context.Context, p *v1alpha1.SandboxEgress)
		// after is what has to be true before the phase's end state is taken.
		after func(ctx context.Context, g Gomega, p *v1alpha1.SandboxEgress)
	}
	phases := []phase{
		{
			name: "creation",
			do: func(ctx context.Context, p *v1alpha1.SandboxEgress) {
				create(ctx, p)
				injected(ctx, p, "agent")
			},
			after: func(ctx context.Context, g Gomega, p *v1alpha1.SandboxEgress) {
				g.Expect(condition(ctx, p, v1alpha1.ConditionReady)()).To(HavePrefix("False/NoReplicaAvailable"))
				var live v1alpha1.SandboxEgress
				g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(p), &live)).To(Succeed())
				g.Expect(live.Status.Sandboxes.Matched).To(Equal(int32(1)))
			},
		},
		{
			name: "deletion",
			do: func(ctx context.Context, p *v1alpha1.SandboxEgress) {
				Expect(env.Client.Delete(ctx, p)).To(Succeed())
				Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(Or(HavePrefix("False/SandboxesStillRun"), HavePrefix("False/NoReplica"), HavePrefix("no condition")))
				pod := &corev1.Pod{}
				pod.Namespace, pod.Name = p.Namespace, "agent"
				Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })).To(Succeed())
			},
			after: func(ctx context.Context, g Gomega, p *v1alpha1.SandboxEgress) {
				var live v1alpha1.SandboxEgress
				g.Expect(apierrors.IsNotFound(env.Client.Get(ctx, client.ObjectKeyFromObject(p), &live))).To(BeTrue())
			},
		},
	}

	It("ends in the same state after a crash at any write, and never allows egress without a default-deny policy", func(ctx SpecContext) {
		// The reference: nothing fails. settled is asked until the end state repeats.
		reference := map[string][]string{}
		counts, sure := map[string]int64{}, map[string]int64{}
		settled := func(p *v1alpha1.SandboxEgress, ph phase, want []string) []string {
			GinkgoHelper()
			var state []string
			Eventually(func(g Gomega) {
				ph.after(ctx, g, p)
				s, err := endState(ctx, p.Namespace)
				g.Expect(err).NotTo(HaveOccurred())
				if want != nil {
					g.Expect(s).To(Equal(want))
				}
				state = s
			}).Should(Succeed())
			return state
		}
		ns := newNamespace(ctx)
		ref := &writes{namespace: ns}
		m := start(ref)
		p := managertest.Policy(ns, "agents")
		for _, ph := range phases {
			from := ref.n.Load()
			ph.do(ctx, p)
			settled(p, ph, nil)
			time.Sleep(600 * time.Millisecond) // writes that gather
			reference[ph.name] = settled(p, ph, nil)
			counts[ph.name] = ref.n.Load() - from
			// Status writes and repetitions depend on how events fall together; the rest must come.
			distinct := map[string]bool{}
			for _, what := range ref.made()[from:] {
				distinct[what] = !strings.Contains(what, " status ")
			}
			for _, ok := range distinct {
				if ok {
					sure[ph.name]++
				}
			}
		}
		Expect(m.Stop()).To(Succeed())
		AddReportEntry("writes", strings.Join(ref.made(), "\n"))
		Expect(sure["creation"]).To(BeNumerically(">=", 12))
		Expect(sure["deletion"]).To(BeNumerically(">=", 12))

		for i, ph := range phases {
			for n := int64(1); n <= counts[ph.name]; n++ {
				By(fmt.Sprintf("%s: crash at write %d of %d", ph.name, n, counts[ph.name]))
				ns := newNamespace(ctx)
				g := watchIsolation(ctx, ns, "agents")
				p := managertest.Policy(ns, "agents")
				if i > 0 {
					setup := start(nil)
					phases[0].do(ctx, p)
					settled(p, phases[0], reference[phases[0].name])
					Expect(setup.Stop()).To(Succeed())
				}
				w := &writes{namespace: ns}
				crash := make(chan struct{})
				var once sync.Once
				w.fail = func(k int64, _ string) error {
					if k < n {
						return nil
					}
					// After the crash nothing of this manager reaches the API server.
					once.Do(func() { close(crash) })
					return errInjected
				}
				failing := start(w)
				ph.do(ctx, p)
				select {
				case <-crash:
				case <-time.After(2 * time.Second):
					Expect(n).To(BeNumerically(">", sure[ph.name]), "write %d never came: %v", n, w.made())
				}
				Expect(failing.Stop()).To(Succeed())
				healthy := start(nil)
				settled(p, ph, reference[ph.name])
				Expect(healthy.Stop()).To(Succeed())
				Expect(g.verdict()).To(BeEmpty())
				sweep(ctx, ns)
			}
		}
	})

	It("gets over every write failing once, and over conflicts, without a restart", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		seen := sync.Map{}
		w := &writes{namespace: ns}
		w.fail = func(n int64, what string) error {
			if _, again := seen.LoadOrStore(what, true); again {
				return nil
			}
			if n%2 == 0 {
				return apierrors.NewConflict(schema.GroupResource{Resource: "things"}, what, errInjected)
			}
			return apierrors.NewInternalError(errInjected)
		}
		m := start(w)
		g := watchIsolation(ctx, ns, "agents")
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod), 30*time.Second).Should(Succeed())
		Eventually(hasSecret(ctx, pod)).Should(Succeed())
		Eventually(func() error { _, err := deployment(ctx, p); return err }, 30*time.Second).Should(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady), 30*time.Second).Should(HavePrefix("False/NoReplicaAvailable"))
		Expect(g.verdict()).To(BeEmpty())
		clean(ctx, ns)
		Expect(m.Stop()).To(Succeed())
	})

	It("writes nothing when nothing has changed, also after a restart", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		m := start(nil)
		p := managertest.Policy(ns, "agents")
		p.Spec.PodSelector = nil
		p.Spec.PrivateNetworks = []v1alpha1.CIDR{"10.20.0.0/16", "fd12::/16"}
		p.Spec.Proxy.Upstream = &v1alpha1.UpstreamSpec{URL: "http://corp:3128", CredentialsSecret: &v1alpha1.SecretReference{Name: "corp"}}
		p.Spec.Proxy.PodTemplate = v1alpha1.ProxyPodTemplate{
			Annotations: map[string]string{"a": "b"}, NodeSelector: map[string]string{"c": "d"}, PriorityClassName: "system-node-critical",
			Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
		}
		create(ctx, p)
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Eventually(condition(ctx, p, v1alpha1.ConditionReady)).Should(HavePrefix("False/NoReplicaAvailable"))
		time.Sleep(time.Second)
		Expect(m.Stop()).To(Succeed())

		w := &writes{namespace: ns}
		m = start(w)
		time.Sleep(1500 * time.Millisecond)
		poke(ctx, pod)
		annotate(ctx, p, "test-poke", "1")
		d, err := deployment(ctx, p)
		Expect(err).NotTo(HaveOccurred())
		annotate(ctx, d, "deployment.kubernetes.io/revision", "1")
		time.Sleep(1500 * time.Millisecond)
		Expect(w.made()).To(BeEmpty())
		clean(ctx, ns)
		Expect(m.Stop()).To(Succeed())
	})

	It("hands over to the second of two managers at once, and only one works at a time", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		elected := func() (*managertest.Manager, *writes) {
			w := &writes{namespace: ns}
			o := managertest.Options()
			o.Clock, o.LeaderElect, o.NewClient = clock, true, w.newClient
			m, err := env.StartManager(o)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(func() { _ = m.Stop() })
			return m, w
		}
		one, w1 := elected()
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(Succeed())
		two, w2 := elected()
		pod := injected(ctx, p, "agent")
		Eventually(identityNP(ctx, pod)).Should(Succeed())
		Expect(w2.made()).To(BeEmpty(), "the standby does not write")
		Expect(one.Stop()).To(Succeed())
		stopped := time.Now()
		before := len(w1.made())
		next := injected(ctx, p, "next")
		// ReleaseOnCancel: no waiting for the lease to expire (15 s), only for the next try (2 s).
		Eventually(identityNP(ctx, next), 6*time.Second).Should(Succeed())
		AddReportEntry("takeover after", time.Since(stopped).String())
		Expect(w1.made()).To(HaveLen(before))
		Expect(w2.made()).NotTo(BeEmpty())
		s, err := identitySecret(ctx, next)
		Expect(err).NotTo(HaveOccurred())
		_, err = verify(ctx, p, string(s.Data[v1alpha1.SecretKeyToken]))
		Expect(err).NotTo(HaveOccurred(), "both use the same signing key")
		clean(ctx, ns)
		Expect(two.Stop()).To(Succeed())
	})

	It("serves 500 sandboxes that start at once", func(ctx SpecContext) {
		const n = 500
		ns := newNamespace(ctx)
		w := &writes{namespace: ns}
		m := start(w)
		p := managertest.Policy(ns, "agents")
		create(ctx, p)
		Eventually(func() error { _, err := deployment(ctx, p); return err }).Should(Succeed())
		from := w.n.Load()
		began := time.Now()
		var wg sync.WaitGroup
		for c := range 10 {
			wg.Go(func() {
				defer GinkgoRecover()
				for i := c; i < n; i += 10 {
					injected(ctx, p, fmt.Sprintf("agent-%d", i))
				}
			})
		}
		wg.Wait()
		created := time.Since(began)
		Eventually(func(g Gomega) {
			var policies networkingv1.NetworkPolicyList
			g.Expect(env.Client.List(ctx, &policies, client.InNamespace(ns), client.MatchingLabels{v1alpha1.ComponentLabel: v1alpha1.ComponentIdentity})).To(Succeed())
			g.Expect(policies.Items).To(HaveLen(n))
			var secrets corev1.SecretList
			g.Expect(env.Client.List(ctx, &secrets, client.InNamespace(ns), client.MatchingLabels{v1alpha1.ComponentLabel: v1alpha1.ComponentIdentity})).To(Succeed())
			g.Expect(secrets.Items).To(HaveLen(n))
		}, time.Minute, 100*time.Millisecond).Should(Succeed())
		all := time.Since(began)
		Eventually(func(g Gomega) {
			var live v1alpha1.SandboxEgress
			g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(p), &live)).To(Succeed())
			g.Expect(live.Status.Sandboxes.Matched).To(Equal(int32(n)))
		}).Should(Succeed())
		AddReportEntry("500 sandboxes", fmt.Sprintf("pods created in %s, all identities after %s, %d writes", created, all, w.n.Load()-from))
		// Two writes for each sandbox, and some for the status and for stale reads.
		Expect(w.n.Load() - from).To(BeNumerically("<", 3*n))

		began = time.Now()
		sweep(ctx, ns)
		Eventually(func(g Gomega) {
			var secrets corev1.SecretList
			g.Expect(env.Client.List(ctx, &secrets, client.InNamespace(ns))).To(Succeed())
			g.Expect(secrets.Items).To(BeEmpty())
			var list v1alpha1.SandboxEgressList
			g.Expect(env.Client.List(ctx, &list, client.InNamespace(ns))).To(Succeed())
			g.Expect(list.Items).To(BeEmpty())
		}, time.Minute, 100*time.Millisecond).Should(Succeed())
		AddReportEntry("500 sandboxes", fmt.Sprintf("all gone after %s", time.Since(began)))
		Expect(m.Stop()).To(Succeed())
	})
})

// sweep deletes pods and policies without waiting.
func sweep(ctx context.Context, ns string) {
	GinkgoHelper()
	in := client.InNamespace(ns)
	Expect(env.Client.DeleteAllOf(ctx, &corev1.Pod{}, in, client.GracePeriodSeconds(0))).To(Succeed())
	Expect(env.Client.DeleteAllOf(ctx, &v1alpha1.SandboxEgress{}, in)).To(Succeed())
}
