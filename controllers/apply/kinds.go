package apply

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"
	rbacv1ac "k8s.io/client-go/applyconfigurations/rbac/v1"
)

// The kinds that the operator owns.
var (
	NetworkPolicies = Kind[*networkingv1.NetworkPolicy, *networkingv1ac.NetworkPolicyApplyConfiguration]{
		New:     func() *networkingv1.NetworkPolicy { return new(networkingv1.NetworkPolicy) },
		Extract: networkingv1ac.ExtractNetworkPolicy,
		// The API server sets no default in what is applied here, so the specs are equal.
		Foreign:    func(live, want *networkingv1.NetworkPolicy) bool { return differ(live.Spec, want.Spec) },
		SetContent: func(live, want *networkingv1.NetworkPolicy) { live.Spec = want.Spec },
	}
	ConfigMaps = Kind[*corev1.ConfigMap, *corev1ac.ConfigMapApplyConfiguration]{
		New:     func() *corev1.ConfigMap { return new(corev1.ConfigMap) },
		Extract: corev1ac.ExtractConfigMap,
		Foreign: func(live, want *corev1.ConfigMap) bool {
			return differ(live.Data, want.Data) || differ(live.BinaryData, want.BinaryData)
		},
		SetContent: func(live, want *corev1.ConfigMap) { live.Data, live.BinaryData = want.Data, want.BinaryData },
		Replace: func(live *corev1.ConfigMap, _ *corev1ac.ConfigMapApplyConfiguration) bool {
			return live.Immutable != nil && *live.Immutable
		},
	}
	ServiceAccounts = Kind[*corev1.ServiceAccount, *corev1ac.ServiceAccountApplyConfiguration]{
		New:     func() *corev1.ServiceAccount { return new(corev1.ServiceAccount) },
		Extract: corev1ac.ExtractServiceAccount,
		// Distributions add pull secrets to every account.
	}
	Services = Kind[*corev1.Service, *corev1ac.ServiceApplyConfiguration]{
		New:     func() *corev1.Service { return new(corev1.Service) },
		Extract: corev1ac.ExtractService,
		Foreign: func(live, _ *corev1.Service) bool { return othersWrote(live) },
		SetContent: func(live, want *corev1.Service) {
			old := live.Spec
			live.Spec = want.Spec
			live.Spec.ClusterIP, live.Spec.ClusterIPs, live.Spec.IPFamilies = old.ClusterIP, old.ClusterIPs, old.IPFamilies
		},
		// clusterIP cannot change from None: a headless Service would never get an address.
		Replace: func(live *corev1.Service, _ *corev1ac.ServiceApplyConfiguration) bool {
			return live.Spec.ClusterIP == corev1.ClusterIPNone
		},
	}
	Roles = Kind[*rbacv1.Role, *rbacv1ac.RoleApplyConfiguration]{
		New:        func() *rbacv1.Role { return new(rbacv1.Role) },
		Extract:    rbacv1ac.ExtractRole,
		Foreign:    func(live, want *rbacv1.Role) bool { return differ(live.Rules, want.Rules) },
		SetContent: func(live, want *rbacv1.Role) { live.Rules = want.Rules },
	}
	RoleBindings = Kind[*rbacv1.RoleBinding, *rbacv1ac.RoleBindingApplyConfiguration]{
		New:        func() *rbacv1.RoleBinding { return new(rbacv1.RoleBinding) },
		Extract:    rbacv1ac.ExtractRoleBinding,
		Foreign:    func(live, want *rbacv1.RoleBinding) bool { return differ(live.Subjects, want.Subjects) },
		SetContent: func(live, want *rbacv1.RoleBinding) { live.Subjects = want.Subjects },
		Replace: func(live *rbacv1.RoleBinding, want *rbacv1ac.RoleBindingApplyConfiguration) bool {
			ref := rbacv1.RoleRef{APIGroup: deref(want.RoleRef.APIGroup), Kind: deref(want.RoleRef.Kind), Name: deref(want.RoleRef.Name)}
			return live.RoleRef != ref
		},
	}
	Deployments = Kind[*appsv1.Deployment, *appsv1ac.DeploymentApplyConfiguration]{
		New:        func() *appsv1.Deployment { return new(appsv1.Deployment) },
		Extract:    appsv1ac.ExtractDeployment,
		Foreign:    func(live, _ *appsv1.Deployment) bool { return othersWrote(live) },
		SetContent: func(live, want *appsv1.Deployment) { live.Spec = want.Spec },
		Replace: func(live *appsv1.Deployment, want *appsv1ac.DeploymentApplyConfiguration) bool {
			return !equality.Semantic.DeepEqual(live.Spec.Selector, &metav1.LabelSelector{MatchLabels: want.Spec.Selector.MatchLabels})
		},
	}
	PodDisruptionBudgets = Kind[*policyv1.PodDisruptionBudget, *policyv1ac.PodDisruptionBudgetApplyConfiguration]{
		New:        func() *policyv1.PodDisruptionBudget { return new(policyv1.PodDisruptionBudget) },
		Extract:    policyv1ac.ExtractPodDisruptionBudget,
		Foreign:    func(live, want *policyv1.PodDisruptionBudget) bool { return differ(live.Spec, want.Spec) },
		SetContent: func(live, want *policyv1.PodDisruptionBudget) { live.Spec = want.Spec },
	}
)

func differ(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }
