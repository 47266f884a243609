// Package webhook is the admission of pods and SandboxEgress objects.
//
// A pod passes three handlers. The guard runs once, before any injection, and refuses what
// only injection may put into a pod: later a forged sandbox and a real one look the same.
// The mutator injects, and may run again when another webhook changes the pod
// (reinvocation). The validator sees the final pod: it refuses privileges that lead out
// of the isolation, and a pod that injecting again would change.
//
// Whenever a handler cannot know, it refuses: cache not synced, no proxy address yet, two
// policies for one pod. Pods that match no policy pass untouched.
package webhook
