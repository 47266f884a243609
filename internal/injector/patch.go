package injector

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Operation is one JSON Patch operation (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Patch lists the operations that turn before into after, where after came from Inject or
// InjectEphemeral.
//
// It adds and removes whole environment variables, containers and volumes, and leaves
// everything else alone. A diff of the two serialised pods would shift list elements into
// each other, and with them fields of a Kubernetes newer than this build knows.
func Patch(before, after *corev1.Pod) []Operation {
	var ops []Operation
	ops = patchMap(ops, "/metadata/annotations", before.Annotations, after.Annotations)
	ops = patchMap(ops, "/metadata/labels", before.Labels, after.Labels)
	ops = patchList(ops, "/spec/volumes", before.Spec.Volumes, after.Spec.Volumes,
		func(v corev1.Volume) string { return v.Name }, nil)
	name := func(c corev1.Container) string { return c.Name }
	env := func(ops []Operation, path string, a, b corev1.Container) []Operation {
		return patchEnv(ops, path, a.Env, b.Env)
	}
	ops = patchList(ops, "/spec/initContainers", before.Spec.InitContainers, after.Spec.InitContainers, name, env)
	ops = patchList(ops, "/spec/containers", before.Spec.Containers, after.Spec.Containers, name, env)
	ops = patchList(ops, "/spec/ephemeralContainers", before.Spec.EphemeralContainers, after.Spec.EphemeralContainers,
		func(c corev1.EphemeralContainer) string { return c.Name },
		func(ops []Operation, path string, a, b corev1.EphemeralContainer) []Operation {
			return patchEnv(ops, path, a.Env, b.Env)
		})
	return ops
}

func patchMap(ops []Operation, path string, before, after map[string]string) []Operation {
	// An empty map may be there or left out; adding the whole one suits both.
	if len(before) == 0 && len(after) > 0 {
		return append(ops, Operation{Op: "add", Path: path, Value: after})
	}
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if have, ok := before[k]; !ok || have != after[k] {
			ops = append(ops, Operation{Op: "add", Path: path + "/" + escape(k), Value: after[k]})
		}
	}
	return ops
}

// escape is the reference token escaping of RFC 6901 section 3.
func escape(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

// patchList compares elements by name. An element whose name stays is kept and handed to
// within when given; injected containers and volumes that changed as a whole, and all
// variables that changed, are removed and added.
func patchList[T any](ops []Operation, path string, before, after []T, name func(T) string,
	within func(ops []Operation, path string, a, b T) []Operation) []Operation {
	if len(before) == 0 {
		if len(after) > 0 {
			ops = append(ops, Operation{Op: "add", Path: path, Value: after})
		}
		return ops
	}

	// keep[j] is the index in before of the element that becomes after[j], or -1. Kept
	// elements stay in order, so a later one never comes from before an earlier one.
	keep := make([]int, len(after))
	kept := make([]bool, len(before))
	next := 0
	for j := range after {
		keep[j] = -1
		for i := next; i < len(before); i++ {
			if name(before[i]) == name(after[j]) && (equality.Semantic.DeepEqual(before[i], after[j]) || within != nil && !injected(name(after[j]))) {
				keep[j], kept[i], next = i, true, i+1
				break
			}
		}
	}
	for i := len(before) - 1; i >= 0; i-- {
		if !kept[i] {
			ops = append(ops, Operation{Op: "remove", Path: fmt.Sprintf("%s/%d", path, i)})
		}
	}
	for j := range after {
		at := fmt.Sprintf("%s/%d", path, j)
		switch {
		case keep[j] < 0:
			ops = append(ops, Operation{Op: "add", Path: at, Value: after[j]})
		case within != nil:
			ops = within(ops, at, before[keep[j]], after[j])
		}
	}
	return ops
}

func injected(container string) bool {
	return container == GateContainer || container == RelayContainer
}

func patchEnv(ops []Operation, path string, before, after []corev1.EnvVar) []Operation {
	return patchList(ops, path+"/env", before, after, func(v corev1.EnvVar) string { return v.Name }, nil)
}
