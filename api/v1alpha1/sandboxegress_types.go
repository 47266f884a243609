package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Mode says what happens to destinations off the list.
// +kubebuilder:validation:Enum=Enforce;Audit
type Mode string

const (
	// ModeEnforce refuses what the policy does not allow.
	ModeEnforce Mode = "Enforce"
	// ModeAudit lets destinations off the list pass and logs them as would_deny.
	// Authentication and the address guard still enforce.
	ModeAudit Mode = "Audit"
)

// TLSRequirement says whether a tunnel to a TLS port must be TLS with a matching SNI.
// +kubebuilder:validation:Enum=Required;Optional
type TLSRequirement string

const (
	// TLSRequired refuses a tunnel to port 443 that is not TLS with the server name asked for.
	TLSRequired TLSRequirement = "Required"
	// TLSOptional lets other protocols through; a stream that is TLS is still held to its name.
	TLSOptional TLSRequirement = "Optional"
)

// Delivery says how a sandbox gets its credential.
// +kubebuilder:validation:Enum=Env;Relay
type Delivery string

const (
	// DeliveryEnv puts the proxy URL with the token into the environment.
	DeliveryEnv Delivery = "Env"
	// DeliveryRelay runs a native sidecar on loopback that adds the rotating token; the
	// sandbox's containers hold no credential.
	DeliveryRelay Delivery = "Relay"
)

// DNSMode says whether sandboxes may ask the cluster's DNS.
// +kubebuilder:validation:Enum=Cluster;None
type DNSMode string

const (
	// DNSCluster lets sandboxes ask the cluster's DNS.
	DNSCluster DNSMode = "Cluster"
	// DNSNone closes DNS, and with it a covert channel; the proxy resolves names itself.
	DNSNone DNSMode = "None"
)

// Toggle switches a part on or off.
// +kubebuilder:validation:Enum=Enabled;Disabled
type Toggle string

const (
	// Enabled switches the part on.
	Enabled Toggle = "Enabled"
	// Disabled switches the part off, with the protection that it gives.
	Disabled Toggle = "Disabled"
)

// Granularity says how many NetworkPolicies carry the allow rules.
// +kubebuilder:validation:Enum=PerPod;Shared
type Granularity string

const (
	// GranularityPerPod makes one NetworkPolicy per sandbox, selected by its id label.
	GranularityPerPod Granularity = "PerPod"
	// GranularityShared keeps the allow rules on the default policy, for large clusters
	// and for CNIs that make an identity of every unique label.
	GranularityShared Granularity = "Shared"
)

// Binding says whether a token works only from its own pod's addresses.
// +kubebuilder:validation:Enum=Enforced;Disabled
type Binding string

const (
	// BindingEnforced refuses a token from any address that is not its pod's.
	BindingEnforced Binding = "Enforced"
	// BindingDisabled lets whoever holds the token use it.
	BindingDisabled Binding = "Disabled"
)

// HostPattern is "host", "*.host", "host:port" or "*.host:port". A wildcard covers any
// depth below the host and never the host itself; without a port, 80 and 443 are meant.
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=262
type HostPattern string

// HTTPMethod is a method token (RFC 9110 section 9.1) in upper case.
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^[A-Z][A-Z0-9_-]*$`
type HTTPMethod string

// PathPattern is an absolute path, exact or ending in "/*" for everything below it.
// +kubebuilder:validation:MaxLength=1024
// +kubebuilder:validation:Pattern=`^/`
type PathPattern string

// CIDR is an address range such as 10.20.0.0/16.
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="must be an address range in CIDR notation, e.g. 10.20.0.0/16"
type CIDR string

// Rule allows hosts more finely than allowedHosts: by port, method and path.
type Rule struct {
	// Hosts that the rule covers. A pattern with a port of its own ignores ports below.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Hosts []HostPattern `json:"hosts"`

	// Ports that may be reached; 80 and 443 when empty.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`

	// Methods that may be used; any when empty. Checked only where the proxy sees the
	// request, that is plain HTTP: inside a TLS tunnel the method cannot be seen.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Methods []HTTPMethod `json:"methods,omitempty"`

	// Paths that may be requested; any when empty. Checked only where the proxy sees the
	// request, after cleaning and percent-decoding once.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	Paths []PathPattern `json:"paths,omitempty"`

	// TLS says whether a tunnel to port 443 must be TLS whose server name (SNI) is the
	// host asked for. Optional gives that protection up for these hosts.
	// +optional
	// +kubebuilder:default=Required
	TLS TLSRequirement `json:"tls,omitempty"`
}

