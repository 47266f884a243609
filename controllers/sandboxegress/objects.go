package sandboxegress

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"
	rbacv1ac "k8s.io/client-go/applyconfigurations/rbac/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/netpol"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/kube/match"
)

// ProxyConfig is what the operator's own configuration adds to every proxy.
type ProxyConfig struct {
	// Image holds the egress-proxy binary.
	Image string
	// ImagePullPolicy is left to the API server's default when empty.
	ImagePullPolicy corev1.PullPolicy
	// DrainTimeout is how long open tunnels may go on after SIGTERM.
	DrainTimeout time.Duration
}

const (
	// nonRoot is the user of distroless images.
	nonRoot int64 = 65532
	// drainDelay is how long a proxy that was told to end still takes connections: other
	// nodes send them until its endpoint is out of every kube-proxy. The proxy waits itself,
	// so that no preStop hook is needed.
	drainDelay = 5 * time.Second
	// exitMargin is for closing what is left after the drain.
	exitMargin = 10 * time.Second

	credentialsVolume = "upstream-credentials"       //nolint:gosec // the name of a volume
	credentialsDir    = "/etc/egress-proxy/upstream" //nolint:gosec // a directory

	// memoryShare of the limit is where the Go runtime starts to collect harder (GOMEMLIMIT).
	memoryShare = 0.9
)

// defaultResources fit a few hundred tunnels; a user's resources replace them whole.
func defaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
	}
}

func ownedLabels(p *v1alpha1.SandboxEgress) map[string]string {
	return netpol.Labels(p.Name, v1alpha1.ComponentProxy)
}

func configMap(p *v1alpha1.SandboxEgress, data map[string]string) *corev1ac.ConfigMapApplyConfiguration {
	return corev1ac.ConfigMap(v1alpha1.JWKSName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).WithData(data)
}

