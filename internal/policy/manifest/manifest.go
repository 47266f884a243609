// Package manifest turns a SandboxEgress object into a policy: strictly decoded, with the
// defaults that the API server would have set.
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

// Defaults of the API for the fields that the data plane reads, as in the markers of
// api/v1alpha1.
const (
	DefaultConnections       = 256
	DefaultRequestsPerSecond = 200
)

// Decode reads one SandboxEgress as YAML or JSON. An unknown field, a second document, and
// another kind or API version are errors that name what was found. Defaults are applied.
func Decode(data []byte) (*v1alpha1.SandboxEgress, error) {
	data, err := onlyDocument(data)
	if err != nil {
		return nil, err
	}
	var s v1alpha1.SandboxEgress
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		return nil, fmt.Errorf("not a valid SandboxEgress: %w", err)
	}
	if want := v1alpha1.SchemeGroupVersion.String(); s.APIVersion != want || s.Kind != v1alpha1.Kind {
		return nil, fmt.Errorf("apiVersion %q, kind %q: want apiVersion %q, kind %q", s.APIVersion, s.Kind, want, v1alpha1.Kind)
	}
	if s.Name == "" {
		return nil, errors.New("metadata.name is missing")
	}
	if s.Namespace == "" {
		s.Namespace = "default"
	}
	Default(&s.Spec)
	return &s, nil
}

// onlyDocument returns the one document of data that holds anything; sigs.k8s.io/yaml alone
// would read the first and say nothing about the others.
func onlyDocument(data []byte) ([]byte, error) {
	var found []byte
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading YAML: %w", err)
		}
		var content any
		if err := yaml.Unmarshal(doc, &content); err != nil {
			return nil, fmt.Errorf("not valid YAML: %w", err)
		}
		if content == nil {
			continue
		}
		if found != nil {
			return nil, errors.New("there is more than one document; a proxy serves one SandboxEgress")
		}
		found = doc
	}
	if found == nil {
		return nil, errors.New("it is empty")
	}
	return found, nil
}

// Default fills the fields that the data plane reads and that the API server would have
// filled.
func Default(s *v1alpha1.SandboxEgressSpec) {
	if s.Mode == "" {
		s.Mode = v1alpha1.ModeEnforce
	}
	for i := range s.Rules {
		if s.Rules[i].TLS == "" {
			s.Rules[i].TLS = v1alpha1.TLSRequired
		}
	}
	if s.Token.ContainerBinding == "" {
		s.Token.ContainerBinding = v1alpha1.BindingEnforced
	}
	if s.Limits.Connections == nil {
		s.Limits.Connections = ptr(int32(DefaultConnections))
	}
	if s.Limits.RequestsPerSecond == nil {
		s.Limits.RequestsPerSecond = ptr(int32(DefaultRequestsPerSecond))
	}
	if s.Limits.BytesPerSecond == nil {
		s.Limits.BytesPerSecond = ptr(int64(0))
	}
}

func ptr[T any](v T) *T { return &v }

