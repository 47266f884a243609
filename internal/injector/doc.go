// Package injector turns a matched pod into a sandbox: identity, proxy environment or
// relay, start gate. Pure functions on corev1.Pod; admission plumbing is in
// internal/webhook.
//
// What it adds (design section 3):
//
//   - annotations id, policy and injected; under per-pod NetworkPolicies the id label too
//   - the proxy environment in every container and init container
//   - under Relay the native sidecar egress-relay and the token volume only it mounts
//   - the init container egress-gate, before all others
//
// Injection is a fixpoint: Inject on its own output changes nothing. The mutating webhook
// relies on it when it is reinvoked, and the validating webhook when it checks that what
// other webhooks did afterwards left the sandbox whole.
package injector
