package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version name the API as it stands in manifests.
const (
	Group   = "egress.sandbox.dev"
	Version = "v1alpha1"
	Kind    = "SandboxEgress"
)

var (
	// SchemeGroupVersion is the group and version of every type here. The generated apply
	// configurations read it by this name.
	SchemeGroupVersion = schema.GroupVersion{Group: Group, Version: Version}
	// GroupVersionKind identifies a SandboxEgress in owner references and typed applies.
	GroupVersionKind = SchemeGroupVersion.WithKind(Kind)
)

// AddToScheme registers SandboxEgress and its list in s.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(SchemeGroupVersion, &SandboxEgress{}, &SandboxEgressList{})
	metav1.AddToGroupVersion(s, SchemeGroupVersion)
	return nil
}
