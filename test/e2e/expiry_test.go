package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

// expiring are pods with tokens of the shortest lifetime, which run while the other specs do.
var expiring struct {
	env, relay   *corev1.Pod
	envExpires   time.Time
	relayToken   string
	relayExpires time.Time
	monitor      *platform.Monitor
	begin        time.Time
}

const shortest = 5 * time.Minute

func expirySpecsBegin() {
	Describe("tokens that expire", func() {
		It("are handed out", func(ctx SpecContext) {
			ns := newNamespaceForSuite(ctx, "expiry")
			env := platform.Policy(ns, "env", "allowed.example")
			env.Spec.Token.TTL = &metav1.Duration{Duration: shortest}
			relay := platform.Policy(ns, "relay", "allowed.example")
			relay.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "relay-sandbox"}}
			relay.Spec.Delivery = v1alpha1.DeliveryRelay
			relay.Spec.Token.TTL = &metav1.Duration{Duration: shortest}
			ready(ctx, env, relay)
			expiring.env, expiring.relay = platform.Sandbox(ns, "env"), platform.Pod(ns, "relay", "relay-sandbox")
			// Ends on SIGTERM, so that the spec can restart the container.
			expiring.env.Spec.Containers[0].Command = []string{"sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"}
			ready(ctx, expiring.env, expiring.relay)
			expiring.begin = time.Now()
			expiring.envExpires = expiry(envToken(ctx, expiring.env))
			expiring.relayToken = secretToken(ctx, expiring.relay)
			expiring.relayExpires = expiry(expiring.relayToken)
			expiring.monitor = startMonitor(ctx, expiring.relay)
			Expect(curl(ctx, expiring.env, "http://allowed.example/")).To(haveStatus(200))
		}, SpecTimeout(2*long))
	})
}

func expirySpecsEnd() {
	Describe("after its token's expiry", func() {
		BeforeEach(func(ctx SpecContext) {
			Expect(expiring.relayExpires).NotTo(BeZero(), "the spec that hands the tokens out has failed")
			// Verifiers allow for clocks that differ by 30 s.
			wait := time.Until(latest(expiring.envExpires, expiring.relayExpires).Add(40 * time.Second))
			GinkgoWriter.Printf("tokens expire in %s\n", wait.Round(time.Second))
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}, NodeTimeout(shortest+2*time.Minute))

		It("a client under Relay has gone on with a renewed one", func(ctx SpecContext) {
			renewed := secretToken(ctx, expiring.relay)
			Expect(renewed).NotTo(Equal(expiring.relayToken))
			Expect(expiry(renewed)).To(BeTemporally(">", time.Now()))
			Expect(curl(ctx, expiring.relay, "https://allowed.example/")).To(haveStatus(200))
			r, err := expiring.monitor.Report(ctx, expiring.begin)
			Expect(err).NotTo(HaveOccurred())
			GinkgoWriter.Println(r)
			Expect(r.AllowedOK).To(BeNumerically(">", 100), r.String())
			Expect(r.Outage).To(BeNumerically("<=", unnoticed), r.String())
			for status := range r.AllowedStatus {
				Expect(status).To(BeElementOf(0, 200), r.String())
			}
			Expect(r.Denied).NotTo(HaveKey(200), r.String())
		}, SpecTimeout(long))

		It("a sandbox under Env is told so, and works again after a restart of its container", func(ctx SpecContext) {
			Expect(curl(ctx, expiring.env, "http://allowed.example/")).To(refused(407, "token_expired"))
			shell(ctx, expiring.env, "kill 1")
			Eventually(func(g Gomega) {
				g.Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(expiring.env), expiring.env)).To(Succeed())
				g.Expect(expiring.env.Status.ContainerStatuses[0].RestartCount).To(BeEquivalentTo(1))
				g.Expect(platform.PodReady(expiring.env)).To(Succeed())
			}).WithContext(ctx).WithTimeout(long).Should(Succeed())
			eventuallyCurl(ctx, expiring.env, soon, haveStatus(200), "http://allowed.example/")
		}, SpecTimeout(2*long))
	})
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func envToken(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	u, err := url.Parse(proxyURL(ctx, pod))
	Expect(err).NotTo(HaveOccurred())
	password, _ := u.User.Password()
	return strings.TrimPrefix(password, "jwt_")
}

func secretToken(ctx context.Context, pod *corev1.Pod) string {
	GinkgoHelper()
	Expect(p.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
	secret := &corev1.Secret{}
	key := client.ObjectKey{Namespace: pod.Namespace, Name: v1alpha1.IdentityName(pod.Annotations[v1alpha1.IDKey])}
	Expect(p.Client.Get(ctx, key, secret)).To(Succeed())
	return string(secret.Data[v1alpha1.SecretKeyToken])
}

// expiry reads the exp claim (RFC 7519 section 4.1.4) without verifying anything.
func expiry(token string) time.Time {
	GinkgoHelper()
	parts := strings.Split(token, ".")
	Expect(parts).To(HaveLen(3))
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	Expect(err).NotTo(HaveOccurred())
	var claims struct {
		Expires int64 `json:"exp"`
	}
	Expect(json.Unmarshal(payload, &claims)).To(Succeed())
	return time.Unix(claims.Expires, 0)
}
