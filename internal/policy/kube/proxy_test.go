package kube_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
)

// liveProxy is the real data plane on the live source, with an echo server as the origin of
// every address that passes the guard. Names resolve to one documentation address, which
// privateNetworks has to open.
type liveProxy struct {
	addr, addr6 string
	store       *policy.Store
	source      *kube.Source
	stop        func()
}

type oneAddress struct{}

const origin = "203.0.113.7"

func (oneAddress) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(origin)}, nil
}

func startProxy(p *v1alpha1.SandboxEgress) *liveProxy {
	GinkgoHelper()
	return startProxyWith(env.Config, p)
}

func startProxyWith(cfg *rest.Config, p *v1alpha1.SandboxEgress) *liveProxy {
	GinkgoHelper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	wg.Go(func() { serveEcho(echo) })

	source, err := kube.New(cfg, kube.Options{Namespace: p.Namespace, Policy: p.Name, ConfigMap: v1alpha1.JWKSName(p.Name), Log: slog.New(slog.NewTextHandler(GinkgoWriter, nil))})
	Expect(err).NotTo(HaveOccurred())
	denials, err := source.Denials("test")
	Expect(err).NotTo(HaveOccurred())
	store := new(policy.Store)
	server, err := proxy.New(proxy.Options{
		Store: store, Audit: audit.SinkFunc(func(*audit.Record) {}), Denials: denials, Resolver: oneAddress{},
		Dial: func(ctx context.Context, addr netip.AddrPort, check proxy.Control) (net.Conn, error) {
			if err := check(addr, nil); err != nil {
				return nil, err
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", echo.Addr().String())
		},
	})
	Expect(err).NotTo(HaveOccurred())
	wg.Go(func() { denials.Run(ctx) })
	wg.Go(func() {
		defer GinkgoRecover()
		Expect(source.Run(ctx, store)).To(Succeed())
	})
	l := &liveProxy{store: store, source: source}
	for _, at := range []struct{ listen, addr *string }{{ptr("127.0.0.1:0"), &l.addr}, {ptr("[::1]:0"), &l.addr6}} {
		ln, err := net.Listen("tcp", *at.listen)
		Expect(err).NotTo(HaveOccurred())
		*at.addr = ln.Addr().String()
		wg.Go(func() {
			defer GinkgoRecover()
			Expect(server.Serve(ln)).To(Succeed())
		})
	}
	l.stop = func() {
		server.Close()
		cancel()
		_ = echo.Close()
		wg.Wait()
	}
	return l
}

func ptr[T any](v T) *T { return &v }

func serveEcho(ln net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			_, _ = io.Copy(c, c)
		})
	}
}

// tunnel asks for a CONNECT tunnel and returns the status line; the connection is open when
// it starts with 200.
func tunnel(addr, authority, containerID, raw string) (net.Conn, string) {
	GinkgoHelper()
	c, err := net.Dial("tcp", addr)
	Expect(err).NotTo(HaveOccurred())
	Expect(c.SetDeadline(time.Now().Add(20 * time.Second))).To(Succeed())
	_, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", authority, authority, proxytest.Auth(containerID, raw))
	Expect(err).NotTo(HaveOccurred())
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	Expect(err).NotTo(HaveOccurred())
	return c, res.Status
}

func status(addr, authority, containerID, raw string) string {
	GinkgoHelper()
	c, s := tunnel(addr, authority, containerID, raw)
	_ = c.Close()
	return s
}

func echoes(c net.Conn) {
	GinkgoHelper()
	_, err := io.WriteString(c, "ping")
	Expect(err).NotTo(HaveOccurred())
	b := make([]byte, 4)
	_, err = io.ReadFull(c, b)
	Expect(err).NotTo(HaveOccurred())
	Expect(string(b)).To(Equal("ping"))
}

// closedIn waits until the peer closes c and returns how long that took.
func closedIn(c net.Conn) time.Duration {
	GinkgoHelper()
	start := time.Now()
	_, err := c.Read(make([]byte, 1))
	Expect(err).To(HaveOccurred(), "the tunnel carried a byte that nobody sent")
	Expect(strings.Contains(err.Error(), "timeout")).To(BeFalse(), "the tunnel stayed open")
	return time.Since(start)
}

