package managercmd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
)

func config(parts ...string) string {
	return filepath.Join(append([]string{managertest.Root(), "config"}, parts...)...)
}

func freePort() int {
	GinkgoHelper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}

// installed runs the manager as the ServiceAccount of the manifests, so that it has exactly
// the rights that config/rbac gives it.
func installed(change func(*managercmd.Options)) (*managertest.Manager, managercmd.Options) {
	GinkgoHelper()
	o := managertest.Options()
	o.WithoutWebhooks = false
	o.LeaderElect = true
	o.WebhookHost, o.WebhookPort = "127.0.0.1", freePort()
	o.HealthAddress = fmt.Sprintf("127.0.0.1:%d", freePort())
	o.CertDir = GinkgoT().TempDir()
	if change != nil {
		change(&o)
	}
	admin := env.Config
	env.Config = rest.CopyConfig(admin)
	env.Config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + o.Namespace + ":" + managercmd.ServiceAccount,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + o.Namespace, "system:authenticated"},
	}
	defer func() { env.Config = admin }()
	m, err := env.StartManager(o)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(m.Stop()).To(Succeed()) })
	return m, o
}

func get(url, bearer string) (int, string) {
	c := &http.Client{Transport: &http.Transport{
		//nolint:gosec // the metrics endpoint's certificate is made at start and known to nobody
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

var _ = Describe("An installation from config/default", Ordered, func() {
	BeforeAll(func(ctx SpecContext) {
		By("applying it server-side, twice, and client-side")
		for _, args := range [][]string{{"--server-side"}, {"--server-side"}, {"--server-side=false"}} {
			out, err := env.Kubectl(ctx, append([]string{"apply", "-k", config("default")}, args...)...)
			Expect(err).NotTo(HaveOccurred())
			Expect(out).To(ContainSubstring("sandbox-egress-manager"))
		}
	})

	It("makes its webhook certificate, is ready only then, guards its metrics, and gets by with its RBAC", func(ctx SpecContext) {
		port := freePort()
		_, o := installed(func(o *managercmd.Options) {
			o.MetricsAddress, o.Registerer = fmt.Sprintf("127.0.0.1:%d", port), managercmd.NewOptions().Registerer
		})
		ready := func() string {
			code, body := get("http://"+o.HealthAddress+"/readyz?verbose", "")
			return fmt.Sprint(code, " ", body)
		}
		secret := client.ObjectKey{Namespace: o.Namespace, Name: managercmd.WebhookCertSecret}
		Eventually(func() string { code, _ := get("http://"+o.HealthAddress+"/healthz", ""); return fmt.Sprint(code) }).Should(Equal("200"))
		Expect(ready()).To(And(HavePrefix("500"), ContainSubstring("[-]webhook")), "without a certificate the webhook does not serve")
		began := time.Now()
		Eventually(ready).Should(HavePrefix("200"))
		AddReportEntry("ready after", time.Since(began).String())

		var ca []byte
		var s corev1.Secret
		Expect(env.Client.Get(ctx, secret, &s)).To(Succeed())
		ca = s.Data["ca.crt"]
		Eventually(func(g Gomega) {
			var mutating admissionv1.MutatingWebhookConfiguration
			g.Expect(env.Client.Get(ctx, client.ObjectKey{Name: managercmd.MutatingConfig}, &mutating)).To(Succeed())
			for _, w := range mutating.Webhooks {
				g.Expect(bytes.Equal(w.ClientConfig.CABundle, ca)).To(BeTrue(), w.Name)
			}
			var validating admissionv1.ValidatingWebhookConfiguration
			g.Expect(env.Client.Get(ctx, client.ObjectKey{Name: managercmd.ValidatingConfig}, &validating)).To(Succeed())
			for _, w := range validating.Webhooks {
				g.Expect(bytes.Equal(w.ClientConfig.CABundle, ca)).To(BeTrue(), w.Name)
			}
		}).Should(Succeed())
		cert, _ := pem.Decode(s.Data["tls.crt"])
		parsed, err := x509.ParseCertificate(cert.Bytes)
		Expect(err).NotTo(HaveOccurred())
		Expect(parsed.VerifyHostname("sandbox-egress-webhook.sandbox-egress-system.svc")).To(Succeed())

		metrics := fmt.Sprintf("https://127.0.0.1:%d/metrics", port)
		Eventually(func() int { code, _ := get(metrics, ""); return code }).Should(Equal(http.StatusUnauthorized))
		// Refusals are remembered for a while, so the two callers are two accounts.
		Expect(env.Client.Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "scraper"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "sandbox-egress-metrics-reader"},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: o.Namespace, Name: "scraper"}},
		})).To(Succeed())
		bearer := func(name string) string {
			GinkgoHelper()
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}}
			Expect(env.Client.Create(ctx, account)).To(Succeed())
			request := new(authenticationv1.TokenRequest)
			Expect(env.Client.SubResource("token").Create(ctx, account, request)).To(Succeed())
			return request.Status.Token
		}
		code, _ := get(metrics, bearer("nobody"))
		Expect(code).To(Equal(http.StatusForbidden))
		code, body := get(metrics, bearer("scraper"))
		Expect(code).To(Equal(http.StatusOK))
		Expect(body).To(And(ContainSubstring("controller_runtime_reconcile_time_seconds"), ContainSubstring("sandbox_egress_operator_")))
	})

	Context("with the webhooks answering", Ordered, func() {
		BeforeAll(func(ctx SpecContext) {
			dir := GinkgoT().TempDir()
			ca := writeCertificate(dir)
			_, o := installed(func(o *managercmd.Options) { o.CertSource, o.CertDir = managercmd.CertSourceFiles, dir })
			Eventually(func() int { code, _ := get("http://"+o.HealthAddress+"/readyz", ""); return code }).Should(Equal(200))
			simulateServiceNetwork(ctx, o.WebhookPort, ca)
		})

		samples, err := filepath.Glob(config("samples", "*.yaml"))
		if err != nil || len(samples) == 0 {
			panic(fmt.Sprintf("no samples: %v", err))
		}
		for _, path := range samples {
			It("takes sample "+filepath.Base(path)+" to Ready (proxy availability simulated: envtest has no kubelet)", func(ctx SpecContext) {
				ns, err := env.Namespace(ctx)
				Expect(err).NotTo(HaveOccurred())
				switch filepath.Base(path) {
				case "pod.yaml", "job.yaml":
					_, err := env.Kubectl(ctx, "apply", "-n", ns, "-f", config("samples", "minimal.yaml"))
					Expect(err).NotTo(HaveOccurred())
					Eventually(func(g Gomega) {
						var p v1alpha1.SandboxEgress
						g.Expect(env.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "minimal"}, &p)).To(Succeed())
						g.Expect(p.Status.ProxyAddress).NotTo(BeEmpty())
					}).Should(Succeed())
				}
				// The webhook's cache may lag behind the address of the policy by a moment.
				Eventually(func() error { _, err := env.Kubectl(ctx, "apply", "-n", ns, "-f", path); return err }).Should(Succeed())
				var list v1alpha1.SandboxEgressList
				Expect(env.Client.List(ctx, &list, client.InNamespace(ns))).To(Succeed())
				Expect(list.Items).To(HaveLen(1))
				p := &list.Items[0]
				Eventually(func() error { return env.SimulateProxyAvailable(ctx, p, 2) }).Should(Succeed())
				Eventually(func(g Gomega) {
					live := new(v1alpha1.SandboxEgress)
					g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(p), live)).To(Succeed())
					c := meta.FindStatusCondition(live.Status.Conditions, v1alpha1.ConditionReady)
					g.Expect(c).NotTo(BeNil())
					g.Expect(c.Message).NotTo(BeEmpty())
					g.Expect(string(c.Status)).To(Equal("True"), c.Message)
				}).Should(Succeed())
				if filepath.Base(path) == "pod.yaml" {
					sandboxIsComplete(ctx, ns)
				}
			})
		}

		It("has the rights for a sandbox's whole life: quarantine, drift, completion, deletion", func(ctx SpecContext) {
			ns, err := env.Namespace(ctx)
			Expect(err).NotTo(HaveOccurred())
			p := managertest.Policy(ns, "agents")
			Expect(env.Client.Create(ctx, p)).To(Succeed())
			Eventually(func(g Gomega) {
				g.Expect(env.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
				g.Expect(p.Status.ProxyAddress).NotTo(BeEmpty())
			}).Should(Succeed())
			pod := managertest.Pod(ns, "agent", map[string]string{"app": "sandbox"})
			Eventually(func() error { pod.ResourceVersion = ""; return env.Client.Create(ctx, pod) }).Should(Succeed())
			name := client.ObjectKey{Namespace: ns, Name: v1alpha1.IdentityName(pod.Annotations[v1alpha1.IDKey])}
			identity := func() error {
				return errors.Join(env.Client.Get(ctx, name, new(corev1.Secret)), env.Client.Get(ctx, name, new(networkingv1.NetworkPolicy)))
			}
			gone := func() bool {
				return apierrors.IsNotFound(env.Client.Get(ctx, name, new(corev1.Secret))) && apierrors.IsNotFound(env.Client.Get(ctx, name, new(networkingv1.NetworkPolicy)))
			}
			Eventually(identity).Should(Succeed())
			quarantine := func(value string) {
				GinkgoHelper()
				patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%s}}}`, v1alpha1.QuarantineAnnotation, value)
				Expect(env.Client.Patch(ctx, pod.DeepCopy(), client.RawPatch("application/merge-patch+json", patch))).To(Succeed())
			}
			quarantine(`"true"`)
			Eventually(gone).Should(BeTrue())
			quarantine("null")
			Eventually(identity).Should(Succeed())

			deny := new(networkingv1.NetworkPolicy)
			denyKey := client.ObjectKey{Namespace: ns, Name: v1alpha1.DefaultDenyName("agents")}
			Expect(env.Client.Get(ctx, denyKey, deny)).To(Succeed())
			deny.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{}}
			Expect(env.Client.Update(ctx, deny)).To(Succeed())
			Eventually(func(g Gomega) {
				live := new(networkingv1.NetworkPolicy)
				g.Expect(env.Client.Get(ctx, denyKey, live)).To(Succeed())
				g.Expect(live.Spec.Egress).To(BeEmpty())
			}).Should(Succeed())

			Expect(env.Client.Delete(ctx, p)).To(Succeed())
			Eventually(gone).Should(BeTrue())
			Consistently(func() error { return env.Client.Get(ctx, denyKey, new(networkingv1.NetworkPolicy)) }, 500*time.Millisecond).Should(Succeed())
			Expect(env.SimulatePodStatus(ctx, pod, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })).To(Succeed())
			Eventually(func() bool { return apierrors.IsNotFound(env.Client.Get(ctx, client.ObjectKeyFromObject(p), p)) }).Should(BeTrue())
			Expect(apierrors.IsNotFound(env.Client.Get(ctx, denyKey, deny))).To(BeTrue())
		})

		It("refuses a bad policy with the field and what to write instead", func(ctx SpecContext) {
			ns, err := env.Namespace(ctx)
			Expect(err).NotTo(HaveOccurred())
			p := managertest.Policy(ns, "bad")
			p.Spec.AllowedHosts = []v1alpha1.HostPattern{"ok.example.com", "*.*.example.com"}
			Expect(env.Client.Create(ctx, p)).To(MatchError(ContainSubstring("spec.allowedHosts[1]")))
		})
	})
})

// sandboxIsComplete checks the whole way of the sample pod: admitted and injected by the
// webhook, with the identity that it waits for.
func sandboxIsComplete(ctx context.Context, ns string) {
	GinkgoHelper()
	var pod corev1.Pod
	Expect(env.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "sandbox"}, &pod)).To(Succeed())
	id := pod.Annotations[v1alpha1.IDKey]
	Expect(id).NotTo(BeEmpty())
	Expect(pod.Labels).To(HaveKeyWithValue(v1alpha1.IDKey, id))
	var secret corev1.Secret
	Eventually(func() error {
		return env.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: v1alpha1.IdentityName(id)}, &secret)
	}).Should(Succeed())
	Expect(string(secret.Data[v1alpha1.SecretKeyProxyURL])).To(HavePrefix("http://container_session-42:jwt_"))
	refs := 0
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == secret.Name {
				refs++
				Expect(secret.Data).To(HaveKey(e.ValueFrom.SecretKeyRef.Key))
			}
		}
	}
	Expect(refs).To(BeNumerically(">", 0), "the containers wait for the Secret")
}

// simulateServiceNetwork points the webhook configurations at a port of this machine, which
// is where the Service would lead.
func simulateServiceNetwork(ctx context.Context, port int, ca []byte) {
	GinkgoHelper()
	redirect := func(c *admissionv1.WebhookClientConfig) {
		if c.Service == nil {
			return
		}
		url := fmt.Sprintf("https://127.0.0.1:%d%s", port, *c.Service.Path)
		c.Service, c.URL, c.CABundle = nil, &url, ca
	}
	Eventually(func() error {
		var m admissionv1.MutatingWebhookConfiguration
		if err := env.Client.Get(ctx, client.ObjectKey{Name: managercmd.MutatingConfig}, &m); err != nil {
			return err
		}
		for i := range m.Webhooks {
			redirect(&m.Webhooks[i].ClientConfig)
		}
		return env.Client.Update(ctx, &m)
	}).Should(Succeed())
	Eventually(func() error {
		var v admissionv1.ValidatingWebhookConfiguration
		if err := env.Client.Get(ctx, client.ObjectKey{Name: managercmd.ValidatingConfig}, &v); err != nil {
			return err
		}
		for i := range v.Webhooks {
			redirect(&v.Webhooks[i].ClientConfig)
		}
		return env.Client.Update(ctx, &v)
	}).Should(Succeed())
}

// writeCertificate puts a self-signed certificate for 127.0.0.1 into dir and returns it.
func writeCertificate(dir string) []byte {
	GinkgoHelper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	Expect(err).NotTo(HaveOccurred())
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	Expect(err).NotTo(HaveOccurred())
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	Expect(os.WriteFile(filepath.Join(dir, "tls.crt"), cert, 0o600)).To(Succeed())
	Expect(os.WriteFile(filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600)).To(Succeed())
	return cert
}