// NetworkPolicySpec shapes the NetworkPolicies around the sandboxes.
type NetworkPolicySpec struct {
	// Granularity is PerPod or Shared.
	// +optional
	// +kubebuilder:default=PerPod
	Granularity Granularity `json:"granularity,omitempty"`
}

// TokenSpec shapes the tokens that the operator mints.
type TokenSpec struct {
	// TTL is the lifetime of a token, from 5m to 24h. Tokens are renewed at two thirds.
	// +optional
	// +kubebuilder:default="4h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('5m') && duration(self) <= duration('24h')",message="must be between 5m and 24h"
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// Organization becomes the organization_uuid claim and stands in every audit record.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9._:@/-]*$`
	Organization string `json:"organization,omitempty"`

	// ContainerBinding ties a token to the current addresses of its own pod.
	// +optional
	// +kubebuilder:default=Enforced
	ContainerBinding Binding `json:"containerBinding,omitempty"`

	// HIPAARegulated becomes the is_hipaa_regulated claim.
	// +optional
	HIPAARegulated bool `json:"hipaaRegulated,omitempty"`
}

// LimitsSpec bounds one sandbox at one proxy replica; 0 means no limit.
type LimitsSpec struct {
	// Connections open at a time.
	// +optional
	// +kubebuilder:default=256
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Connections *int32 `json:"connections,omitempty"`

	// RequestsPerSecond, tunnels included.
	// +optional
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	RequestsPerSecond *int32 `json:"requestsPerSecond,omitempty"`

	// BytesPerSecond, both directions together.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	BytesPerSecond *int64 `json:"bytesPerSecond,omitempty"`
}

