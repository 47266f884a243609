package injector_test

import (
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

func TestNewIDIsADNSLabelAndDoesNotRepeat(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id, err := injector.NewID(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if !injector.ValidID(id) || seen[id] {
			t.Fatalf("id %q: valid %v, repeated %v", id, injector.ValidID(id), seen[id])
		}
		seen[id] = true
	}
}

func TestNewIDReportsAFailingSource(t *testing.T) {
	broken := errors.New("no entropy")
	if id, err := injector.NewID(iotest.ErrReader(broken)); !errors.Is(err, broken) || id != "" {
		t.Fatalf("NewID = %q, %v", id, err)
	}
}

func TestContainerIDIsTheUsersElseTheID(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.IDKey: testID}}}
	if got := injector.ContainerID(pod); got != testID {
		t.Errorf("ContainerID = %q", got)
	}
	pod.Annotations[v1alpha1.ContainerIDAnnotation] = "session-1"
	if got := injector.ContainerID(pod); got != "session-1" {
		t.Errorf("ContainerID = %q", got)
	}
}

func sandbox(change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "sandbox"}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent"}}},
	}
	change(pod)
	return pod
}

// checkFields compares the fields that were refused, and that each says what to do.
func checkFields(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	var got []string
	for _, e := range errs {
		got = append(got, e.Field)
		if !strings.ContainsAny(e.Detail, ";") {
			t.Errorf("%s: %q does not say what to do", e.Field, e.Detail)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("refused %q, want %q", got, want)
	}
}

func TestCheckReserved(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   []string
	}{
		"an ordinary pod": {func(*corev1.Pod) {}, nil},
		"what users may set": {func(p *corev1.Pod) {
			p.Annotations[v1alpha1.ContainerIDAnnotation] = "a"
			p.Annotations[v1alpha1.AllowedHostsAnnotation] = "example.com"
			p.Annotations[v1alpha1.QuarantineAnnotation] = "true"
		}, nil},
		"managed annotations": {func(p *corev1.Pod) {
			p.Annotations[v1alpha1.IDKey] = testID
			p.Annotations[v1alpha1.PolicyKey] = "agents"
			p.Annotations[v1alpha1.InjectedAnnotation] = ""
		}, []string{"metadata.annotations[egress.sandbox.dev/id]", "metadata.annotations[egress.sandbox.dev/policy]", "metadata.annotations[egress.sandbox.dev/injected]"}},
		"the id label": {func(p *corev1.Pod) { p.Labels[v1alpha1.IDKey] = testID }, []string{"metadata.labels[egress.sandbox.dev/id]"}},
		"container names": {func(p *corev1.Pod) {
			p.Spec.Containers[0].Name = "egress-relay"
			p.Spec.InitContainers = []corev1.Container{{Name: "egress-gate"}}
		}, []string{"spec.containers[0].name", "spec.initContainers[0].name"}},
		"the token volume": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "egress-token"}}
		}, []string{"spec.volumes[0].name"}},
		"a mount of the token volume that injection would add": {func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "egress-token", MountPath: "/t"}}
		}, []string{"spec.containers[0].volumeMounts[0]"}},
	} {
		t.Run(name, func(t *testing.T) { checkFields(t, injector.CheckReserved(sandbox(tc.change)), tc.want) })
	}
}

func TestCheckReservedEphemeral(t *testing.T) {
	old := sandbox(func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{TargetContainerName: "egress-relay", EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "old"}}}
	})
	for name, tc := range map[string]struct {
		add  corev1.EphemeralContainer
		want []string
	}{
		"a debugger of the agent": {corev1.EphemeralContainer{TargetContainerName: "agent", EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}, nil},
		"a debugger of the relay": {corev1.EphemeralContainer{TargetContainerName: "egress-relay", EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}},
			[]string{"spec.ephemeralContainers[1].targetContainerName"}},
		"a reserved name": {corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "egress-gate"}},
			[]string{"spec.ephemeralContainers[1].name"}},
		"a mount of the token": {corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", VolumeMounts: []corev1.VolumeMount{{Name: "egress-token"}}}},
			[]string{"spec.ephemeralContainers[1].volumeMounts[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := old.DeepCopy()
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, tc.add)
			checkFields(t, injector.CheckReservedEphemeral(pod, old), tc.want)
		})
	}
}