var _ = Describe("The real proxy on the real API server", func() {
	var (
		p   *v1alpha1.SandboxEgress
		pod *corev1.Pod
		raw string
		id  string
		px  *liveProxy
	)
	setHosts := func(ctx context.Context, hosts ...v1alpha1.HostPattern) {
		GinkgoHelper()
		Eventually(func() error {
			live := new(v1alpha1.SandboxEgress)
			if err := env.Client.Get(ctx, client.ObjectKeyFromObject(p), live); err != nil {
				return err
			}
			live.Spec.AllowedHosts = hosts
			return env.Client.Update(ctx, live)
		}).Should(Succeed())
	}
	annotate := func(ctx context.Context, name string, value any) {
		GinkgoHelper()
		v := "null"
		if value != nil {
			v = fmt.Sprintf("%q", value)
		}
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%s}}}`, name, v)
		Expect(env.Client.Patch(ctx, pod.DeepCopy(), client.RawPatch("application/merge-patch+json", patch))).To(Succeed())
	}
	setIPs := func(ctx context.Context, ips ...string) {
		GinkgoHelper()
		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) {
			s.Phase, s.PodIP, s.PodIPs = corev1.PodRunning, ips[0], nil
			for _, ip := range ips {
				s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
			}
		})).To(Succeed())
	}

	BeforeEach(func(ctx SpecContext) {
		ns, err := env.Namespace(ctx)
		Expect(err).NotTo(HaveOccurred())
		p = managertest.Policy(ns, "agents")
		p.Spec.AllowedHosts = []v1alpha1.HostPattern{"db.example.net:5432"}
		p.Spec.PrivateNetworks = []v1alpha1.CIDR{"203.0.113.0/24"}
		Expect(env.Client.Create(ctx, p)).To(Succeed())
		pod, err = managertest.Injected(p, "agent")
		Expect(err).NotTo(HaveOccurred())
		Expect(env.Client.Create(ctx, pod)).To(Succeed())
		setIPs(ctx, "127.0.0.1")
		id = pod.Annotations[v1alpha1.IDKey]
		var secret corev1.Secret
		Eventually(func() error {
			return env.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: v1alpha1.IdentityName(id)}, &secret)
		}).Should(Succeed())
		raw = string(secret.Data[v1alpha1.SecretKeyToken])
		px = startProxy(p)
		DeferCleanup(px.stop)
		Eventually(px.store.Ready).Should(BeTrue())
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
	})

	It("puts an added host into force in less than a second, with the Env token that the sandbox has", func(ctx SpecContext) {
		Expect(status(px.addr, "new.example.net:5432", id, raw)).To(HavePrefix("403 Egress-Blocked host_not_allowed"))
		setHosts(ctx, "db.example.net:5432", "new.example.net:5432")
		start := time.Now()
		Eventually(func() string { return status(px.addr, "new.example.net:5432", id, raw) }, time.Second).Should(HavePrefix("200"))
		GinkgoWriter.Printf("added host effective after %s\n", time.Since(start))
		AddReportEntry("added host effective after", time.Since(start).String())
	})

	It("closes an open tunnel in less than a second when its host is removed, and leaves the others", func(ctx SpecContext) {
		setHosts(ctx, "db.example.net:5432", "keep.example.net:5432")
		Eventually(func() string { return status(px.addr, "keep.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		kept, s := tunnel(px.addr, "keep.example.net:5432", id, raw)
		Expect(s).To(HavePrefix("200"))
		defer func() { _ = kept.Close() }()
		c, s := tunnel(px.addr, "db.example.net:5432", id, raw)
		Expect(s).To(HavePrefix("200"))
		defer func() { _ = c.Close() }()
		echoes(c)
		setHosts(ctx, "keep.example.net:5432")
		took := closedIn(c)
		AddReportEntry("tunnel closed after", took.String())
		Expect(took).To(BeNumerically("<", time.Second))
		echoes(kept)
	})

	It("closes open tunnels in less than a second on quarantine and on completion", func(ctx SpecContext) {
		c, _ := tunnel(px.addr, "db.example.net:5432", id, raw)
		defer func() { _ = c.Close() }()
		echoes(c)
		annotate(ctx, v1alpha1.QuarantineAnnotation, "true")
		Expect(closedIn(c)).To(BeNumerically("<", time.Second))
		Expect(status(px.addr, "db.example.net:5432", id, raw)).NotTo(HavePrefix("200"))

		annotate(ctx, v1alpha1.QuarantineAnnotation, nil)
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		c, _ = tunnel(px.addr, "db.example.net:5432", id, raw)
		defer func() { _ = c.Close() }()
		echoes(c)
		Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })).To(Succeed())
		Expect(closedIn(c)).To(BeNumerically("<", time.Second))
	})

	It("closes open tunnels in less than a second when the pod is deleted", func(ctx SpecContext) {
		c, _ := tunnel(px.addr, "db.example.net:5432", id, raw)
		defer func() { _ = c.Close() }()
		echoes(c)
		Expect(env.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		Expect(closedIn(c)).To(BeNumerically("<", time.Second))
	})

	It("narrows one pod by its annotation, and to nothing by a broken one", func(ctx SpecContext) {
		setHosts(ctx, "db.example.net:5432", "two.example.net:5432")
		Eventually(func() string { return status(px.addr, "two.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		annotate(ctx, v1alpha1.AllowedHostsAnnotation, "db.example.net:5432, other.example.net:5432")
		Eventually(func() string { return status(px.addr, "two.example.net:5432", id, raw) }, time.Second).Should(HavePrefix("403"))
		Expect(status(px.addr, "db.example.net:5432", id, raw)).To(HavePrefix("200"))
		Expect(status(px.addr, "other.example.net:5432", id, raw)).To(HavePrefix("403"), "an annotation never widens")
		annotate(ctx, v1alpha1.AllowedHostsAnnotation, "*.*.bad, db.example.net:5432")
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }, time.Second).Should(HavePrefix("403"))
		annotate(ctx, v1alpha1.AllowedHostsAnnotation, nil)
		Eventually(func() string { return status(px.addr, "two.example.net:5432", id, raw) }, time.Second).Should(HavePrefix("200"))
	})

	It("binds a token to all current addresses of its pod, of both families", func(ctx SpecContext) {
		Expect(status(px.addr6, "db.example.net:5432", id, raw)).NotTo(HavePrefix("200"), "::1 is not the pod's yet")
		setIPs(ctx, "127.0.0.1", "::1")
		Eventually(func() string { return status(px.addr6, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		Expect(status(px.addr, "db.example.net:5432", id, raw)).To(HavePrefix("200"))
		setIPs(ctx, "192.0.2.9")
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).ShouldNot(HavePrefix("200"))
	})

	It("refuses both pods that use one container id", func(ctx SpecContext) {
		second, err := managertest.Injected(p, "twin")
		Expect(err).NotTo(HaveOccurred())
		second.Annotations[v1alpha1.ContainerIDAnnotation] = id
		Expect(env.Client.Create(ctx, second)).To(Succeed())
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).ShouldNot(HavePrefix("200"))
		Expect(env.SimulatePodStatus(ctx, second, func(s *corev1.PodStatus) { s.Phase = corev1.PodFailed })).To(Succeed())
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
	})

	It("keeps the last valid policy in force, also in a proxy that starts while the object is invalid", func(ctx SpecContext) {
		setHosts(ctx, "*.*.bad", "evil.example.net:5432")
		Consistently(func() string { return status(px.addr, "db.example.net:5432", id, raw) }, 500*time.Millisecond, 50*time.Millisecond).Should(HavePrefix("200"))
		Expect(status(px.addr, "evil.example.net:5432", id, raw)).To(HavePrefix("403"))
		fresh := startProxy(p)
		defer fresh.stop()
		Eventually(fresh.store.Ready).Should(BeTrue())
		Eventually(func() string { return status(fresh.addr, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		Expect(status(fresh.addr, "evil.example.net:5432", id, raw)).To(HavePrefix("403"))
	})

	It("cuts every sandbox off when the policy is deleted", func(ctx SpecContext) {
		c, _ := tunnel(px.addr, "db.example.net:5432", id, raw)
		defer func() { _ = c.Close() }()
		echoes(c)
		Expect(env.Client.Delete(ctx, p)).To(Succeed())
		Expect(closedIn(c)).To(BeNumerically("<", time.Second))
		Expect(status(px.addr, "db.example.net:5432", id, raw)).NotTo(HavePrefix("200"))
	})

	It("says on the pod what was denied, once", func(ctx SpecContext) {
		for range 5 {
			Expect(status(px.addr, "evil.example.net:5432", id, raw)).To(HavePrefix("403"))
		}
		notes := func() []string {
			var list corev1.EventList
			Expect(env.Client.List(ctx, &list, client.InNamespace(p.Namespace))).To(Succeed())
			var out []string
			for _, e := range list.Items {
				if e.Reason == kube.EventReasonDenied && e.InvolvedObject.Name == pod.Name && e.InvolvedObject.UID == pod.UID {
					out = append(out, e.Message)
				}
			}
			return out
		}
		Eventually(notes).Should(ContainElement(ContainSubstring("evil.example.net:5432")))
		Consistently(notes, 300*time.Millisecond).Should(HaveLen(1))
	})

	It("keeps the last state while the API server is away, and catches up when it is back", func(ctx SpecContext) {
		server, err := url.Parse(env.Config.Host)
		Expect(err).NotTo(HaveOccurred())
		l := newLink(server.Host)
		DeferCleanup(l.close)
		cfg := rest.CopyConfig(env.Config)
		cfg.Host = "https://" + l.addr
		px := startProxyWith(cfg, p)
		DeferCleanup(px.stop)
		Eventually(func() string { return status(px.addr, "db.example.net:5432", id, raw) }).Should(HavePrefix("200"))
		Expect(px.source.Degraded()).To(Succeed())
		open, _ := tunnel(px.addr, "db.example.net:5432", id, raw)
		defer func() { _ = open.Close() }()

		l.cut()
		Eventually(px.source.Degraded).Should(HaveOccurred())
		setHosts(ctx, "other.example.net:5432")
		late, err := managertest.Injected(p, "late")
		Expect(err).NotTo(HaveOccurred())
		Expect(env.Client.Create(ctx, late)).To(Succeed())
		Expect(env.SimulatePodStatus(ctx, late, func(s *corev1.PodStatus) { s.PodIP, s.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}} })).To(Succeed())
		lateID := late.Annotations[v1alpha1.IDKey]
		var secret corev1.Secret
		Eventually(func() error {
			return env.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.IdentityName(lateID)}, &secret)
		}).Should(Succeed())
		lateToken := string(secret.Data[v1alpha1.SecretKeyToken])
		echoes(open)
		Expect(px.store.Ready()).To(BeTrue())
		Expect(status(px.addr, "db.example.net:5432", id, raw)).To(HavePrefix("200"), "the last policy")
		Expect(status(px.addr, "other.example.net:5432", id, raw)).To(HavePrefix("403"))
		Expect(status(px.addr, "db.example.net:5432", lateID, lateToken)).NotTo(HavePrefix("200"), "a container that it does not know")

		l.restore()
		Eventually(func() string { return status(px.addr, "other.example.net:5432", lateID, lateToken) }, time.Minute, 50*time.Millisecond).Should(HavePrefix("200"))
		closedIn(open)
		Eventually(px.source.Degraded, 15*time.Second).Should(Succeed())
	})
})

// link is a way to the API server that can be cut.
type link struct {
	addr, to string
	ln       net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	down     bool
	conns    map[net.Conn]struct{}
}

func newLink(to string) *link {
	GinkgoHelper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	l := &link{addr: ln.Addr().String(), to: to, ln: ln, conns: map[net.Conn]struct{}{}}
	l.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.carry(c) })
		}
	})
	return l
}

// keep reports whether c may be used; it is closed with the link.
func (l *link) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		_ = c.Close()
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *link) carry(c net.Conn) {
	if !l.keep(c) {
		return
	}
	far, err := net.Dial("tcp", l.to)
	if err != nil {
		_ = c.Close()
		return
	}
	if !l.keep(far) {
		_ = c.Close()
		return
	}
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{c, far}, {far, c}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = pair[0].Close()
			_ = pair[1].Close()
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	delete(l.conns, far)
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for c := range l.conns {
		_ = c.Close()
	}
}

func (l *link) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

func (l *link) close() {
	_ = l.ln.Close()
	l.cut()
	l.wg.Wait()
}
