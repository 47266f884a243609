package webhook_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery"
)

// A wrong field name in CEL is an error at run time only, and then for every pod. In a
// cluster the controller manager's checker reports it on status; envtest has none.
var _ = It("The admission policies pass Kubernetes' type checker", func(ctx SpecContext) {
	d, err := discovery.NewDiscoveryClientForConfig(environment.Config)
	Expect(err).NotTo(HaveOccurred())
	checker := &validating.TypeChecker{SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: d}, RestMapper: k8s.RESTMapper()}
	var list admissionregistrationv1.ValidatingAdmissionPolicyList
	Expect(k8s.List(ctx, &list)).To(Succeed())
	Expect(list.Items).To(HaveLen(4))
	for i := range list.Items {
		Expect(checker.Check(&list.Items[i])).To(BeEmpty(), list.Items[i].Name)
	}
})
