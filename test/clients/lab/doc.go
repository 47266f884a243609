// Package lab makes network namespaces without an uplink, wires them together, and runs
// programs inside them, so that tests and benchmarks use the real egress-proxy binary on
// documentation addresses (RFC 5737) and nothing can leave the machine. It needs root.
package lab
