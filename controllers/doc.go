// Package controllers holds the operator's controllers, one in each folder, and the RBAC
// rules of the parts that are not theirs: certificates, leader election, metrics. Every
// rule stands beside a comment that says why; config/rbac/role.yaml is generated from them.
package controllers

// The certificate rotation reads and fills its Secret and writes the CA into the webhook
// configurations. Secrets: rules of a Role in the operator's namespace; list and watch are
// what its own cache of that namespace needs. The watch of webhook configurations is of all
// of them, since RBAC cannot limit a watch without a field selector; update is limited to
// ours.
// +kubebuilder:rbac:groups="",namespace=sandbox-egress-system,resources=secrets,verbs=get;list;watch;update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations;validatingwebhookconfigurations,verbs=get;list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=sandbox-egress-mutating,verbs=update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=validatingwebhookconfigurations,resourceNames=sandbox-egress-validating,verbs=update
//
// leases: leader election. The events are those of the election.
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=sandbox-egress-system,resources=leases,verbs=get;create;update
// +kubebuilder:rbac:groups="",namespace=sandbox-egress-system,resources=events,verbs=create;patch
//
// The metrics endpoint asks the API server who calls and whether they may.
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create
