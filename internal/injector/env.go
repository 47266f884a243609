package injector

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

const (
	javaToolOptions = "JAVA_TOOL_OPTIONS"
	// userJavaToolOptions keeps a value that comes from a ConfigMap or Secret, so that
	// JAVA_TOOL_OPTIONS can be extended by reference.
	userJavaToolOptions = "SANDBOX_EGRESS_JAVA_TOOL_OPTIONS"

	noProxy = "localhost,127.0.0.1,::1"
)

// javaProxyProperties: the JVM reads no proxy environment. nonProxyHosts is split by '|'.
// See https://docs.oracle.com/en/java/javase/21/core/java-networking.html.
var javaProxyProperties = fmt.Sprintf(
	"-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=%[1]d -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=%[1]d -Dhttp.nonProxyHosts=localhost|127.0.0.1|[::1]",
	v1alpha1.RelayPort)

// proxyURLNames follow HTTP_PROXY and hold the same URL. curl and libraries that follow
// it read http_proxy in lower case only.
var proxyURLNames = []string{
	"http_proxy", "HTTPS_PROXY", "https_proxy",
	"YARN_HTTP_PROXY", "YARN_HTTPS_PROXY", "GLOBAL_AGENT_HTTP_PROXY",
}

// env is the managed part of a container's environment.
type env struct {
	vars []corev1.EnvVar
	java bool
}

// environment of one delivery. Under Env the URL holds the token and comes from the
// sandbox's Secret; the reference is not optional, so the kubelet starts no container
// before the Secret exists. The other variables expand it: one reference instead of seven
// in each container.
func environment(delivery v1alpha1.Delivery, id string) env {
	url := corev1.EnvVar{Name: "HTTP_PROXY"}
	if delivery == v1alpha1.DeliveryRelay {
		url.Value = fmt.Sprintf("http://127.0.0.1:%d", v1alpha1.RelayPort)
	} else {
		url.ValueFrom = &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.IdentityName(id)},
			Key:                  v1alpha1.SecretKeyProxyURL,
		}}
	}
	vars := []corev1.EnvVar{url}
	for _, name := range proxyURLNames {
		vars = append(vars, corev1.EnvVar{Name: name, Value: "$(HTTP_PROXY)"})
	}
	vars = append(vars,
		corev1.EnvVar{Name: "NO_PROXY", Value: noProxy},
		corev1.EnvVar{Name: "no_proxy", Value: noProxy},
		// git asks for credentials it already has unless told that Basic will do.
		corev1.EnvVar{Name: "GIT_HTTP_PROXY_AUTHMETHOD", Value: "basic"},
		// Node's fetch reads the proxy environment only when asked to (Node 24).
		corev1.EnvVar{Name: "NODE_USE_ENV_PROXY", Value: "1"},
	)
	return env{vars: vars, java: delivery == v1alpha1.DeliveryRelay}
}

// apply puts the managed variables first, so that the user's may expand them, and drops
// the user's own variables of these names: of two the last would win.
func (e env) apply(list *[]corev1.EnvVar) {
	managed := make(map[string]bool, len(e.vars))
	for _, v := range e.vars {
		managed[v.Name] = true
	}
	out := make([]corev1.EnvVar, 0, len(e.vars)+len(*list)+1)
	for _, want := range e.vars {
		out = append(out, keepIfSame(*list, want))
	}
	for _, v := range *list {
		if !managed[v.Name] {
			out = append(out, v)
		}
	}
	if e.java {
		out = withJava(out, len(e.vars))
	}
	*list = out
}

// keepIfSame prefers the existing variable when it says the same, defaulted fields aside
// (the API server may add some), so that a reinvocation changes nothing.
func keepIfSame(list []corev1.EnvVar, want corev1.EnvVar) corev1.EnvVar {
	for _, have := range list {
		if have.Name == want.Name && sameEnv(want, have) {
			return have
		}
	}
	return want
}

func sameEnv(want, have corev1.EnvVar) bool {
	if want.ValueFrom == nil || have.ValueFrom == nil {
		return want.ValueFrom == nil && have.ValueFrom == nil && want.Value == have.Value
	}
	w, h := want.ValueFrom.SecretKeyRef, have.ValueFrom.SecretKeyRef
	return h != nil && w.Name == h.Name && w.Key == h.Key && (h.Optional == nil || !*h.Optional)
}

// withJava appends the proxy properties to JAVA_TOOL_OPTIONS, or adds the variable at
// index at. A value from an optional reference stays as it is: when the reference is
// empty, $(NAME) would stay literal and the JVM would not start. That JVM then has no
// proxy and so no egress.
func withJava(list []corev1.EnvVar, at int) []corev1.EnvVar {
	last := -1
	for i := range list {
		if list[i].Name == javaToolOptions {
			last = i
		}
	}
	if last < 0 {
		list = append(list, corev1.EnvVar{})
		copy(list[at+1:], list[at:])
		list[at] = corev1.EnvVar{Name: javaToolOptions, Value: javaProxyProperties}
		return list
	}

	out := list[:0:0]
	for i, v := range list {
		switch {
		case v.Name != javaToolOptions:
			out = append(out, v)
		case i != last: // of several, the last one counts
		case v.ValueFrom == nil:
			if !strings.HasSuffix(v.Value, javaProxyProperties) {
				v.Value = strings.TrimSpace(v.Value + " " + javaProxyProperties)
			}
			out = append(out, v)
		case optional(v.ValueFrom):
			out = append(out, v)
		default:
			v.Name = userJavaToolOptions
			out = append(out, v, corev1.EnvVar{Name: javaToolOptions, Value: "$(" + userJavaToolOptions + ") " + javaProxyProperties})
		}
	}
	return out
}

func optional(s *corev1.EnvVarSource) bool {
	return s.SecretKeyRef != nil && s.SecretKeyRef.Optional != nil && *s.SecretKeyRef.Optional ||
		s.ConfigMapKeyRef != nil && s.ConfigMapKeyRef.Optional != nil && *s.ConfigMapKeyRef.Optional ||
		s.FileKeyRef != nil && s.FileKeyRef.Optional != nil && *s.FileKeyRef.Optional
}
