package injector

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// ManagedAnnotations are set at admission and never by users.
var managedAnnotations = []string{v1alpha1.IDKey, v1alpha1.PolicyKey, v1alpha1.InjectedAnnotation}

// CheckReserved refuses what only injection may put into a pod: managed annotations and
// label, container and volume names. It is for pods as users wrote them, before any
// injection; afterwards a forged sandbox looks like a real one. A mount of the token
// volume counts too: injection would make it valid.
func CheckReserved(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	for _, k := range managedAnnotations {
		if _, ok := pod.Annotations[k]; ok {
			errs = append(errs, field.Forbidden(meta.Child("annotations").Key(k), "is set by the operator at admission; remove it"))
		}
	}
	if _, ok := pod.Labels[v1alpha1.IDKey]; ok {
		errs = append(errs, field.Forbidden(meta.Child("labels").Key(v1alpha1.IDKey), "is set by the operator at admission; remove it"))
	}
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == TokenVolume {
			errs = append(errs, field.Forbidden(specPath.Child("volumes").Index(i).Child("name"), fmt.Sprintf("%q is reserved for the relay's token; rename the volume", TokenVolume)))
		}
	}
	visitContainers(pod, func(c *corev1.Container, at *field.Path) {
		errs = append(errs, checkReservedContainer(c, at)...)
	})
	return errs
}

func checkReservedContainer(c *corev1.Container, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == GateContainer || c.Name == RelayContainer {
		errs = append(errs, field.Forbidden(at.Child("name"), fmt.Sprintf("%q is reserved for injection; rename the container", c.Name)))
	}
	for i, m := range c.VolumeMounts {
		if m.Name == TokenVolume {
			errs = append(errs, field.Forbidden(at.Child("volumeMounts").Index(i), fmt.Sprintf("volume %q belongs to the relay; remove the mount", TokenVolume)))
		}
	}
	return errs
}

// CheckReservedEphemeral is CheckReserved for the ephemeral containers that old does not
// have. One that shares the relay's process namespace would see the relay's token.
func CheckReservedEphemeral(pod, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	added := map[string]bool{}
	for _, c := range newEphemeral(pod, old) {
		added[c.Name] = true
	}
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if !added[e.Name] {
			continue
		}
		at := specPath.Child("ephemeralContainers").Index(i)
		c := corev1.Container(e.EphemeralContainerCommon)
		errs = append(errs, checkReservedContainer(&c, at)...)
		if t := e.TargetContainerName; t == GateContainer || t == RelayContainer {
			errs = append(errs, field.Forbidden(at.Child("targetContainerName"), fmt.Sprintf("%q belongs to the operator and may hold the sandbox's token; target another container", t)))
		}
	}
	return errs
}
