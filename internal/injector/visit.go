package injector

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var specPath = field.NewPath("spec")

// visitContainers calls f for init, main and ephemeral containers. Ephemeral ones come as
// copies of their common part.
func visitContainers(pod *corev1.Pod, f func(c *corev1.Container, at *field.Path)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i], specPath.Child("initContainers").Index(i))
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i], specPath.Child("containers").Index(i))
	}
	for i := range pod.Spec.EphemeralContainers {
		c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		f(&c, specPath.Child("ephemeralContainers").Index(i))
	}
}
