// Package build makes the binaries of the test cluster from Go modules, into a
// cache, building only what is missing.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// CacheEnv overrides the directory under which everything is cached.
const CacheEnv = "SANDBOX_EGRESS_CACHE"

// Options of Build.
type Options struct {
	// Root is the repository root; see FindRoot.
	Root string
	// Cache is the cache directory; "" means DefaultCache.
	Cache string
	// Progress receives one line per event; nil drops them.
	Progress func(line string)
}

// DefaultCache returns $SANDBOX_EGRESS_CACHE, else sandbox-egress below the
// user's cache directory.
func DefaultCache() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory, set %s: %w", CacheEnv, err)
	}
	return filepath.Join(dir, "sandbox-egress"), nil
}

// FindRoot returns the repository root above the current directory.
func FindRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		gomod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && slices.Contains(strings.Split(string(gomod), "\n"), "module github.com/sandbox-egress/sandbox-egress") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the sandbox-egress source tree, whose modules pin the components: run this from there", start)
		}
	}
}

// Build makes sure that the components are built and returns a directory that
// holds exactly them. The directory is named after name and the contents, so
// it is stable as long as nothing changes. Concurrent calls, also of other
// processes, are safe.
func Build(ctx context.Context, opts Options, name string, components []Component) (string, error) {
	b, err := newBuilder(ctx, opts)
	if err != nil {
		return "", err
	}
	keys := make([]string, len(components))
	for i, c := range components {
		if keys[i], err = b.key(c); err != nil {
			return "", err
		}
	}
	b.total = len(components)

	// Two at a time: linking is mostly one thread, but takes gigabytes.
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i, c := range components {
		group.Go(func() error { return b.ensure(ctx, c, keys[i]) })
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	return b.view(name, components, keys)
}

type builder struct {
	root, store string
	goVersion   string
	progress    func(string)
	start       time.Time
	total       int

	mu   sync.Mutex
	done int
}

func newBuilder(ctx context.Context, opts Options) (*builder, error) {
	cache := opts.Cache
	if cache == "" {
		var err error
		if cache, err = DefaultCache(); err != nil {
			return nil, err
		}
	}
	store := filepath.Join(cache, "cluster")
	if err := os.MkdirAll(filepath.Join(store, "bin"), 0o755); err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOOS", "GOARCH").Output()
	if err != nil {
		return nil, fmt.Errorf("the go command is needed to build the cluster: %w", err)
	}
	progress := opts.Progress
	if progress == nil {
		progress = func(string) {}
	}
	return &builder{
		root: opts.Root, store: store, goVersion: string(out),
		progress: progress, start: time.Now(),
	}, nil
}

func (b *builder) logf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.progress(fmt.Sprintf("[%4.0fs] ", time.Since(b.start).Seconds()) + fmt.Sprintf(format, args...))
}

// key identifies the contents of a component's binary: toolchain, flags,
// pinned modules, and our own sources.
func (b *builder) key(c Component) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%+v\n", b.goVersion, c)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(b.root, c.Module, name))
		if err != nil {
			return "", fmt.Errorf("pins of %s: %w", c.Name, err)
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
	}
	for _, dir := range c.Sources {
		if err := hashSources(h, filepath.Join(b.root, dir)); err != nil {
			return "", fmt.Errorf("sources of %s: %w", c.Name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func hashSources(h interface{ Write([]byte) (int, error) }, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%s %d\n%s", rel, len(data), data)
		return err
	})
}

func (b *builder) binary(c Component, key string) string {
	return filepath.Join(b.store, "bin", c.Name+"-"+key)
}

// ensure builds c unless its binary is there.
func (b *builder) ensure(ctx context.Context, c Component, key string) error {
	path := b.binary(c, key)
	if exists(path) {
		b.finished()
		return nil
	}
	unlock, err := b.lock(ctx, c.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if exists(path) {
		b.finished()
		return nil
	}

	b.logf("building %s", c.Name)
	stop := b.ticker(c.Name)
	err = b.compile(ctx, c, path)
	took := stop()
	if err != nil {
		return err
	}
	b.logf("built %s in %.0f s (%d/%d)", c.Name, took.Seconds(), b.finished(), b.total)
	return nil
}

func (b *builder) finished() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done++
	return b.done
}

// ticker reports every 20 s that a long build still runs.
func (b *builder) ticker(name string) (stop func() time.Duration) {
	begin, quit := time.Now(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				b.logf("still building %s (%.0f s)", name, time.Since(begin).Seconds())
			}
		}
	})
	return func() time.Duration {
		close(quit)
		wg.Wait()
		return time.Since(begin)
	}
}

func (b *builder) compile(ctx context.Context, c Component, path string) error {
	gomod, err := os.ReadFile(filepath.Join(b.root, c.Module, "go.mod"))
	if err != nil {
		return err
	}
	ldflags, err := c.ldflags(gomod)
	if err != nil {
		return err
	}
	return b.compileWith(ctx, c, ldflags, path)
}

func (b *builder) compileWith(ctx context.Context, c Component, ldflags, path string) error {
	tmp, err := os.MkdirTemp(filepath.Join(b.store, "bin"), ".building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, c.Name)

	args := []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", ldflags, "-o", out}
	if c.Tags != "" {
		args = append(args, "-tags", c.Tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, c.Package)...)
	cmd.Dir = filepath.Join(b.root, c.Module)
	cmd.Env = buildEnv(os.Environ())
	cmd.WaitDelay = 5 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("building %s: %w\n%s", c.Name, err, strings.TrimSpace(string(output)))
	}
	return os.Rename(out, path)
}

// buildEnv is env without what would change the result of a build.
func buildEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"GOFLAGS", "GOWORK", "GOOS", "GOARCH", "CGO_ENABLED", "GOEXPERIMENT"}, name)
	})
	return append(env, "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
}

// lock takes the cross-process lock of one component.
func (b *builder) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(b.store, "bin", "."+name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		if !told {
			b.logf("waiting for another process that builds %s", name)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// view makes the directory of links that holds exactly the given binaries.
func (b *builder) view(name string, components []Component, keys []string) (string, error) {
	h := sha256.New()
	for i, c := range components {
		fmt.Fprintln(h, c.Name, keys[i])
	}
	dir := filepath.Join(b.store, name+"-"+hex.EncodeToString(h.Sum(nil))[:16])
	if exists(dir) {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(b.store, ".view-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	for i, c := range components {
		if err := os.Symlink(filepath.Join("..", "bin", c.Name+"-"+keys[i]), filepath.Join(tmp, c.Name)); err != nil {
			return "", err
		}
	}
	// The loser of a race finds the winner's equal directory in its place.
	if err := os.Rename(tmp, dir); err != nil && !exists(dir) {
		return "", err
	}
	return dir, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
