package injector

import (
	"fmt"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// nonRoot is the user of distroless images.
const nonRoot int64 = 65532

// restricted satisfies the Pod Security Standard of that name, whatever the pod says.
func restricted() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		Privileged:               ptr.To(false),
		ReadOnlyRootFilesystem:   ptr.To(true),
		RunAsNonRoot:             ptr.To(true),
		RunAsUser:                ptr.To(nonRoot),
		RunAsGroup:               ptr.To(nonRoot),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// gateContainer holds the pod back until its isolation is proved. It needs neither the
// Secret nor DNS.
func gateContainer(cfg Config, proxy, canary string) corev1.Container {
	timeout := cfg.GateTimeout
	if timeout == 0 {
		timeout = DefaultGateTimeout
	}
	return corev1.Container{
		Name:            GateContainer,
		Image:           cfg.Image,
		ImagePullPolicy: cfg.ImagePullPolicy,
		Command:         []string{relayBinary},
		Args:            []string{"gate", "--proxy=" + proxy, "--canary=" + canary, "--timeout=" + timeout.String()},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("10m"),
				corev1.ResourceMemory: resource.MustParse("16Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
		},
		SecurityContext: restricted(),
	}
}

// relayContainer is a native sidecar: it starts before the init containers that follow
// and outlives the last container. The kubelet cannot probe a loopback port, hence the
// exec probe.
func relayContainer(cfg Config, proxy, containerID string) corev1.Container {
	listen := fmt.Sprintf("127.0.0.1:%d", v1alpha1.RelayPort)
	return corev1.Container{
		Name:            RelayContainer,
		Image:           cfg.Image,
		ImagePullPolicy: cfg.ImagePullPolicy,
		Command:         []string{relayBinary},
		Args: []string{
			"serve", "--proxy=" + proxy, "--container-id=" + containerID,
			"--token-file=" + path.Join(tokenDir, v1alpha1.SecretKeyToken),
			fmt.Sprintf("--port=%d", v1alpha1.RelayPort),
		},
		RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("10m"),
				corev1.ResourceMemory: resource.MustParse("16Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: TokenVolume, MountPath: tokenDir, ReadOnly: true}},
		StartupProbe: &corev1.Probe{
			ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{relayBinary, "health", "--address=" + listen}}},
			PeriodSeconds:    1,
			TimeoutSeconds:   5,
			SuccessThreshold: 1, // the default, spelled out: see sameContainer
			FailureThreshold: 60,
		},
		SecurityContext: restricted(),
	}
}

// tokenVolume holds the token key only. World-readable, since the relay is not root and
// the pod's fsGroup belongs to the user; no other container may mount it.
func tokenVolume(id string) corev1.Volume {
	return corev1.Volume{
		Name: TokenVolume,
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName:  v1alpha1.IdentityName(id),
			DefaultMode: ptr.To[int32](0o444),
			Items:       []corev1.KeyToPath{{Key: v1alpha1.SecretKeyToken, Path: v1alpha1.SecretKeyToken}},
		}},
	}
}

// placeFirst puts the injected containers at the head, in order, and drops other ones of
// their names. An existing container that says the same is kept: the API server has
// filled in defaults, and other webhooks may have added to it.
func placeFirst(list, first []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, 0, len(list)+len(first))
	for _, want := range first {
		i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == want.Name })
		if i >= 0 && sameContainer(want, list[i]) {
			want = list[i]
		}
		out = append(out, want)
	}
	for _, c := range list {
		if c.Name != GateContainer && c.Name != RelayContainer {
			out = append(out, c)
		}
	}
	return out
}

// sameContainer compares the fields that want sets. Lists whose extra elements would
// change what runs are compared whole.
func sameContainer(want, have corev1.Container) bool {
	return equality.Semantic.DeepDerivative(want, have) &&
		slices.Equal(want.Command, have.Command) &&
		slices.Equal(want.Args, have.Args) &&
		have.Lifecycle == nil && have.LivenessProbe == nil &&
		len(have.SecurityContext.Capabilities.Add) == 0
}

func placeVolume(list []corev1.Volume, want corev1.Volume) []corev1.Volume {
	i := slices.IndexFunc(list, func(v corev1.Volume) bool { return v.Name == want.Name })
	switch {
	case i < 0:
		return append(list, want)
	case !equality.Semantic.DeepDerivative(want, list[i]) || len(list[i].Secret.Items) != len(want.Secret.Items):
		list[i] = want
	}
	return list
}
