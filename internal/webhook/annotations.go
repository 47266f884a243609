package webhook

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

var annotationsPath = field.NewPath("metadata", "annotations")

// checkAnnotations judges what users write on sandboxes. At run time a wrong value means
// no egress (allowed-hosts) or no effect (quarantine); here its author still sees it.
func checkAnnotations(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	if cid, ok := pod.Annotations[v1alpha1.ContainerIDAnnotation]; ok && cid != "" {
		if err := token.ValidateContainerID(cid); err != nil {
			errs = append(errs, field.Invalid(annotationsPath.Key(v1alpha1.ContainerIDAnnotation), cid, err.Error()))
		}
	}
	// "True" would look like a quarantine and be none.
	if q, ok := pod.Annotations[v1alpha1.QuarantineAnnotation]; ok && q != "true" && q != "false" {
		errs = append(errs, field.NotSupported(annotationsPath.Key(v1alpha1.QuarantineAnnotation), q, []string{"true", "false"}))
	}
	return append(errs, checkAllowedHosts(pod)...)
}

// checkAllowedHosts reads the annotation as the pod controller and the proxy do.
func checkAllowedHosts(pod *corev1.Pod) field.ErrorList {
	text, ok := pod.Annotations[v1alpha1.AllowedHostsAnnotation]
	if !ok {
		return nil
	}
	var hosts []string
	for h := range strings.SplitSeq(text, ",") {
		if h = strings.TrimSpace(h); h != "" {
			hosts = append(hosts, h)
		}
	}
	_, err := allowlist.Compile(allowlist.Spec{AllowedHosts: hosts})
	if err == nil {
		return nil
	}
	path := annotationsPath.Key(v1alpha1.AllowedHostsAnnotation)
	var wrong allowlist.FieldErrors
	if !errors.As(err, &wrong) {
		return field.ErrorList{field.Invalid(path, text, err.Error())}
	}
	var errs field.ErrorList
	for _, e := range wrong {
		errs = append(errs, field.Invalid(path, e.Value, fmt.Sprintf("one of the comma-separated hosts: %s", e.Reason)))
	}
	return errs
}
