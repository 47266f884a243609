package webhook

import (
	"context"
	"fmt"
	"io"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// podMutator makes matched pods sandboxes.
type podMutator struct {
	decoder  admission.Decoder
	counters *counters
	policies *policySource
	injector injector.Config
	random   io.Reader
}

func (m *podMutator) Handle(ctx context.Context, req admission.Request) admission.Response {
	var pod corev1.Pod
	if err := m.decoder.DecodeRaw(req.Object, &pod); err != nil {
		return m.counters.malformed(req, err)
	}
	switch {
	case req.Operation == admissionv1.Create && req.SubResource == "":
		return m.create(ctx, req, &pod)
	case req.Operation == admissionv1.Update && req.SubResource == "ephemeralcontainers":
		return m.ephemeral(req, &pod)
	default:
		return admission.Allowed("")
	}
}

func (m *podMutator) create(ctx context.Context, req admission.Request, pod *corev1.Pod) admission.Response {
	policy, err := m.policies.admitting(ctx, req.Namespace, pod.Labels)
	if err != nil {
		return m.counters.answer(req, err)
	}
	if policy == nil {
		return unmatched(req, pod)
	}
	id, err := injector.NewID(m.random)
	if err != nil {
		return m.counters.answer(req, err)
	}
	injected, err := injector.Inject(m.injector, injector.Input{Pod: pod, Policy: policy, ID: id})
	if err != nil {
		return m.counters.answer(req, err)
	}
	resp, err := patched(injector.Patch(pod, injected))
	if err != nil {
		return m.counters.answer(req, err)
	}
	if pod.Annotations[v1alpha1.IDKey] == "" && !dryRun(req) {
		m.counters.injections.WithLabelValues(injected.Annotations[v1alpha1.InjectedAnnotation]).Inc()
	}
	return resp
}

// unmatched admits the pod as it is. app=sandbox without any policy is likely an oversight
// and the pod has the egress of an ordinary one, so its creator is told.
func unmatched(req admission.Request, pod *corev1.Pod) admission.Response {
	resp := admission.Allowed("")
	if pod.Labels["app"] == "sandbox" && pod.Labels[v1alpha1.ComponentLabel] == "" {
		resp = resp.WithWarnings(fmt.Sprintf("no SandboxEgress in namespace %q selects this pod with app=sandbox: its egress is not restricted", req.Namespace))
	}
	return resp
}

// ephemeral gives debug containers the sandbox's environment. The identity comes from the
// stored pod, which its creator cannot change any more.
func (m *podMutator) ephemeral(req admission.Request, pod *corev1.Pod) admission.Response {
	var old corev1.Pod
	if err := m.decoder.DecodeRaw(req.OldObject, &old); err != nil {
		return m.counters.malformed(req, err)
	}
	resp, err := patched(injector.Patch(pod, injector.InjectEphemeral(pod, &old)))
	if err != nil {
		return m.counters.answer(req, err)
	}
	return resp
}
