package install

import (
	"context"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

var chart = filepath.Join(root, "charts", "sandbox-egress")

func get[T client.Object](ctx context.Context, o T, ns, name string) (T, error) {
	return o, k8s.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, o)
}

var _ = Describe("The chart", Ordered, func() {
	It("refuses to install admission policies whose kind is not there", func(ctx SpecContext) {
		out, err := helm(ctx, "install", release, chart, "--create-namespace", "--set", "crds.install=false")
		Expect(err).To(HaveOccurred())
		Expect(out).To(ContainSubstring("crds.install is false"))
		_, err = get(ctx, new(admissionv1.ValidatingAdmissionPolicy), "", "sandbox-egress-isolation")
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "%v", err)
	})

	It("installs into a namespace of its own", func(ctx SpecContext) {
		out, err := helm(ctx, "install", release, chart, "--create-namespace")
		Expect(err).NotTo(HaveOccurred(), out)
		Expect(out).To(ContainSubstring("Nothing is isolated yet"))
		_, err = get(ctx, new(appsv1.Deployment), namespace, "sandbox-egress-manager")
		Expect(err).NotTo(HaveOccurred())
	})

	It("refuses policies while no operator answers, and leaves ordinary pods alone", func(ctx SpecContext) {
		Expect(k8s.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team-a"}})).To(Succeed())
		Eventually(func() error {
			return k8s.Create(ctx, policy())
		}).WithContext(ctx).WithTimeout(20 * time.Second).Should(MatchError(ContainSubstring("policy.egress.sandbox.dev")))
		Expect(k8s.Create(ctx, pod("ordinary", nil), client.DryRunAll)).To(Succeed())
		err := k8s.Create(ctx, pod("sandbox", map[string]string{"app": "sandbox"}), client.DryRunAll)
		Expect(err).To(MatchError(ContainSubstring("sandbox.egress.sandbox.dev")))
	})

	It("grants editors of a namespace its policies, but not their status", func(ctx SpecContext) {
		// The aggregation itself is kube-controller-manager's work, which is not here.
		role, err := get(ctx, new(rbacv1.ClusterRole), "", "sandbox-egress-edit")
		Expect(err).NotTo(HaveOccurred())
		Expect(role.Labels).To(HaveKeyWithValue("rbac.authorization.k8s.io/aggregate-to-edit", "true"))
		for _, rule := range role.Rules {
			Expect(rule.Resources).NotTo(ContainElement("sandboxegresses/status"))
		}
	})

	It("leaves certificate and CA alone when it upgrades", func(ctx SpecContext) {
		// As the operator's certificate rotation does.
		secret, err := get(ctx, new(corev1.Secret), namespace, "sandbox-egress-webhook-cert")
		Expect(err).NotTo(HaveOccurred())
		secret.Data = map[string][]byte{"tls.crt": []byte("certificate")}
		Expect(k8s.Update(ctx, secret, client.FieldOwner("sandbox-egress"))).To(Succeed())
		webhooks, err := get(ctx, new(admissionv1.MutatingWebhookConfiguration), "", "sandbox-egress-mutating")
		Expect(err).NotTo(HaveOccurred())
		for i := range webhooks.Webhooks {
			webhooks.Webhooks[i].ClientConfig.CABundle = environment.Config.CAData
		}
		Expect(k8s.Update(ctx, webhooks, client.FieldOwner("sandbox-egress"))).To(Succeed())

		out, err := helm(ctx, "upgrade", release, chart, "--set", "logLevel=debug", "--reset-then-reuse-values")
		Expect(err).NotTo(HaveOccurred(), out)

		secret, err = get(ctx, new(corev1.Secret), namespace, "sandbox-egress-webhook-cert")
		Expect(err).NotTo(HaveOccurred())
		Expect(secret.Data).To(HaveKey("tls.crt"))
		webhooks, err = get(ctx, new(admissionv1.MutatingWebhookConfiguration), "", "sandbox-egress-mutating")
		Expect(err).NotTo(HaveOccurred())
		for _, w := range webhooks.Webhooks {
			Expect(w.ClientConfig.CABundle).NotTo(BeEmpty(), w.Name)
		}
		manager, err := get(ctx, new(appsv1.Deployment), namespace, "sandbox-egress-manager")
		Expect(err).NotTo(HaveOccurred())
		Expect(manager.Spec.Template.Spec.Containers[0].Args).To(ContainElement("--log-level=debug"))
	})

	It("keeps the CRD, the policies and the signing key on uninstall", func(ctx SpecContext) {
		key := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sandbox-egress-signing-key"}}
		Expect(k8s.Create(ctx, key)).To(Succeed())
		// Without its webhook a policy can be made: here it stands for those of a running cluster.
		validating := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "sandbox-egress-validating"}}
		Expect(k8s.Delete(ctx, validating)).To(Succeed())
		Eventually(func() error { return k8s.Create(ctx, policy()) }).WithContext(ctx).WithTimeout(20 * time.Second).Should(Succeed())

		out, err := helm(ctx, "uninstall", release)
		Expect(err).NotTo(HaveOccurred(), out)

		_, err = get(ctx, new(apiextensionsv1.CustomResourceDefinition), "", "sandboxegresses.egress.sandbox.dev")
		Expect(err).NotTo(HaveOccurred())
		kept, err := get(ctx, new(v1alpha1.SandboxEgress), "team-a", "agents")
		Expect(err).NotTo(HaveOccurred())
		Expect(kept.DeletionTimestamp).To(BeNil())
		_, err = get(ctx, new(corev1.Secret), namespace, key.Name)
		Expect(err).NotTo(HaveOccurred())
		_, err = get(ctx, new(admissionv1.MutatingWebhookConfiguration), "", "sandbox-egress-mutating")
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "webhooks without an operator would stop every sandbox: %v", err)
		_, err = get(ctx, new(admissionv1.ValidatingAdmissionPolicy), "", "sandbox-egress-isolation")
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "%v", err)
		Eventually(func() error {
			return k8s.Create(ctx, pod("ordinary", nil), client.DryRunAll)
		}).WithContext(ctx).WithTimeout(20 * time.Second).Should(Succeed())
	})

	It("takes the CRD and the policies over when it is installed again", func(ctx SpecContext) {
		out, err := helm(ctx, "install", release, chart)
		Expect(err).NotTo(HaveOccurred(), out)
		_, err = get(ctx, new(v1alpha1.SandboxEgress), "team-a", "agents")
		Expect(err).NotTo(HaveOccurred())
	})
})