func TestCheckPrivileges(t *testing.T) {
	caps := func(names ...corev1.Capability) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: names}}
		}
	}
	hostProcess := &corev1.WindowsSecurityContextOptions{HostProcess: ptr.To(true)}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   []string
	}{
		"an ordinary pod":     {func(*corev1.Pod) {}, nil},
		"host network":        {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, []string{"spec.hostNetwork"}},
		"host PID":            {func(p *corev1.Pod) { p.Spec.HostPID = true }, []string{"spec.hostPID"}},
		"host IPC":            {func(p *corev1.Pod) { p.Spec.HostIPC = true }, []string{"spec.hostIPC"}},
		"harmless capability": {caps("CHOWN", "NET_BIND_SERVICE"), nil},
		"NET_ADMIN":           {caps("CHOWN", "NET_ADMIN"), []string{"spec.containers[0].securityContext.capabilities.add[1]"}},
		"NET_RAW":             {caps("NET_RAW"), []string{"spec.containers[0].securityContext.capabilities.add[0]"}},
		"SYS_ADMIN":           {caps("SYS_ADMIN"), []string{"spec.containers[0].securityContext.capabilities.add[0]"}},
		"ALL":                 {caps("ALL"), []string{"spec.containers[0].securityContext.capabilities.add[0]"}},
		"lower case":          {caps("net_admin"), []string{"spec.containers[0].securityContext.capabilities.add[0]"}},
		"the kernel's name":   {caps("cap_Net_Raw"), []string{"spec.containers[0].securityContext.capabilities.add[0]"}},
		"privileged is false": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(false)}
		}, nil},
		"privileged init": {func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}}
		}, []string{"spec.initContainers[0].securityContext.privileged"}},
		"Windows host process": {func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: hostProcess} }, []string{"spec.securityContext.windowsOptions.hostProcess"}},
		"Windows host process container": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{WindowsOptions: hostProcess}
		}, []string{"spec.containers[0].securityContext.windowsOptions.hostProcess"}},
		"privileged ephemeral": {func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}}}
		}, []string{"spec.ephemeralContainers[0].securityContext.privileged"}},
	} {
		t.Run(name, func(t *testing.T) { checkFields(t, injector.CheckPrivileges(sandbox(tc.change)), tc.want) })
	}
}

func TestCheckProcessNamespaceMattersUnderRelayOnly(t *testing.T) {
	pod := sandbox(func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr.To(true) })
	checkFields(t, injector.CheckProcessNamespace(pod, v1alpha1.DeliveryRelay), []string{"spec.shareProcessNamespace"})
	checkFields(t, injector.CheckProcessNamespace(pod, v1alpha1.DeliveryEnv), nil)
	pod.Spec.ShareProcessNamespace = ptr.To(false)
	checkFields(t, injector.CheckProcessNamespace(pod, v1alpha1.DeliveryRelay), nil)
}

