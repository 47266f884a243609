package webhook

import (
	"encoding/json"
	"errors"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

// reason is why an admission was refused; a metric label.
type reason string

const (
	reasonMalformed   reason = "malformed"   // the request could not be decoded
	reasonUnavailable reason = "unavailable" // policies are not known yet
	reasonNotReady    reason = "not_ready"   // the policy has no proxy yet
	reasonDeleting    reason = "deleting"    // the policy is going
	reasonOverlap     reason = "overlap"     // two policies match
	reasonConflict    reason = "conflict"    // injected differently before
	reasonReserved    reason = "reserved"    // forged or reserved names
	reasonPrivileged  reason = "privileged"  // leads out of the isolation
	reasonSecret      reason = "secret"      // another sandbox's identity
	reasonAnnotation  reason = "annotation"  // the user's annotations are wrong
	reasonUninjected  reason = "uninjected"  // injection is missing or was undone
	reasonBadPolicy   reason = "policy"      // an invalid SandboxEgress
	reasonInternal    reason = "internal"    // a failure of the operator
)

// deny refuses with a Kubernetes status of the given kind.
func (c *counters) deny(req admission.Request, why reason, status int32, kind metav1.StatusReason, message string) admission.Response {
	c.count(req, why)
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: status, Reason: kind, Message: message,
	}}}
}

func (c *counters) forbid(req admission.Request, why reason, message string) admission.Response {
	return c.deny(req, why, http.StatusForbidden, metav1.StatusReasonForbidden, message)
}

// retryLater refuses what may be right in a moment. 503 tells people and controllers that
// the object itself is not at fault.
func (c *counters) retryLater(req admission.Request, why reason, err error) admission.Response {
	return c.deny(req, why, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
}

func (c *counters) malformed(req admission.Request, err error) admission.Response {
	return c.deny(req, reasonMalformed, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
}

// invalid refuses with every field error, in the shape of the API server's own validation.
func (c *counters) invalid(req admission.Request, why reason, errs field.ErrorList) admission.Response {
	c.count(req, why)
	name := req.Name
	if name == "" {
		name = "(new)"
	}
	status := apierrors.NewInvalid(schema.GroupKind{Group: req.Kind.Group, Kind: req.Kind.Kind}, name, errs).Status()
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status}}
}

func (c *counters) count(req admission.Request, why reason) {
	if !dryRun(req) {
		c.denials.WithLabelValues(string(why)).Inc()
	}
}

func dryRun(req admission.Request) bool { return req.DryRun != nil && *req.DryRun }

// patched admits with injector's own operations. An empty patch is none.
func patched(ops []injector.Operation) (admission.Response, error) {
	resp := admission.Allowed("")
	if len(ops) == 0 {
		return resp, nil
	}
	raw, err := json.Marshal(ops)
	if err != nil {
		return admission.Response{}, err
	}
	kind := admissionv1.PatchTypeJSONPatch
	resp.Patch, resp.PatchType = raw, &kind
	return resp, nil
}

// refusal is an error that already is an answer.
type refusal struct {
	why     reason
	retry   bool
	message string
}

func (r *refusal) Error() string { return r.message }

// answer turns an error from policy lookup or injection into a response.
func (c *counters) answer(req admission.Request, err error) admission.Response {
	var r *refusal
	switch {
	case errors.As(err, &r) && r.retry:
		return c.retryLater(req, r.why, err)
	case errors.As(err, &r):
		return c.forbid(req, r.why, err.Error())
	case errors.Is(err, injector.ErrNotReady):
		return c.retryLater(req, reasonNotReady, err)
	case errors.Is(err, injector.ErrConflict):
		return c.forbid(req, reasonConflict, err.Error()+"; create the pod anew without the operator's annotations")
	default:
		return c.deny(req, reasonInternal, http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
	}
}
