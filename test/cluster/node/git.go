package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeRepository creates git/demo.git for the test internet and returns the
// path of git's HTTP back end.
func (c *Cluster) makeRepository(ctx context.Context) (backend string, err error) {
	work, bare := c.data("git-work"), c.data("git", "demo.git")
	defer os.RemoveAll(work)
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(work, "README.md"), []byte("A repository of the test internet.\n"), 0o644); err != nil {
		return "", err
	}
	steps := [][]string{
		{"init", "-q", "-b", "main", work},
		{"-C", work, "add", "README.md"},
		{"-C", work, "commit", "-q", "-m", "First commit"},
		{"clone", "-q", "--bare", work, bare},
		{"-C", bare, "config", "http.receivepack", "true"},
	}
	for _, args := range steps {
		if _, err := git(ctx, args...); err != nil {
			return "", err
		}
	}
	dir, err := git(ctx, "--exec-path")
	if err != nil {
		return "", err
	}
	backend = filepath.Join(strings.TrimSpace(string(dir)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		return "", fmt.Errorf("git on this machine has no HTTP back end: %w", err)
	}
	return backend, nil
}

// git runs with an identity and without the caller's configuration.
func git(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@allowed.example",
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@allowed.example",
	}
	out, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return nil, fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("git: %w", err)
	}
	return out, nil
}
