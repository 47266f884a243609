package injector_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

var managedNames = []string{
	"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY",
	"GLOBAL_AGENT_HTTP_PROXY", "NO_PROXY", "no_proxy", "GIT_HTTP_PROXY_AUTHMETHOD", "NODE_USE_ENV_PROXY",
}

func drawContainers(t *rapid.T, label string, least int) []corev1.Container {
	envNames := append([]string{"A", "B", "C", "JAVA_TOOL_OPTIONS"}, managedNames...)
	containers := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), least, 4, rapid.ID).Draw(t, label)
	out := make([]corev1.Container, len(containers))
	for i, name := range containers {
		out[i] = corev1.Container{Name: label + name, Image: "image"}
		for _, n := range rapid.SliceOfN(rapid.SampledFrom(envNames), 0, 8).Draw(t, "env") {
			v := corev1.EnvVar{Name: n}
			switch rapid.IntRange(0, 2).Draw(t, "source") {
			case 0:
				v.Value = rapid.SampledFrom([]string{"", "x", "$(HTTP_PROXY)", "localhost,127.0.0.1,::1"}).Draw(t, "value")
			default:
				v.ValueFrom = &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{Key: "k", Optional: rapid.SampledFrom([]*bool{nil, ptr.To(true)}).Draw(t, "optional")}}
			}
			out[i].Env = append(out[i].Env, v)
		}
	}
	return out
}

// For any pod: the patch makes of the old pod exactly the new one, injecting again changes
// nothing, each managed variable stands once and says what it must, and what else the user
// wrote is there in its order.
func TestInjectProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := &v1alpha1.SandboxEgress{ObjectMeta: metav1.ObjectMeta{Name: "agents"}, Status: v1alpha1.SandboxEgressStatus{ProxyAddress: "10.0.0.1:8443"}}
		policy.Spec.Delivery = rapid.SampledFrom([]v1alpha1.Delivery{"", v1alpha1.DeliveryEnv, v1alpha1.DeliveryRelay}).Draw(t, "delivery")
		policy.Spec.StartGate = rapid.SampledFrom([]v1alpha1.Toggle{"", v1alpha1.Enabled, v1alpha1.Disabled}).Draw(t, "gate")
		policy.Spec.NetworkPolicy.Granularity = rapid.SampledFrom([]v1alpha1.Granularity{"", v1alpha1.GranularityPerPod, v1alpha1.GranularityShared}).Draw(t, "granularity")
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Labels:      rapid.SampledFrom([]map[string]string{nil, {"app": "sandbox"}}).Draw(t, "labels"),
				Annotations: rapid.SampledFrom([]map[string]string{nil, {}, {"a~b/c": "1"}}).Draw(t, "annotations"),
			},
			Spec: corev1.PodSpec{
				InitContainers: drawContainers(t, "init-", 0),
				Containers:     drawContainers(t, "main-", 1),
				Volumes:        rapid.SampledFrom([][]corev1.Volume{nil, {{Name: "v"}}}).Draw(t, "volumes"),
			},
		}
		// What the guard would have refused is not drawn.
		in := injector.Input{Pod: pod, Policy: policy, ID: testID}
		after, err := injector.Inject(testConfig, in)
		if err != nil {
			t.Fatal(err)
		}

		ops, err := json.Marshal(injector.Patch(pod, after))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(ops)
		if err != nil {
			t.Fatal(err)
		}
		before, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		patched, err := patch.Apply(before)
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, before, ops)
		}
		var got corev1.Pod
		if err := json.Unmarshal(patched, &got); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(&got, after) {
			t.Fatalf("patched %s\nwant %+v", patched, after)
		}

		in.Pod, in.ID = &got, "zzzzzzzzzzzzzzzzzzzz"
		again, err := injector.Inject(testConfig, in)
		if err != nil {
			t.Fatal(err)
		}
		if ops := injector.Patch(&got, again); len(ops) > 0 || !equality.Semantic.DeepEqual(&got, again) {
			t.Fatalf("the second injection changes %v", ops)
		}

		var containers []corev1.Container
		for _, c := range append(slices.Clone(after.Spec.InitContainers), after.Spec.Containers...) {
			if c.Name != injector.GateContainer && c.Name != injector.RelayContainer {
				containers = append(containers, c)
			}
		}
		originals := append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...)
		for i, c := range containers {
			if c.Name != originals[i].Name {
				t.Fatalf("container %d is %s, was %s", i, c.Name, originals[i].Name)
			}
			for _, name := range managedNames {
				if n := count(c.Env, name); n != 1 {
					t.Fatalf("%s has %s %d times", c.Name, name, n)
				}
			}
			if url := c.Env[0]; url.Name != "HTTP_PROXY" || (url.ValueFrom == nil) != (policy.Spec.Delivery == v1alpha1.DeliveryRelay) {
				t.Fatalf("%s: first is %+v", c.Name, url)
			}
			if a, b := users(originals[i].Env), users(c.Env); !slices.Equal(a, b) {
				t.Fatalf("%s: the user's variables were %q, are %q", c.Name, a, b)
			}
		}
		if errs := append(injector.CheckSecrets(after), injector.CheckPrivileges(after)...); len(errs) > 0 {
			t.Fatal(errs)
		}
	})
}

func count(list []corev1.EnvVar, name string) (n int) {
	for _, v := range list {
		if v.Name == name {
			n++
		}
	}
	return n
}

// users are the names of variables that injection has nothing to do with, in order.
func users(list []corev1.EnvVar) []string {
	var names []string
	for _, v := range list {
		if !slices.Contains(managedNames, v.Name) && !strings.HasSuffix(v.Name, "JAVA_TOOL_OPTIONS") {
			names = append(names, v.Name)
		}
	}
	return names
}
