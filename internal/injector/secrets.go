package injector

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// CheckSecrets refuses references to identity Secrets, except those that injection made:
// HTTP_PROXY under Env, the relay's volume under Relay. It knows them by the name's form,
// egress- and an id; a Secret of the user's such as egress-settings is none of its business.
func CheckSecrets(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	own := v1alpha1.IdentityName(pod.Annotations[v1alpha1.IDKey])
	delivery := v1alpha1.Delivery(pod.Annotations[v1alpha1.InjectedAnnotation])
	refuse := func(at *field.Path, name string) {
		if identitySecret.MatchString(name) {
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("Secret %q is the identity of a sandbox; remove the reference", name)))
		}
	}

	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if delivery == v1alpha1.DeliveryRelay && v.Name == TokenVolume && v.Secret != nil && v.Secret.SecretName == own {
			continue
		}
		checkVolume(v, specPath.Child("volumes").Index(i), refuse)
	}
	visitContainers(pod, func(c *corev1.Container, at *field.Path) {
		for i, e := range c.EnvFrom {
			if e.SecretRef != nil {
				refuse(at.Child("envFrom").Index(i).Child("secretRef", "name"), e.SecretRef.Name)
			}
		}
		for i, e := range c.Env {
			if e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil {
				continue
			}
			ref := e.ValueFrom.SecretKeyRef
			if delivery == v1alpha1.DeliveryEnv && e.Name == "HTTP_PROXY" && ref.Name == own && ref.Key == v1alpha1.SecretKeyProxyURL {
				continue
			}
			refuse(at.Child("env").Index(i).Child("valueFrom", "secretKeyRef", "name"), ref.Name)
		}
		if c.Name != RelayContainer {
			for i, m := range c.VolumeMounts {
				if m.Name == TokenVolume {
					errs = append(errs, field.Forbidden(at.Child("volumeMounts").Index(i), fmt.Sprintf("volume %q belongs to the relay; remove the mount", TokenVolume)))
				}
			}
		}
	})
	return errs
}

// checkVolume reports every Secret that a volume names, those handed to drivers included.
func checkVolume(v *corev1.Volume, at *field.Path, refuse func(*field.Path, string)) {
	if v.Secret != nil {
		refuse(at.Child("secret", "secretName"), v.Secret.SecretName)
	}
	if v.Projected != nil {
		for i, s := range v.Projected.Sources {
			if s.Secret != nil {
				refuse(at.Child("projected", "sources").Index(i).Child("secret", "name"), s.Secret.Name)
			}
		}
	}
	if v.AzureFile != nil {
		refuse(at.Child("azureFile", "secretName"), v.AzureFile.SecretName)
	}
	for name, ref := range map[string]*corev1.LocalObjectReference{
		"csi":        driverRef(v.CSI, func(s *corev1.CSIVolumeSource) *corev1.LocalObjectReference { return s.NodePublishSecretRef }),
		"flexVolume": driverRef(v.FlexVolume, func(s *corev1.FlexVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"cephfs":     driverRef(v.CephFS, func(s *corev1.CephFSVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"cinder":     driverRef(v.Cinder, func(s *corev1.CinderVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"rbd":        driverRef(v.RBD, func(s *corev1.RBDVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"iscsi":      driverRef(v.ISCSI, func(s *corev1.ISCSIVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"scaleIO":    driverRef(v.ScaleIO, func(s *corev1.ScaleIOVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
		"storageos":  driverRef(v.StorageOS, func(s *corev1.StorageOSVolumeSource) *corev1.LocalObjectReference { return s.SecretRef }),
	} {
		if ref != nil {
			refuse(at.Child(name, "secretRef", "name"), ref.Name)
		}
	}
}

func driverRef[T any](source *T, ref func(*T) *corev1.LocalObjectReference) *corev1.LocalObjectReference {
	if source == nil {
		return nil
	}
	return ref(source)
}
