// Package egressctl is the command line: signing keys, tokens, offline policy checks,
// presets, and what the audit records say. cmd/egressctl only calls it.
package egressctl
