package v1alpha1

// Annotations and labels on pods, namespaces and owned objects.
const (
	// IDKey is the unique id of a sandbox: an annotation that the webhook sets on every
	// injected pod, and a label too under per-pod NetworkPolicies. Immutable.
	IDKey = Group + "/id"
	// ContainerIDAnnotation is the session id that becomes the container_id claim. Set by
	// the user at creation; the id stands in when it is missing. Immutable.
	ContainerIDAnnotation = Group + "/container-id"
	// AllowedHostsAnnotation narrows one pod below its policy: comma-separated host
	// patterns, intersected with the policy. Mutable; it never widens.
	AllowedHostsAnnotation = Group + "/allowed-hosts"
	// QuarantineAnnotation set to "true" cuts the pod off at once. Mutable.
	QuarantineAnnotation = Group + "/quarantine"
	// PolicyKey names the SandboxEgress that a pod is under (annotation, set by the
	// webhook) or that an owned object belongs to (label).
	PolicyKey = Group + "/policy"
	// InjectedAnnotation records the delivery that was injected, so that a reinvocation
	// of the webhook changes nothing.
	InjectedAnnotation = Group + "/injected"
	// ComponentLabel says what an owned object is; see the Component values.
	ComponentLabel = Group + "/component"
	// EnforcedLabel on a namespace sends every pod of it through the webhook.
	EnforcedLabel = Group + "/enforced"
	// IsolationFinalizer keeps a SandboxEgress until no pod it isolates still runs.
	IsolationFinalizer = Group + "/isolation"
)

// Values of ComponentLabel.
const (
	ComponentProxy       = "proxy"
	ComponentIdentity    = "identity"
	ComponentDefaultDeny = "default-deny"
	ComponentSigningKey  = "signing-key"
)

// Ports are part of the contract between proxy, gate and NetworkPolicies, hence not
// configurable in the API.
const (
	ProxyPort  int32 = 8443
	AdminPort  int32 = 9901
	CanaryPort int32 = 9902
	RelayPort  int32 = 3128
)

// Keys of the identity Secret and of the JWKS ConfigMap.
const (
	SecretKeyToken    = "token"
	SecretKeyProxyURL = "proxy-url"
	ConfigMapKeyJWKS  = "jwks.json"
)

// DefaultDenyName is the name of the NetworkPolicy that isolates every matched pod.
func DefaultDenyName(policy string) string { return policy + "-egress-default" }

// ProxyName is the name of the proxy's Deployment, Service, ServiceAccount, Role,
// RoleBinding, PodDisruptionBudget and of its own NetworkPolicy.
func ProxyName(policy string) string { return policy + "-egress-proxy" }

// JWKSName is the name of the ConfigMap with the public keys.
func JWKSName(policy string) string { return policy + "-egress-jwks" }

// IdentityName is the name of a sandbox's Secret and of its per-pod NetworkPolicy.
func IdentityName(id string) string { return "egress-" + id }
