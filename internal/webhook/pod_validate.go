package webhook

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// podValidator judges final pods.
type podValidator struct {
	decoder  admission.Decoder
	counters *counters
	policies *policySource
	injector injector.Config
}

func (v *podValidator) Handle(ctx context.Context, req admission.Request) admission.Response {
	var pod, old corev1.Pod
	if err := v.decoder.DecodeRaw(req.Object, &pod); err != nil {
		return v.counters.malformed(req, err)
	}
	if req.Operation == admissionv1.Update {
		if err := v.decoder.DecodeRaw(req.OldObject, &old); err != nil {
			return v.counters.malformed(req, err)
		}
	}
	switch {
	case req.Operation == admissionv1.Create && req.SubResource == "":
		return v.create(ctx, req, &pod)
	case req.Operation == admissionv1.Update && req.SubResource == "ephemeralcontainers":
		return v.ephemeral(ctx, req, &pod, &old)
	case req.Operation == admissionv1.Update && req.SubResource == "":
		return v.update(ctx, req, &pod, &old)
	default:
		return admission.Allowed("")
	}
}

func (v *podValidator) create(ctx context.Context, req admission.Request, pod *corev1.Pod) admission.Response {
	policy, err := v.policies.admitting(ctx, req.Namespace, pod.Labels)
	if err != nil {
		return v.counters.answer(req, err)
	}
	if policy == nil {
		if name := pod.Annotations[v1alpha1.PolicyKey]; name != "" {
			return v.counters.answer(req, &refusal{reasonUninjected, true, fmt.Sprintf("the pod was injected for SandboxEgress %q, which does not select it any more; create it again", name)})
		}
		return admission.Allowed("")
	}
	delivery := v1alpha1.Delivery(pod.Annotations[v1alpha1.InjectedAnnotation])
	for _, check := range []struct {
		why  reason
		errs field.ErrorList
	}{
		{reasonReserved, checkComponent(pod)},
		{reasonPrivileged, append(injector.CheckPrivileges(pod), injector.CheckProcessNamespace(pod, delivery)...)},
		{reasonSecret, injector.CheckSecrets(pod)},
		{reasonAnnotation, checkAnnotations(pod)},
	} {
		if len(check.errs) > 0 {
			return v.counters.invalid(req, check.why, check.errs)
		}
	}
	return v.checkInjected(req, pod, policy)
}

// checkInjected refuses a pod that injection would still change: the mutating webhook was
// bypassed, or another webhook undid a part of it.
func (v *podValidator) checkInjected(req admission.Request, pod *corev1.Pod, policy *v1alpha1.SandboxEgress) admission.Response {
	if pod.Annotations[v1alpha1.IDKey] == "" {
		return v.counters.answer(req, &refusal{reasonUninjected, true, fmt.Sprintf("the pod matches SandboxEgress %q but was not injected; create it again, and if that does not help see whether the MutatingWebhookConfiguration sandbox-egress-mutating is in place", policy.Name)})
	}
	again, err := injector.Inject(v.injector, injector.Input{Pod: pod, Policy: policy})
	if err != nil {
		return v.counters.answer(req, err)
	}
	if ops := injector.Patch(pod, again); len(ops) > 0 {
		return v.counters.answer(req, &refusal{reasonUninjected, false, fmt.Sprintf("another admission webhook changed what Sandbox Egress injected (%d differences, first: %s %s); exclude sandboxes from it or let it run first", len(ops), ops[0].Op, ops[0].Path)})
	}
	return admission.Allowed("")
}

// checkComponent: the operator's own pods are never selected, so this one is not.
func checkComponent(pod *corev1.Pod) field.ErrorList {
	if _, ok := pod.Labels[v1alpha1.ComponentLabel]; !ok {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("metadata", "labels").Key(v1alpha1.ComponentLabel), "belongs to the operator's own pods; remove it")}
}

func (v *podValidator) ephemeral(ctx context.Context, req admission.Request, pod, old *corev1.Pod) admission.Response {
	policy, err := v.policies.forPod(ctx, req.Namespace, old.Labels)
	if err != nil {
		return v.counters.answer(req, err)
	}
	if policy == nil && old.Annotations[v1alpha1.IDKey] == "" {
		return admission.Allowed("")
	}
	for _, check := range []struct {
		why  reason
		errs field.ErrorList
	}{
		{reasonReserved, injector.CheckReservedEphemeral(pod, old)},
		{reasonPrivileged, injector.CheckPrivileges(pod)},
		{reasonSecret, injector.CheckSecrets(pod)},
	} {
		if len(check.errs) > 0 {
			return v.counters.invalid(req, check.why, check.errs)
		}
	}
	if ops := injector.Patch(pod, injector.InjectEphemeral(pod, old)); len(ops) > 0 {
		return v.counters.answer(req, &refusal{reasonUninjected, true, fmt.Sprintf("the debug container has not got the sandbox's environment (%s %s); try again", ops[0].Op, ops[0].Path)})
	}
	return admission.Allowed("")
}

// update judges the annotations that users may change. The keys that nobody may change
// are the ValidatingAdmissionPolicy's, which holds without this server.
func (v *podValidator) update(ctx context.Context, req admission.Request, pod, old *corev1.Pod) admission.Response {
	if pod.Annotations[v1alpha1.AllowedHostsAnnotation] == old.Annotations[v1alpha1.AllowedHostsAnnotation] {
		return admission.Allowed("")
	}
	policy, err := v.policies.forPod(ctx, req.Namespace, pod.Labels)
	if err != nil {
		return v.counters.answer(req, err)
	}
	if policy == nil {
		return admission.Allowed("")
	}
	if errs := checkAllowedHosts(pod); len(errs) > 0 {
		return v.counters.invalid(req, reasonAnnotation, errs)
	}
	return admission.Allowed("")
}
