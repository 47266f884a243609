package managercmd

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
)

// cacheOptions keeps the cache to what the controllers look at: of pods a few fields, of
// everything else in the cluster only what carries our labels. NetworkPolicies are the
// exception: any of them can widen a sandbox's egress.
func cacheOptions() (cache.Options, error) {
	ours, err := requirement(v1alpha1.PolicyKey, selection.Exists)
	if err != nil {
		return cache.Options{}, err
	}
	secrets, err := requirement(v1alpha1.ComponentLabel, selection.In, v1alpha1.ComponentIdentity, v1alpha1.ComponentSigningKey)
	if err != nil {
		return cache.Options{}, err
	}
	owned := cache.ByObject{Label: ours, Transform: keepOwnFields}
	return cache.Options{
		DefaultTransform: dropManagedFields,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                   {Transform: stripPod},
			&corev1.Secret{}:                {Label: secrets, Transform: keepOwnFields},
			&networkingv1.NetworkPolicy{}:   {Transform: keepOwnFields},
			&appsv1.Deployment{}:            owned,
			&corev1.Service{}:               owned,
			&corev1.ServiceAccount{}:        owned,
			&corev1.ConfigMap{}:             owned,
			&rbacv1.Role{}:                  owned,
			&rbacv1.RoleBinding{}:           owned,
			&policyv1.PodDisruptionBudget{}: owned,
			&discoveryv1.EndpointSlice{}: {
				Namespaces: map[string]cache.Config{metav1.NamespaceDefault: {}},
				Label:      labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"}),
			},
		},
	}, nil
}

func requirement(key string, op selection.Operator, values ...string) (labels.Selector, error) {
	r, err := labels.NewRequirement(key, op, values)
	if err != nil {
		return nil, err
	}
	return labels.NewSelector().Add(*r), nil
}

func dropManagedFields(in any) (any, error) {
	if o, ok := in.(client.Object); ok {
		o.SetManagedFields(nil)
	}
	return in, nil
}

func keepOwnFields(in any) (any, error) {
	if o, ok := in.(client.Object); ok {
		apply.TrimManagedFields(o)
	}
	return in, nil
}

// stripPod keeps what judging a sandbox takes. A pod of a real workload is 5 to 20 KiB, of
// which about 1 KiB is left.
func stripPod(in any) (any, error) {
	pod, ok := in.(*corev1.Pod)
	if !ok {
		return in, nil
	}
	annotations := map[string]string{}
	for k, v := range pod.Annotations {
		if strings.HasPrefix(k, v1alpha1.Group+"/") {
			annotations[k] = v
		}
	}
	out := &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			Generation: pod.Generation, CreationTimestamp: pod.CreationTimestamp,
			DeletionTimestamp: pod.DeletionTimestamp, Labels: pod.Labels, Annotations: annotations,
		},
		Spec: corev1.PodSpec{ActiveDeadlineSeconds: pod.Spec.ActiveDeadlineSeconds},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, StartTime: pod.Status.StartTime,
			ContainerStatuses:     running(pod.Status.ContainerStatuses),
			InitContainerStatuses: running(pod.Status.InitContainerStatuses),
		},
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out, nil
}

// running keeps since when containers run: it tells which token they hold.
func running(in []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for _, c := range in {
		if c.State.Running != nil {
			out = append(out, corev1.ContainerStatus{Name: c.Name, State: corev1.ContainerState{Running: c.State.Running}})
		}
	}
	return out
}
