package injector

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// Inject returns a patched copy of the pod; the input is never changed. Errors match
// ErrNotReady or ErrConflict.
func Inject(cfg Config, in Input) (*corev1.Pod, error) {
	proxy, canary, err := proxyAddress(in.Policy)
	if err != nil {
		return nil, err
	}
	pod := in.Pod.DeepCopy()
	if err := identify(pod, in); err != nil {
		return nil, err
	}

	delivery := deliveryOf(in.Policy)
	env := environment(delivery, pod.Annotations[v1alpha1.IDKey])
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name != GateContainer && c.Name != RelayContainer {
			env.apply(&c.Env)
		}
	}
	for i := range pod.Spec.Containers {
		env.apply(&pod.Spec.Containers[i].Env)
	}

	var first []corev1.Container
	if in.Policy.Spec.StartGate != v1alpha1.Disabled {
		first = append(first, gateContainer(cfg, proxy, canary))
	}
	if delivery == v1alpha1.DeliveryRelay {
		first = append(first, relayContainer(cfg, proxy, ContainerID(pod)))
		pod.Spec.Volumes = placeVolume(pod.Spec.Volumes, tokenVolume(pod.Annotations[v1alpha1.IDKey]))
	}
	pod.Spec.InitContainers = placeFirst(pod.Spec.InitContainers, first)
	return pod, nil
}

func deliveryOf(p *v1alpha1.SandboxEgress) v1alpha1.Delivery {
	if p.Spec.Delivery == "" {
		return v1alpha1.DeliveryEnv
	}
	return p.Spec.Delivery
}

// identify sets the managed annotations and label, or checks the ones that an earlier
// invocation set.
func identify(pod *corev1.Pod, in Input) error {
	id := pod.Annotations[v1alpha1.IDKey]
	if id == "" {
		id = in.ID
	}
	if !ValidID(id) {
		return fmt.Errorf("%w: annotation %s is %q", ErrConflict, v1alpha1.IDKey, id)
	}
	want := map[string]string{
		v1alpha1.IDKey:              id,
		v1alpha1.PolicyKey:          in.Policy.Name,
		v1alpha1.InjectedAnnotation: string(deliveryOf(in.Policy)),
	}
	for k, v := range want {
		if have, ok := pod.Annotations[k]; ok && have != v {
			return fmt.Errorf("%w: annotation %s is %q, SandboxEgress %q asks for %q", ErrConflict, k, have, in.Policy.Name, v)
		}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[k] = v
	}
	if in.Policy.Spec.NetworkPolicy.Granularity == v1alpha1.GranularityShared {
		return nil
	}
	if have, ok := pod.Labels[v1alpha1.IDKey]; ok && have != id {
		return fmt.Errorf("%w: label %s is %q, the annotation %q", ErrConflict, v1alpha1.IDKey, have, id)
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[v1alpha1.IDKey] = id
	return nil
}

// InjectEphemeral gives the environment of pod's delivery to the ephemeral containers
// that old does not have. A pod that was never injected is returned as it is: it has no
// identity that the containers could use.
func InjectEphemeral(pod, old *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	id, delivery := old.Annotations[v1alpha1.IDKey], v1alpha1.Delivery(old.Annotations[v1alpha1.InjectedAnnotation])
	if !ValidID(id) || delivery == "" {
		return pod
	}
	env := environment(delivery, id)
	for _, c := range newEphemeral(pod, old) {
		env.apply(&c.Env)
	}
	return pod
}

// newEphemeral returns pointers into pod. Ephemeral containers are immutable once added,
// so the name tells old from new.
func newEphemeral(pod, old *corev1.Pod) []*corev1.EphemeralContainer {
	known := map[string]bool{}
	for i := range old.Spec.EphemeralContainers {
		known[old.Spec.EphemeralContainers[i].Name] = true
	}
	var added []*corev1.EphemeralContainer
	for i := range pod.Spec.EphemeralContainers {
		if c := &pod.Spec.EphemeralContainers[i]; !known[c.Name] {
			added = append(added, c)
		}
	}
	return added
}