func TestCheckSecretsAcceptsWhatInjectionMade(t *testing.T) {
	for _, dir := range cases(t) {
		pod, err := injector.Inject(testConfig, inputOf(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		if errs := injector.CheckSecrets(pod); len(errs) != 0 {
			t.Errorf("%s: %v", dir, errs)
		}
	}
}

func TestCheckSecrets(t *testing.T) {
	const other = "egress-zzzzzzzzzzzzzzzzzzzz"
	own := v1alpha1.IdentityName(testID)
	ref := func(name, key string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key}}
	}
	env := func(v corev1.EnvVar) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{v} }
	}
	volume := func(s corev1.VolumeSource) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: s}} }
	}
	local := &corev1.LocalObjectReference{Name: other}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   []string
	}{
		"a user's own Secret":            {env(corev1.EnvVar{Name: "KEY", ValueFrom: ref("egress-settings", "key")}), nil},
		"another sandbox's Secret":       {env(corev1.EnvVar{Name: "HTTP_PROXY", ValueFrom: ref(other, "proxy-url")}), []string{"spec.containers[0].env[0].valueFrom.secretKeyRef.name"}},
		"its own Secret, other variable": {env(corev1.EnvVar{Name: "TOKEN", ValueFrom: ref(own, "token")}), []string{"spec.containers[0].env[0].valueFrom.secretKeyRef.name"}},
		"its own Secret as injected":     {env(corev1.EnvVar{Name: "HTTP_PROXY", ValueFrom: ref(own, "proxy-url")}), nil},
		"another sandbox's Secret, envFrom": {func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: *local}}}
		}, []string{"spec.containers[0].envFrom[0].secretRef.name"}},
		"a Secret volume":            {volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: other}}), []string{"spec.volumes[0].secret.secretName"}},
		"its own Secret in a volume": {volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: own}}), []string{"spec.volumes[0].secret.secretName"}},
		"a projected volume": {volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{}, {Secret: &corev1.SecretProjection{LocalObjectReference: *local}}}}}),
			[]string{"spec.volumes[0].projected.sources[1].secret.name"}},
		"a CSI driver's reference": {volume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: local}}), []string{"spec.volumes[0].csi.secretRef.name"}},
		"a flex driver's":          {volume(corev1.VolumeSource{FlexVolume: &corev1.FlexVolumeSource{SecretRef: local}}), []string{"spec.volumes[0].flexVolume.secretRef.name"}},
		"Azure's":                  {volume(corev1.VolumeSource{AzureFile: &corev1.AzureFileVolumeSource{SecretName: other}}), []string{"spec.volumes[0].azureFile.secretName"}},
		"an ephemeral container": {func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: []corev1.EnvVar{{Name: "A", ValueFrom: ref(other, "token")}}}}}
		}, []string{"spec.ephemeralContainers[0].env[0].valueFrom.secretKeyRef.name"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := sandbox(tc.change)
			pod.Annotations[v1alpha1.IDKey], pod.Annotations[v1alpha1.InjectedAnnotation] = testID, "Env"
			checkFields(t, injector.CheckSecrets(pod), tc.want)
		})
	}
}

func TestCheckSecretsKeepsTheTokenVolumeForTheRelay(t *testing.T) {
	pod, err := injector.Inject(testConfig, inputOf(t, "testdata/relay-plain"))
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "egress-token", MountPath: "/t"}}
	checkFields(t, injector.CheckSecrets(pod), []string{"spec.containers[0].volumeMounts[0]"})
}

func TestInjectEphemeralGivesOnlyNewContainersTheEnvironment(t *testing.T) {
	for name, tc := range map[string]struct {
		dir, url string
	}{
		"Env":   {"testdata/env-plain", ""},
		"Relay": {"testdata/relay-plain", "http://127.0.0.1:3128"},
	} {
		t.Run(name, func(t *testing.T) {
			old, err := injector.Inject(testConfig, inputOf(t, tc.dir))
			if err != nil {
				t.Fatal(err)
			}
			old.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "old"}}}
			pod := old.DeepCopy()
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{
				EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Env: []corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://evil.example"}}},
			})
			got := injector.InjectEphemeral(pod, old)
			if env := got.Spec.EphemeralContainers[0].Env; env != nil {
				t.Errorf("the old container was changed: %v", env)
			}
			first := got.Spec.EphemeralContainers[1].Env[0]
			if first.Name != "HTTP_PROXY" || first.Value != tc.url || (first.ValueFrom == nil) == (tc.url == "") {
				t.Errorf("HTTP_PROXY = %+v", first)
			}
			for _, op := range injector.Patch(pod, got) {
				if !strings.HasPrefix(op.Path, "/spec/ephemeralContainers/1/env") {
					t.Errorf("patch touches %s", op.Path)
				}
			}
		})
	}
}

