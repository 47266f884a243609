package proxycmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sort"

	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

func parseUpstream(url string) (*policy.Upstream, error) { return manifest.ParseUpstream(url) }

// standaloneRef names the policy that the flags make.
const standaloneRef = "standalone"

// fileSource reads keys, manifest and bindings from files, again whenever one changes.
type fileSource struct {
	s      *settings
	log    *slog.Logger
	reload *reloader
}

// Run implements policy.Source. Files that cannot be read at the start are an error; later
// they leave what is in force in force.
func (f *fileSource) Run(ctx context.Context, store *policy.Store) error {
	load := func() error {
		st, err := f.load()
		if err != nil {
			return err
		}
		store.Swap(st)
		return nil
	}
	if err := load(); err != nil {
		return err
	}
	f.reload.add("policy", load, f.s.jwksFile, f.s.manifest, f.s.bindingFile)
	<-ctx.Done()
	return nil
}

func (f *fileSource) load() (*policy.State, error) {
	data, err := os.ReadFile(f.s.jwksFile)
	if err != nil {
		return nil, fmt.Errorf("--jwks-file: %w", err)
	}
	keys, err := token.ParseJWKS(data)
	if err != nil {
		return nil, fmt.Errorf("--jwks-file %s: %w", f.s.jwksFile, err)
	}
	c := policy.Config{Keys: keys}
	if f.s.manifest != "" {
		p, err := loadManifest(f.s.manifest)
		if err != nil {
			return nil, err
		}
		c.Policies = []*policy.Policy{p}
		d := *p
		d.TokenHosts = true
		c.Default = &d
	} else if c.Default, err = f.s.flagPolicy(); err != nil {
		return nil, err
	}
	if f.s.binding == bindFile {
		if c.Pods, err = loadBindings(f.s.bindingFile); err != nil {
			return nil, err
		}
		c.PodsKnown = true
	}
	return policy.NewState(c), nil
}

func loadManifest(path string) (*policy.Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--manifest: %w", err)
	}
	obj, err := manifest.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("--manifest %s: %w", path, err)
	}
	p, err := manifest.Compile(obj)
	if err != nil {
		return nil, fmt.Errorf("--manifest %s: %w", path, err)
	}
	return p, nil
}

func (s *settings) flagPolicy() (*policy.Policy, error) {
	guard, err := ipguard.New(s.private)
	if err != nil {
		return nil, fmt.Errorf("--private-network: %w", err)
	}
	p := &policy.Policy{Ref: standaloneRef, TokenHosts: true, Guard: guard, Limits: s.limits, Upstream: s.upstream}
	if len(s.allow) > 0 {
		if p.Matcher, err = allowlist.Compile(allowlist.Spec{AllowedHosts: s.allow}); err != nil {
			return nil, fmt.Errorf("--allow: %w", err)
		}
	}
	return p, nil
}

// loadBindings reads "container_id: [address, ...]".
func loadBindings(path string) ([]*policy.Pod, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--binding-file: %w", err)
	}
	var m map[string][]string
	if err := yaml.UnmarshalStrict(data, &m); err != nil {
		return nil, fmt.Errorf("--binding-file %s: must map container ids to lists of addresses: %w", path, err)
	}
	var errs []error
	pods := make([]*policy.Pod, 0, len(m))
	for id, addrs := range m {
		p := &policy.Pod{Name: id, ContainerID: id}
		if err := token.ValidateContainerID(id); err != nil {
			errs = append(errs, fmt.Errorf("--binding-file %s: %w", path, err))
		}
		for i, a := range addrs {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				errs = append(errs, fmt.Errorf("--binding-file %s: %s[%d]: %q is not an IP address", path, id, i, a))
				continue
			}
			p.IPs = append(p.IPs, ip.Unmap().WithZone(""))
		}
		pods = append(pods, p)
	}
	sort.Slice(pods, func(i, j int) bool { return pods[i].ContainerID < pods[j].ContainerID })
	return pods, errors.Join(errs...)
}
