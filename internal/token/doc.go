// Package token mints and verifies the ES256 tokens (RFC 7519, RFC 7518 section 3.4)
// that a sandbox presents to the egress proxy, and keeps the keys they are signed with.
//
// The package is pure: time is injected, nothing is read from or written to disk or
// network, and nothing here knows Kubernetes. Everything that is missing, unknown or
// ambiguous in a token is an error, never a default that grants more.
package token