func TestInjectEphemeralLeavesAnUninjectedPodAlone(t *testing.T) {
	old := sandbox(func(*corev1.Pod) {})
	pod := old.DeepCopy()
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	if got := injector.InjectEphemeral(pod, old); got.Spec.EphemeralContainers[0].Env != nil {
		t.Errorf("got environment %v", got.Spec.EphemeralContainers[0].Env)
	}
}

// What the API server and other webhooks add between two invocations must not make the
// second one change the pod; what they break must be repaired.
func TestReinvocation(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*corev1.Pod)
		repairs bool
	}{
		"defaulted fields": {func(p *corev1.Pod) {
			for i := range p.Spec.InitContainers {
				p.Spec.InitContainers[i].TerminationMessagePath = "/dev/termination-log"
			}
			p.Spec.InitContainers[1].StartupProbe.TerminationGracePeriodSeconds = ptr.To[int64](30)
		}, false},
		"a service account mount in the relay": {func(p *corev1.Pod) {
			p.Spec.InitContainers[1].VolumeMounts = append(p.Spec.InitContainers[1].VolumeMounts, corev1.VolumeMount{Name: "kube-api-access-x", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
		}, false},
		"an init container before the gate": {func(p *corev1.Pod) {
			p.Spec.InitContainers = append([]corev1.Container{{Name: "mesh"}}, p.Spec.InitContainers...)
		}, true},
		"a container without environment": {func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "mesh"})
		}, true},
		"a variable that wins over ours": {func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: "https_proxy", Value: "http://evil.example"})
		}, true},
		"another image in the gate": {func(p *corev1.Pod) { p.Spec.InitContainers[0].Image = "evil.example/gate" }, true},
		"another argument": {func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Args = append(p.Spec.InitContainers[0].Args, "--timeout=0s")
		}, true},
		"a capability": {func(p *corev1.Pod) {
			p.Spec.InitContainers[1].SecurityContext.Capabilities.Add = []corev1.Capability{"SYS_PTRACE"}
		}, true},
		"a hook":           {func(p *corev1.Pod) { p.Spec.InitContainers[1].Lifecycle = &corev1.Lifecycle{} }, true},
		"the gate removed": {func(p *corev1.Pod) { p.Spec.InitContainers = p.Spec.InitContainers[1:] }, true},
		"another Secret in the token volume": {func(p *corev1.Pod) {
			p.Spec.Volumes[1].Secret.SecretName = "egress-zzzzzzzzzzzzzzzzzzzz"
		}, true},
		"more of the Secret in the token volume": {func(p *corev1.Pod) {
			p.Spec.Volumes[1].Secret.Items = append(p.Spec.Volumes[1].Secret.Items, corev1.KeyToPath{Key: "proxy-url", Path: "proxy-url"})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputOf(t, "testdata/relay-plain")
			once, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}
			in.Pod = once.DeepCopy()
			tc.change(in.Pod)
			again, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}
			if ops := injector.Patch(in.Pod, again); (len(ops) > 0) != tc.repairs {
				t.Errorf("patch %v, want repairs %v", ops, tc.repairs)
			}
			if first := again.Spec.InitContainers[0].Name; first != injector.GateContainer {
				t.Errorf("the first init container is %q", first)
			}
		})
	}
}

func BenchmarkInjectAndPatch(b *testing.B) {
	in := inputOf(b, "testdata/relay-plain")
	b.ReportAllocs()
	for b.Loop() {
		pod, err := injector.Inject(testConfig, in)
		if err != nil {
			b.Fatal(err)
		}
		injector.Patch(in.Pod, pod)
	}
}
