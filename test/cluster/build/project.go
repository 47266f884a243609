package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// ProjectBinaries are the product's programs below cmd.
func ProjectBinaries() []string {
	return []string{"manager", "egress-proxy", "egress-relay", "egressctl", "sandbox-api"}
}

// Project builds the product's programs, as the Dockerfile does, into a
// directory of the cache and returns their paths by name. The compiler decides
// what is out of date.
func Project(ctx context.Context, opts Options, version string, names ...string) (map[string]string, error) {
	b, err := newBuilder(ctx, opts)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.store, "project")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := b.lock(ctx, "project")
	if err != nil {
		return nil, err
	}
	defer unlock()
	binaries := map[string]string{}
	for _, name := range names {
		path := filepath.Join(dir, name)
		c := Component{Name: name, Module: ".", Package: "./cmd/" + name}
		if err := b.compileWith(ctx, c, "-s -w -X main.version="+version, path); err != nil {
			return nil, err
		}
		binaries[name] = path
	}
	b.logf("built the project's %d programs", len(names))
	return binaries, nil
}

// Program builds one other program of the repository, e.g. a helper of a test,
// by its ./ path, and returns the path of the binary.
func Program(ctx context.Context, opts Options, name, pkg string) (string, error) {
	if filepath.Base(name) != name {
		return "", fmt.Errorf("program name %q must not contain a slash", name)
	}
	b, err := newBuilder(ctx, opts)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.store, "programs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := b.lock(ctx, "program-"+name)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, name)
	return path, b.compileWith(ctx, Component{Name: name, Module: ".", Package: pkg}, "-s -w", path)
}
