package origin

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// addApt serves a flat Debian repository with one package. It is not signed: the client
// is told to trust it.
func addApt(ctx context.Context, mux *http.ServeMux, dir string) error {
	tree := filepath.Join(dir, "deb")
	control := filepath.Join(tree, "DEBIAN", "control")
	if err := os.MkdirAll(filepath.Dir(control), 0o755); err != nil {
		return err
	}
	fields := "Package: " + PackageName + "\nVersion: " + PackageVersion + "\nArchitecture: all\nMaintainer: Nobody <nobody@origin.example>\nDescription: " + Greeting + "\n"
	if err := os.WriteFile(control, []byte(fields), 0o644); err != nil {
		return err
	}
	file := filepath.Join(dir, PackageName+".deb")
	if err := run(ctx, dir, "dpkg-deb", "--build", "--root-owner-group", tree, file); err != nil {
		return err
	}
	deb, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	packages := fmt.Appendf(nil, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", fields, filepath.Base(file), len(deb), sha256.Sum256(deb))
	release := fmt.Appendf(nil, "Origin: test\nSuite: test\nDate: Wed, 01 Jan 2020 00:00:00 UTC\nSHA256:\n %x %d Packages\n", sha256.Sum256(packages), len(packages))
	serveBytes(mux, "/debian/Release", "text/plain", release)
	serveBytes(mux, "/debian/Packages", "text/plain", packages)
	serveBytes(mux, "/debian/"+filepath.Base(file), "application/octet-stream", deb)
	return nil
}

// addGit serves a repository by git's own smart HTTP server.
func addGit(ctx context.Context, mux *http.ServeMux, dir string) error {
	root := filepath.Join(dir, "git")
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := run(ctx, dir, "git", "init", "-q", "-b", "main", work); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "greeting.txt"), []byte(Greeting+"\n"), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"add", "greeting.txt"},
		{"-c", "user.name=Nobody", "-c", "user.email=nobody@origin.example", "commit", "-q", "-m", "Greet"},
		{"clone", "-q", "--bare", work, filepath.Join(root, "demo.git")},
	} {
		if err := run(ctx, work, "git", args...); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return fmt.Errorf("git --exec-path: %w", err)
	}
	mux.Handle("/git/", &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Root: "/git",
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
	})
	return nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
