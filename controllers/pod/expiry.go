package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// expiryWarning is how long before the end of an Env token people are warned.
const expiryWarning = 15 * time.Minute

// envExpiry is when the token in the environment of pod's oldest running container expires;
// zero when that is never, or not known.
//
// A container holds the token that the Secret had when it started. Tokens are renewed at
// two thirds of their life, so when one is about to expire the Secret holds the next one
// and remembers the end of this one.
func envExpiry(pod *corev1.Pod, meta *metav1.PartialObjectMetadata) time.Time {
	if pod.Annotations[v1alpha1.InjectedAnnotation] != string(v1alpha1.DeliveryEnv) {
		return time.Time{}
	}
	issued, err := time.Parse(time.RFC3339, meta.Annotations[annotationIssuedAt])
	if err != nil {
		return time.Time{}
	}
	oldest := oldestStart(pod)
	if oldest.IsZero() {
		return time.Time{}
	}
	entry := annotationExpiresAt
	if oldest.Before(issued) {
		entry = annotationPreviousExpires
	}
	expires, err := time.Parse(time.RFC3339, meta.Annotations[entry])
	if err != nil {
		return time.Time{}
	}
	if d, start := pod.Spec.ActiveDeadlineSeconds, pod.Status.StartTime; d != nil && start != nil {
		if end := start.Add(time.Duration(*d) * time.Second); !end.After(expires) {
			return time.Time{}
		}
	}
	return expires
}

func oldestStart(pod *corev1.Pod) time.Time {
	var oldest time.Time
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.State.Running == nil {
				continue
			}
			if at := c.State.Running.StartedAt.Time; oldest.IsZero() || at.Before(oldest) {
				oldest = at
			}
		}
	}
	return oldest
}