func serviceAccount(p *v1alpha1.SandboxEgress) *corev1ac.ServiceAccountApplyConfiguration {
	return corev1ac.ServiceAccount(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		// The pod asks for its token explicitly; nothing else that uses the account gets one.
		WithAutomountServiceAccountToken(false)
}

// role lets the proxy read its own policy, its own ConfigMap and the pods of its namespace,
// and create Events; it never sees a Secret.
func role(p *v1alpha1.SandboxEgress) *rbacv1ac.RoleApplyConfiguration {
	read := []string{"get", "list", "watch"}
	return rbacv1ac.Role(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		WithRules(
			rbacv1ac.PolicyRule().WithAPIGroups(v1alpha1.Group).WithResources("sandboxegresses").WithResourceNames(p.Name).WithVerbs(read...),
			rbacv1ac.PolicyRule().WithAPIGroups("").WithResources("configmaps").WithResourceNames(v1alpha1.JWKSName(p.Name)).WithVerbs(read...),
			rbacv1ac.PolicyRule().WithAPIGroups("").WithResources("pods").WithVerbs(read...),
			rbacv1ac.PolicyRule().WithAPIGroups("events.k8s.io").WithResources("events").WithVerbs("create"),
		)
}

func roleBinding(p *v1alpha1.SandboxEgress) *rbacv1ac.RoleBindingApplyConfiguration {
	name := v1alpha1.ProxyName(p.Name)
	return rbacv1ac.RoleBinding(name, p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		WithRoleRef(rbacv1ac.RoleRef().WithAPIGroup("rbac.authorization.k8s.io").WithKind("Role").WithName(name)).
		WithSubjects(rbacv1ac.Subject().WithKind("ServiceAccount").WithName(name).WithNamespace(p.Namespace))
}

// service carries the canary port as well: the start gate dials both ports at the same
// address, so that only the sandbox's own NetworkPolicy makes the difference.
func service(p *v1alpha1.SandboxEgress) *corev1ac.ServiceApplyConfiguration {
	servicePort := func(name string, number int32) *corev1ac.ServicePortApplyConfiguration {
		return corev1ac.ServicePort().WithName(name).WithProtocol(corev1.ProtocolTCP).WithPort(number).WithTargetPort(intstr.FromInt32(number))
	}
	return corev1ac.Service(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeClusterIP).
			WithIPFamilyPolicy(corev1.IPFamilyPolicyPreferDualStack).
			WithSelector(match.ProxyLabels(p.Name)).
			WithPorts(servicePort("proxy", v1alpha1.ProxyPort), servicePort("canary", v1alpha1.CanaryPort)))
}

// disruptionBudget lets one proxy at a time go, also when there is only one: a budget that
// allows none would block every node drain.
func disruptionBudget(p *v1alpha1.SandboxEgress) *policyv1ac.PodDisruptionBudgetApplyConfiguration {
	return policyv1ac.PodDisruptionBudget(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		WithSpec(policyv1ac.PodDisruptionBudgetSpec().
			WithMaxUnavailable(intstr.FromInt32(1)).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(match.ProxyLabels(p.Name))))
}

func deployment(p *v1alpha1.SandboxEgress, cfg ProxyConfig) *appsv1ac.DeploymentApplyConfiguration {
	replicas := int32(2)
	if r := p.Spec.Proxy.Replicas; r != nil {
		replicas = *r
	}
	return appsv1ac.Deployment(v1alpha1.ProxyName(p.Name), p.Namespace).
		WithLabels(ownedLabels(p)).WithOwnerReferences(netpol.PolicyOwner(p)).
		WithSpec(appsv1ac.DeploymentSpec().
			WithReplicas(replicas).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(match.ProxyLabels(p.Name))).
			WithStrategy(appsv1ac.DeploymentStrategy().
				WithType(appsv1.RollingUpdateDeploymentStrategyType).
				// A new proxy serves before an old one goes.
				WithRollingUpdate(appsv1ac.RollingUpdateDeployment().
					WithMaxUnavailable(intstr.FromInt32(0)).WithMaxSurge(intstr.FromInt32(1)))).
			WithTemplate(podTemplate(p, cfg)))
}

func podTemplate(p *v1alpha1.SandboxEgress, cfg ProxyConfig) *corev1ac.PodTemplateSpecApplyConfiguration {
	user := p.Spec.Proxy.PodTemplate
	spec := corev1ac.PodSpec().
		WithServiceAccountName(v1alpha1.ProxyName(p.Name)).
		WithAutomountServiceAccountToken(true).
		WithEnableServiceLinks(false).
		WithTerminationGracePeriodSeconds(seconds(drainDelay+cfg.DrainTimeout+exitMargin)).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).WithRunAsUser(nonRoot).WithRunAsGroup(nonRoot).WithFSGroup(nonRoot).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithTopologySpreadConstraints(spread(p, corev1.LabelHostname), spread(p, corev1.LabelTopologyZone)).
		WithContainers(container(p, cfg))
	if u := p.Spec.Proxy.Upstream; u != nil && u.CredentialsSecret != nil {
		// Mounted, not read through the API: the proxy's Role knows no Secrets.
		spec.WithVolumes(corev1ac.Volume().WithName(credentialsVolume).
			WithSecret(corev1ac.SecretVolumeSource().WithSecretName(u.CredentialsSecret.Name)))
	}
	if len(user.NodeSelector) > 0 {
		spec.WithNodeSelector(user.NodeSelector)
	}
	if user.PriorityClassName != "" {
		spec.WithPriorityClassName(user.PriorityClassName)
	}
	for i := range user.Tolerations {
		spec.WithTolerations(toleration(&user.Tolerations[i]))
	}
	t := corev1ac.PodTemplateSpec().WithLabels(match.ProxyPodLabels(p.Name)).WithSpec(spec)
	if len(user.Annotations) > 0 {
		t.WithAnnotations(user.Annotations)
	}
	return t
}

// spread prefers, but does not insist on, replicas apart: on one node both still run.
func spread(p *v1alpha1.SandboxEgress, key string) *corev1ac.TopologySpreadConstraintApplyConfiguration {
	return corev1ac.TopologySpreadConstraint().
		WithMaxSkew(1).WithTopologyKey(key).WithWhenUnsatisfiable(corev1.ScheduleAnyway).
		WithLabelSelector(metav1ac.LabelSelector().WithMatchLabels(match.ProxyLabels(p.Name))).
		// Without it the pods of the old ReplicaSet would count during a rollout.
		WithMatchLabelKeys(appsv1.DefaultDeploymentUniqueLabelKey)
}