// SecretReference names a Secret of the same namespace.
type SecretReference struct {
	// Name of the Secret; keys "username" and "password" are read.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// UpstreamSpec chains the proxy behind another HTTP proxy.
type UpstreamSpec struct {
	// URL of the upstream proxy, http://host:port. Credentials belong in the Secret.
	// +required
	// +kubebuilder:validation:MaxLength=300
	// +kubebuilder:validation:XValidation:rule="self.matches('^http://[^/@?#]+:[0-9]{1,5}/?$')",message="must be http://host:port without credentials, path or query"
	URL string `json:"url"`

	// CredentialsSecret holds username and password for the upstream proxy.
	// +optional
	CredentialsSecret *SecretReference `json:"credentialsSecret,omitempty"`
}

// ProxyPodTemplate is the part of the proxy's pod template that a user may set.
type ProxyPodTemplate struct {
	// Annotations on the proxy's pods.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`

	// NodeSelector of the proxy's pods.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Tolerations of the proxy's pods.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// PriorityClassName of the proxy's pods.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PriorityClassName string `json:"priorityClassName,omitempty"`
}

// ProxySpec shapes the proxy Deployment of this policy.
type ProxySpec struct {
	// Replicas of the proxy, 1 to 50.
	// +optional
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=50
	Replicas *int32 `json:"replicas,omitempty"`

	// Resources of the proxy container.
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitempty,omitzero"`

	// Upstream chains the proxy behind another HTTP proxy.
	// +optional
	Upstream *UpstreamSpec `json:"upstream,omitempty"`

	// PodTemplate adds scheduling and annotations to the proxy's pods.
	// +optional
	PodTemplate ProxyPodTemplate `json:"podTemplate,omitempty,omitzero"`

	// NetworkPolicy around the proxy itself, as defence in depth: a compromised proxy
	// reaches no cluster service.
	// +optional
	// +kubebuilder:default=Enabled
	NetworkPolicy Toggle `json:"networkPolicy,omitempty"`
}

// SandboxEgressSpec is what the matched pods may reach and how that is enforced. An
// empty spec allows nothing.
type SandboxEgressSpec struct {
	// PodSelector matches the sandboxes of this namespace; app=sandbox by default, {} for
	// every pod but the proxy's own. Immutable: a selector that moved would release pods
	// from their isolation.
	// +optional
	// +kubebuilder:default={matchLabels: {app: sandbox}}
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="podSelector is immutable; create another SandboxEgress instead"
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// Mode is Enforce or Audit.
	// +optional
	// +kubebuilder:default=Enforce
	Mode Mode `json:"mode,omitempty"`

	// Presets are named host lists that come with the operator; see "egressctl presets".
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Presets []string `json:"presets,omitempty"`

	// AllowedHosts may be reached.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=5000
	AllowedHosts []HostPattern `json:"allowedHosts,omitempty"`

	// DeniedHosts are never reached, whatever else allows them.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=5000
	DeniedHosts []HostPattern `json:"deniedHosts,omitempty"`

	// Rules allow hosts by port, method and path.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Rules []Rule `json:"rules,omitempty"`

	// PrivateNetworks may be dialled although they are private. Loopback, link-local,
	// multicast and cloud metadata addresses stay closed inside them.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	PrivateNetworks []CIDR `json:"privateNetworks,omitempty"`

	// Delivery is Env or Relay. Long-lived sandboxes want Relay: the environment of a
	// running process cannot be renewed.
	// +optional
	// +kubebuilder:default=Env
	Delivery Delivery `json:"delivery,omitempty"`

	// DNS is Cluster or None. The proxy resolves names itself, so None costs only tools
	// that resolve before they ask the proxy, and closes DNS as a covert channel.
	// +optional
	// +kubebuilder:default=Cluster
	DNS DNSMode `json:"dns,omitempty"`

	// StartGate holds a sandbox's containers back until the pod has proved that the proxy
	// answers and that the CNI enforces its NetworkPolicy.
	// +optional
	// +kubebuilder:default=Enabled
	StartGate Toggle `json:"startGate,omitempty"`

	// NetworkPolicy shapes the policies around the sandboxes.
	// +optional
	// +kubebuilder:default={}
	NetworkPolicy NetworkPolicySpec `json:"networkPolicy,omitempty,omitzero"`

	// Token shapes the tokens.
	// +optional
	// +kubebuilder:default={}
	Token TokenSpec `json:"token,omitempty,omitzero"`

	// Limits per sandbox.
	// +optional
	// +kubebuilder:default={}
	Limits LimitsSpec `json:"limits,omitempty,omitzero"`

	// Proxy shapes the proxy Deployment.
	// +optional
	// +kubebuilder:default={}
	Proxy ProxySpec `json:"proxy,omitempty,omitzero"`
}

// Condition types in status.conditions.
const (
	// ConditionReady is true when proxy, keys and policies are all in place.
	ConditionReady = "Ready"
	// ConditionProxyAvailable is true when at least one proxy replica serves.
	ConditionProxyAvailable = "ProxyAvailable"
	// ConditionPolicyEnforced is true when the default-deny policy is in place and the
	// spec in force is the current one.
	ConditionPolicyEnforced = "PolicyEnforced"
	// ConditionIsolationWidened is true while another NetworkPolicy adds egress to the
	// sandboxes; its message names the policy.
	ConditionIsolationWidened = "IsolationWidened"
)

// SandboxCounts counts the matched pods; status never lists them.
type SandboxCounts struct {
	// Matched pods that run or will run.
	// +optional
	Matched int32 `json:"matched"`
	// Ready ones among them.
	// +optional
	Ready int32 `json:"ready"`
	// Uninjected ones: created before the policy, isolated, without a token.
	// +optional
	Uninjected int32 `json:"uninjected"`
}

// SandboxEgressStatus is what the operator observed.
type SandboxEgressStatus struct {
	// ObservedGeneration is the generation of the spec that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Conditions are Ready, ProxyAvailable, PolicyEnforced and IsolationWidened.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// ProxyAddress is the ClusterIP and port that sandboxes are told.
	// +optional
	ProxyAddress string `json:"proxyAddress,omitempty"`

	// Sandboxes counts the matched pods.
	// +optional
	Sandboxes SandboxCounts `json:"sandboxes,omitempty,omitzero"`

	// PolicyHash identifies the policy in force, for comparing with what proxies report.
	// +optional
	PolicyHash string `json:"policyHash,omitempty"`
}

// SandboxEgress lets the pods that its selector matches reach the listed hosts through
// an authenticated egress proxy, and nothing else.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=sbe,categories=sandbox
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Sandboxes",type=integer,JSONPath=`.status.sandboxes.matched`
// +kubebuilder:printcolumn:name="Proxy",type=string,JSONPath=`.status.proxyAddress`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 50",message="metadata.name must be at most 50 characters: the proxy's Service is named <name>-egress-proxy"
type SandboxEgress struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the matched pods may reach.
	// +optional
	// +kubebuilder:default={}
	Spec SandboxEgressSpec `json:"spec,omitempty,omitzero"`

	// Status is what the operator observed.
	// +optional
	Status SandboxEgressStatus `json:"status,omitempty,omitzero"`
}

// SandboxEgressList is a list of SandboxEgress.
//
// +kubebuilder:object:root=true
type SandboxEgressList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SandboxEgress `json:"items"`
}
