package webhook

import (
	"context"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// podGuard refuses reserved names in pods as users wrote them. Its webhook has
// reinvocationPolicy Never and stands before the mutator's, so what it sees is not
// injected yet. The keys are reserved in every pod it sees, matched or not: a pod that
// only looks like a sandbox would make a container id ambiguous.
type podGuard struct {
	decoder  admission.Decoder
	counters *counters
}

func (g *podGuard) Handle(_ context.Context, req admission.Request) admission.Response {
	if req.Operation != admissionv1.Create || req.SubResource != "" {
		return admission.Allowed("")
	}
	var pod corev1.Pod
	if err := g.decoder.Decode(req, &pod); err != nil {
		return g.counters.malformed(req, err)
	}
	if errs := injector.CheckReserved(&pod); len(errs) > 0 {
		return g.counters.invalid(req, reasonReserved, errs)
	}
	return admission.Allowed("")
}