// Spec is the part of s that allowlist compiles.
func Spec(s *v1alpha1.SandboxEgressSpec) allowlist.Spec {
	out := allowlist.Spec{
		Presets:      s.Presets,
		AllowedHosts: strs(s.AllowedHosts),
		DeniedHosts:  strs(s.DeniedHosts),
	}
	for _, r := range s.Rules {
		rule := allowlist.Rule{
			Hosts:   strs(r.Hosts),
			Methods: strs(r.Methods),
			Paths:   strs(r.Paths),
		}
		for _, p := range r.Ports {
			rule.Ports = append(rule.Ports, uint16(p)) //nolint:gosec // Compile refuses ports outside 1-65535 before
		}
		if r.TLS == v1alpha1.TLSOptional {
			rule.TLS = allowlist.TLSOptional
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func strs[T ~string](in []T) []string {
	if in == nil {
		return nil
	}
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = string(v)
	}
	return out
}

// FieldError is one wrong field outside the host lists.
type FieldError struct {
	// Field is the path from the object's root, such as "spec.mode".
	Field, Value, Reason string
}

func (e *FieldError) Error() string { return fmt.Sprintf("%s: %q: %s", e.Field, e.Value, e.Reason) }

// Compile checks s and makes the policy of it. The error joins every problem there is;
// errors.As finds *allowlist.FieldError and *FieldError, both with "spec." paths.
func Compile(s *v1alpha1.SandboxEgress) (*policy.Policy, error) {
	var errs []error
	bad := func(field, value, reason string) {
		errs = append(errs, &FieldError{Field: field, Value: value, Reason: reason})
	}

	p := &policy.Policy{Ref: s.Namespace + "/" + s.Name, Generation: s.Generation}
	switch s.Spec.Mode {
	case v1alpha1.ModeEnforce, "":
	case v1alpha1.ModeAudit:
		p.Mode = policy.Audit
	default:
		bad("spec.mode", string(s.Spec.Mode), "must be Enforce or Audit")
	}

	for i, r := range s.Spec.Rules {
		for j, port := range r.Ports {
			if port < 1 || port > 65535 {
				bad(fmt.Sprintf("spec.rules[%d].ports[%d]", i, j), fmt.Sprint(port), "must be between 1 and 65535")
			}
		}
		if r.TLS != "" && r.TLS != v1alpha1.TLSRequired && r.TLS != v1alpha1.TLSOptional {
			bad(fmt.Sprintf("spec.rules[%d].tls", i), string(r.TLS), "must be Required or Optional")
		}
	}
	if len(errs) == 0 {
		m, err := allowlist.Compile(Spec(&s.Spec))
		if err != nil {
			errs = append(errs, underSpec(err))
		}
		p.Matcher = m
	}

	guard, err := compileGuard(s.Spec.PrivateNetworks)
	if err != nil {
		errs = append(errs, err)
	}
	p.Guard = guard

	p.Limits = policy.Limits{Connections: DefaultConnections, RequestsPerSecond: DefaultRequestsPerSecond}
	if v := s.Spec.Limits.Connections; v != nil {
		p.Limits.Connections = int(nonNegative(int64(*v), "spec.limits.connections", bad))
	}
	if v := s.Spec.Limits.RequestsPerSecond; v != nil {
		p.Limits.RequestsPerSecond = nonNegative(int64(*v), "spec.limits.requestsPerSecond", bad)
	}
	if v := s.Spec.Limits.BytesPerSecond; v != nil {
		p.Limits.BytesPerSecond = nonNegative(*v, "spec.limits.bytesPerSecond", bad)
	}

	if u := s.Spec.Proxy.Upstream; u != nil {
		up, err := ParseUpstream(u.URL)
		if err != nil {
			bad("spec.proxy.upstream.url", u.URL, err.Error())
		}
		p.Upstream = up
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

func nonNegative(v int64, field string, bad func(field, value, reason string)) int64 {
	if v < 0 {
		bad(field, fmt.Sprint(v), "must not be negative; 0 means no limit")
	}
	return v
}

// underSpec puts the field paths of allowlist under spec.
func underSpec(err error) error {
	var fes allowlist.FieldErrors
	if !errors.As(err, &fes) {
		return fmt.Errorf("spec: %w", err)
	}
	out := make(allowlist.FieldErrors, len(fes))
	for i, fe := range fes {
		moved := *fe
		moved.Field = "spec." + fe.Field
		out[i] = &moved
	}
	return out
}

func compileGuard(cidrs []v1alpha1.CIDR) (*ipguard.Guard, error) {
	var errs []error
	prefixes := make([]netip.Prefix, 0, len(cidrs))
	for i, c := range cidrs {
		field := fmt.Sprintf("spec.privateNetworks[%d]", i)
		p, err := netip.ParsePrefix(string(c))
		if err != nil {
			errs = append(errs, &FieldError{Field: field, Value: string(c), Reason: "must be an address range in CIDR notation, e.g. 10.20.0.0/16"})
			continue
		}
		if _, err := ipguard.New([]netip.Prefix{p}); err != nil {
			errs = append(errs, &FieldError{Field: field, Value: string(c), Reason: err.Error()})
			continue
		}
		prefixes = append(prefixes, p)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return ipguard.New(prefixes)
}

// ParseUpstream reads "http://host:port", with or without a final slash and nothing else:
// credentials come from a file.
func ParseUpstream(url string) (*policy.Upstream, error) {
	rest, ok := strings.CutPrefix(url, "http://")
	if !ok {
		return nil, errors.New("must be http://host:port")
	}
	a, err := hostname.ParseAuthority(strings.TrimSuffix(rest, "/"))
	if err != nil {
		return nil, fmt.Errorf("must be http://host:port without credentials, path or query: %w", err)
	}
	return &policy.Upstream{Authority: a}, nil
}
