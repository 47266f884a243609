package injector_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
)

var update = flag.Bool("update", false, "rewrite the want.yaml files under testdata")

const testID = "abcdefghij234567abcd"

var testConfig = injector.Config{Image: "example.com/sandbox-egress:v1", ImagePullPolicy: corev1.PullIfNotPresent}

func read[T any](t testing.TB, path string) *T {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := new(T)
	if err := yaml.UnmarshalStrict(raw, out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return out
}

func cases(t testing.TB) []string {
	t.Helper()
	pods, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil || len(pods) == 0 {
		t.Fatalf("no cases under testdata: %v", err)
	}
	dirs := make([]string, len(pods))
	for i, pod := range pods {
		dirs[i] = filepath.Dir(pod)
	}
	return dirs
}

func inputOf(t testing.TB, dir string) injector.Input {
	t.Helper()
	return injector.Input{
		Pod:    read[corev1.Pod](t, filepath.Join(dir, "pod.yaml")),
		Policy: read[v1alpha1.SandboxEgress](t, filepath.Join(dir, "policy.yaml")),
		ID:     testID,
	}
}

func TestGolden(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in := inputOf(t, dir)
			before := in.Pod.DeepCopy()
			got, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}
			if !equality.Semantic.DeepEqual(before, in.Pod) {
				t.Error("Inject changed its input")
			}
			gotYAML, err := yaml.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join(dir, "want.yaml")
			if *update {
				if err := os.WriteFile(golden, gotYAML, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(gotYAML, want) {
				t.Errorf("differs from %s (run with -update and read the diff):\n%s", golden, gotYAML)
			}
		})
	}
}

func TestInjectingTwiceChangesNothing(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in := inputOf(t, dir)
			once, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}
			in.Pod, in.ID = once, "zzzzzzzzzzzzzzzzzzzz"
			twice, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}
			if !equality.Semantic.DeepEqual(once, twice) {
				t.Error("the second injection changed the pod")
			}
			if ops := injector.Patch(once, twice); len(ops) != 0 {
				t.Errorf("the second injection needs a patch: %v", ops)
			}
		})
	}
}

// A pod of a newer API server holds fields that this build drops when it decodes.
func TestPatchKeepsFieldsItDoesNotKnow(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in := inputOf(t, dir)
			after, err := injector.Inject(testConfig, in)
			if err != nil {
				t.Fatal(err)
			}

			addUnknown := func(pod *corev1.Pod) []byte {
				var doc map[string]any
				roundTrip(t, pod, &doc)
				spec := doc["spec"].(map[string]any)
				spec["newField"] = "spec"
				for _, list := range []string{"initContainers", "containers", "volumes"} {
					items, _ := spec[list].([]any)
					for _, item := range items {
						m := item.(map[string]any)
						switch m["name"] {
						case injector.GateContainer, injector.RelayContainer, injector.TokenVolume:
						default:
							m["newField"] = m["name"]
						}
					}
				}
				raw, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				return raw
			}
			ops, err := json.Marshal(injector.Patch(in.Pod, after))
			if err != nil {
				t.Fatal(err)
			}
			patch, err := jsonpatch.DecodePatch(ops)
			if err != nil {
				t.Fatal(err)
			}
			got, err := patch.Apply(addUnknown(in.Pod))
			if err != nil {
				t.Fatalf("%v\n%s", err, ops)
			}
			if want := addUnknown(after); !jsonpatch.Equal(got, want) {
				t.Errorf("patched:\n%s\nwant:\n%s\npatch:\n%s", got, want, ops)
			}
		})
	}
}

func roundTrip(t testing.TB, in, out any) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
}

func TestInjectRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(in *injector.Input)
		want   error
	}{
		"a policy without proxy address": {func(in *injector.Input) { in.Policy.Status.ProxyAddress = "" }, injector.ErrNotReady},
		"a proxy address with a name":    {func(in *injector.Input) { in.Policy.Status.ProxyAddress = "proxy.team-a:8443" }, injector.ErrNotReady},
		"an id of another form": {func(in *injector.Input) {
			in.Pod.Annotations = map[string]string{v1alpha1.IDKey: "mine"}
		}, injector.ErrConflict},
		"another policy's pod": {func(in *injector.Input) {
			in.Pod.Annotations = map[string]string{v1alpha1.IDKey: testID, v1alpha1.PolicyKey: "other"}
		}, injector.ErrConflict},
		"a pod of another delivery": {func(in *injector.Input) {
			in.Pod.Annotations = map[string]string{v1alpha1.IDKey: testID, v1alpha1.InjectedAnnotation: "Relay"}
		}, injector.ErrConflict},
		"a label that differs from the id": {func(in *injector.Input) {
			in.Pod.Labels[v1alpha1.IDKey] = "zzzzzzzzzzzzzzzzzzzz"
		}, injector.ErrConflict},
		"an empty id": {func(in *injector.Input) { in.ID = "" }, injector.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputOf(t, "testdata/env-plain")
			tc.change(&in)
			if pod, err := injector.Inject(testConfig, in); !errors.Is(err, tc.want) {
				t.Fatalf("Inject = %v, %v; want %v", pod, err, tc.want)
			}
		})
	}
}
