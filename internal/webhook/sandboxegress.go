package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
)

// policyValidator refuses SandboxEgress objects that the data plane could not compile, and
// warns about legal ones that protect less than they seem to.
type policyValidator struct {
	decoder  admission.Decoder
	counters *counters
	policies *policySource
	excluded []string // namespaces without admission
}

func (v *policyValidator) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return admission.Allowed("")
	}
	var policy v1alpha1.SandboxEgress
	if err := v.decoder.DecodeRaw(req.Object, &policy); err != nil {
		return v.counters.malformed(req, err)
	}
	policy.Namespace = req.Namespace
	if req.Operation == admissionv1.Update {
		var old v1alpha1.SandboxEgress
		if err := v.decoder.DecodeRaw(req.OldObject, &old); err != nil {
			return v.counters.malformed(req, err)
		}
		// An object from before a rule was made stricter must stay deletable: finalizers
		// and labels change without the spec.
		if equality.Semantic.DeepEqual(old.Spec, policy.Spec) {
			return admission.Allowed("")
		}
	}
	errs := checkPolicy(&policy)
	if slices.Contains(v.excluded, req.Namespace) {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "namespace"),
			fmt.Sprintf("pods in %q do not pass admission and would be isolated without ever getting egress; use another namespace", req.Namespace)))
	}
	if len(errs) > 0 {
		return v.counters.invalid(req, reasonBadPolicy, errs)
	}
	warnings := policyWarnings(&policy.Spec)
	// Only a warning hangs on it, so an unsynced cache does not matter.
	if others, err := v.policies.list(ctx, req.Namespace); err == nil {
		warnings = append(warnings, overlapWarnings(&policy, others)...)
	}
	return admission.Allowed("").WithWarnings(warnings...)
}

func checkPolicy(policy *v1alpha1.SandboxEgress) field.ErrorList {
	var errs field.ErrorList
	if _, err := match.Selector(policy); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("spec", "podSelector"), policy.Spec.PodSelector, err.Error()))
	}
	if _, err := manifest.Compile(policy); err != nil {
		errs = append(errs, fieldErrors(err)...)
	}
	return errs
}

// fieldErrors collects the field errors in a tree of joined and wrapped ones. An error
// that names no field is kept too, on the whole spec.
func fieldErrors(err error) field.ErrorList {
	var errs field.ErrorList
	switch e := err.(type) { //nolint:errorlint // the tree is walked node by node
	case *allowlist.FieldError:
		return append(errs, &field.Error{Type: field.ErrorTypeInvalid, Field: e.Field, BadValue: e.Value, Detail: e.Reason})
	case *manifest.FieldError:
		return append(errs, &field.Error{Type: field.ErrorTypeInvalid, Field: e.Field, BadValue: e.Value, Detail: e.Reason})
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			errs = append(errs, fieldErrors(inner)...)
		}
		return errs
	}
	if inner := errors.Unwrap(err); inner != nil {
		if errs = fieldErrors(inner); len(errs) > 0 && errs[0].Field != "spec" {
			return errs
		}
	}
	return field.ErrorList{&field.Error{Type: field.ErrorTypeInvalid, Field: "spec", BadValue: field.OmitValueType{}, Detail: err.Error()}}
}

// policyWarnings are about legal settings whose protection is easily overestimated. The
// API server shows at most 256 characters of each.
func policyWarnings(s *v1alpha1.SandboxEgressSpec) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if s.Mode == v1alpha1.ModeAudit {
		warn("spec.mode: Audit lets destinations off the list pass; they are only logged as would_deny")
	}
	if len(s.Presets) == 0 && len(s.AllowedHosts) == 0 && len(s.Rules) == 0 {
		warn("spec: no presets, allowedHosts or rules: the sandboxes reach nothing")
	}
	for i, name := range s.Presets {
		if p, ok := allowlist.LookupPreset(name); ok && p.Risk == allowlist.RiskUploadCapable {
			warn("spec.presets[%d]: %s takes uploads: a sandbox can send out what it has read", i, name)
		}
	}
	for i, r := range s.Rules {
		if len(r.Methods)+len(r.Paths) > 0 && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p int32) bool { return p != 80 })) {
			warn("spec.rules[%d]: methods and paths are checked in plain HTTP only; inside TLS tunnels to these hosts they cannot be seen", i)
		}
		if r.TLS == v1alpha1.TLSOptional {
			warn("spec.rules[%d].tls: Optional: tunnels to these hosts are not checked for a matching server name", i)
		}
	}
	if s.StartGate == v1alpha1.Disabled {
		warn("spec.startGate: Disabled: sandboxes start without proof that NetworkPolicies are enforced")
	}
	if s.Token.ContainerBinding == v1alpha1.BindingDisabled {
		warn("spec.token.containerBinding: Disabled: a token that leaks works from other pods too")
	}
	return out
}

// overlapWarnings names the other policies for which labels are known that match both. It
// finds no overlap that needs more labels than the two selectors ask for.
func overlapWarnings(policy *v1alpha1.SandboxEgress, others []v1alpha1.SandboxEgress) []string {
	var out []string
	for i := range others {
		other := &others[i]
		if other.Name != policy.Name && overlap(policy, other) {
			out = append(out, fmt.Sprintf("spec.podSelector overlaps that of SandboxEgress %q: pods that match both will be refused", other.Name))
		}
	}
	return out
}

func overlap(a, b *v1alpha1.SandboxEgress) bool {
	both := map[string]string{}
	for _, p := range []*v1alpha1.SandboxEgress{a, b} {
		selector, err := match.PodSelector(p)
		if err != nil {
			return false
		}
		labels, ok := match.Example(selector)
		if !ok {
			return false
		}
		for k, v := range labels {
			if have, ok := both[k]; ok && have != v && v == "" {
				continue // Exists is content with any value
			}
			both[k] = v
		}
	}
	inA, errA := match.Selects(a, both)
	inB, errB := match.Selects(b, both)
	return errA == nil && errB == nil && inA && inB
}
