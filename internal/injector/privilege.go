package injector

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// escapes maps a capability to the way it leads out of the pod's isolation.
var escapes = map[string]string{
	"ALL":       "holds NET_ADMIN, NET_RAW and SYS_ADMIN",
	"NET_ADMIN": "can change the pod's routes and firewall",
	"NET_RAW":   "can forge the source address that tokens are bound to",
	"SYS_ADMIN": "can enter other network namespaces",
}

// CheckPrivileges refuses what lets a pod leave its network isolation: the host's
// namespaces, privileged containers and the capabilities in escapes.
func CheckPrivileges(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	for name, on := range map[string]bool{
		"hostNetwork": pod.Spec.HostNetwork,
		"hostPID":     pod.Spec.HostPID,
		"hostIPC":     pod.Spec.HostIPC,
	} {
		if on {
			errs = append(errs, field.Forbidden(specPath.Child(name), "a sandbox may not share the host's namespaces; set it to false"))
		}
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		errs = append(errs, checkHostProcess(sc.WindowsOptions, specPath.Child("securityContext"))...)
	}
	visitContainers(pod, func(c *corev1.Container, at *field.Path) {
		sc := c.SecurityContext
		if sc == nil {
			return
		}
		at = at.Child("securityContext")
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Forbidden(at.Child("privileged"), "a sandbox may not run privileged containers; set it to false"))
		}
		errs = append(errs, checkHostProcess(sc.WindowsOptions, at)...)
		if sc.Capabilities == nil {
			return
		}
		for i, capability := range sc.Capabilities.Add {
			// Runtimes ignore case, and some a CAP_ prefix.
			name := strings.TrimPrefix(strings.ToUpper(string(capability)), "CAP_")
			if why, ok := escapes[name]; ok {
				errs = append(errs, field.Forbidden(at.Child("capabilities", "add").Index(i), fmt.Sprintf("a sandbox may not add %s, which %s; remove it", capability, why)))
			}
		}
	})
	return errs
}

func checkHostProcess(o *corev1.WindowsSecurityContextOptions, at *field.Path) field.ErrorList {
	if o == nil || o.HostProcess == nil || !*o.HostProcess {
		return nil
	}
	return field.ErrorList{field.Forbidden(at.Child("windowsOptions", "hostProcess"), "a sandbox may not share the host's namespaces; set it to false")}
}

// CheckProcessNamespace keeps the sandbox's processes away from the relay's, whose
// /proc/<pid>/root shows the token.
func CheckProcessNamespace(pod *corev1.Pod, delivery v1alpha1.Delivery) field.ErrorList {
	if delivery != v1alpha1.DeliveryRelay || pod.Spec.ShareProcessNamespace == nil || !*pod.Spec.ShareProcessNamespace {
		return nil
	}
	return field.ErrorList{field.Forbidden(specPath.Child("shareProcessNamespace"),
		"would show the relay's token to the sandbox under delivery Relay; set it to false or use delivery Env")}
}