func container(p *v1alpha1.SandboxEgress, cfg ProxyConfig) *corev1ac.ContainerApplyConfiguration {
	resources := p.Spec.Proxy.Resources
	if len(resources.Requests) == 0 && len(resources.Limits) == 0 {
		resources = defaultResources()
	}
	c := corev1ac.Container().
		WithName("egress-proxy").
		WithImage(cfg.Image).
		WithCommand("/egress-proxy").
		WithArgs(proxyArgs(p, cfg)...).
		WithPorts(
			containerPort("proxy", v1alpha1.ProxyPort),
			containerPort("admin", v1alpha1.AdminPort),
			containerPort("canary", v1alpha1.CanaryPort)).
		WithResources(resourceConfig(resources)).
		WithSecurityContext(corev1ac.SecurityContext().
			WithAllowPrivilegeEscalation(false).
			WithReadOnlyRootFilesystem(true).
			WithCapabilities(corev1ac.Capabilities().WithDrop("ALL"))).
		WithLivenessProbe(probe("/healthz", 10, 3)).
		WithReadinessProbe(probe("/readyz", 2, 2)).
		WithTerminationMessagePolicy(corev1.TerminationMessageFallbackToLogsOnError)
	if cfg.ImagePullPolicy != "" {
		c.WithImagePullPolicy(cfg.ImagePullPolicy)
	}
	if limit, ok := resources.Limits[corev1.ResourceMemory]; ok {
		c.WithEnv(corev1ac.EnvVar().WithName("GOMEMLIMIT").WithValue(strconv.FormatInt(int64(memoryShare*float64(limit.Value())), 10)))
	}
	if u := p.Spec.Proxy.Upstream; u != nil && u.CredentialsSecret != nil {
		c.WithVolumeMounts(corev1ac.VolumeMount().WithName(credentialsVolume).WithMountPath(credentialsDir).WithReadOnly(true))
	}
	return c
}

func proxyArgs(p *v1alpha1.SandboxEgress, cfg ProxyConfig) []string {
	args := []string{
		"--policy-source=kube",
		"--policy=" + p.Namespace + "/" + p.Name,
		"--jwks-configmap=" + v1alpha1.JWKSName(p.Name),
		"--canary-listen=:" + strconv.Itoa(int(v1alpha1.CanaryPort)),
		"--drain-delay=" + drainDelay.String(),
		"--drain-timeout=" + cfg.DrainTimeout.String(),
	}
	if u := p.Spec.Proxy.Upstream; u != nil && u.CredentialsSecret != nil {
		args = append(args, "--upstream-credentials="+credentialsDir)
	}
	return args
}

func containerPort(name string, number int32) *corev1ac.ContainerPortApplyConfiguration {
	return corev1ac.ContainerPort().WithName(name).WithContainerPort(number).WithProtocol(corev1.ProtocolTCP)
}

func probe(path string, period, failures int32) *corev1ac.ProbeApplyConfiguration {
	return corev1ac.Probe().
		WithHTTPGet(corev1ac.HTTPGetAction().WithPath(path).WithPort(intstr.FromString("admin"))).
		WithPeriodSeconds(period).WithFailureThreshold(failures).WithTimeoutSeconds(2)
}

func resourceConfig(r corev1.ResourceRequirements) *corev1ac.ResourceRequirementsApplyConfiguration {
	out := corev1ac.ResourceRequirements()
	if len(r.Requests) > 0 {
		out.WithRequests(r.Requests)
	}
	if len(r.Limits) > 0 {
		out.WithLimits(r.Limits)
	}
	return out
}

func toleration(t *corev1.Toleration) *corev1ac.TolerationApplyConfiguration {
	out := corev1ac.Toleration()
	if t.Key != "" {
		out.WithKey(t.Key)
	}
	if t.Operator != "" {
		out.WithOperator(t.Operator)
	}
	if t.Value != "" {
		out.WithValue(t.Value)
	}
	if t.Effect != "" {
		out.WithEffect(t.Effect)
	}
	if t.TolerationSeconds != nil {
		out.WithTolerationSeconds(*t.TolerationSeconds)
	}
	return out
}

func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// list names up to three things and counts the rest, for messages.
func list(names []string) string {
	const shown = 3
	slices.Sort(names)
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
