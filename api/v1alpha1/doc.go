// Package v1alpha1 holds the SandboxEgress API: which hosts the pods that a selector
// matches may reach, and how that is enforced.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +groupName=egress.sandbox.dev
package v1alpha1
