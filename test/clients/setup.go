package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed scripts
var scripts embed.FS

//go:embed npm/package.json npm/package-lock.json npm/.npmrc
var npmFiles embed.FS

// debianPackages are the clients that Debian ships, and what runs the scripts.
var debianPackages = []string{
	"aria2", "ca-certificates", "chromium", "curl", "git", "httpie", "iproute2", "lftp", "liblwp-protocol-https-perl",
	"libwww-perl", "lynx", "maven", "ncat", "nodejs", "openjdk-17-jdk-headless", "openssl", "perl", "php-cli", "php-curl",
	"python3", "python3-aiohttp", "python3-httpx", "python3-pip", "python3-requests", "ruby", "w3m", "wget", "wget2",
}

// installDebian installs what is missing. It needs root and a configured apt.
func installDebian(ctx context.Context) error {
	var missing []string
	for _, p := range debianPackages {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f=${db:Status-Status}", p).Output()
		if err != nil || string(out) != "installed" {
			missing = append(missing, p)
		}
	}
	// The machine may have Node and npm from elsewhere.
	if _, err := exec.LookPath("npm"); err == nil {
		missing = remove(missing, "nodejs")
	} else {
		missing = append(missing, "npm")
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Println("installing", strings.Join(missing, " "))
	for _, args := range [][]string{
		{"-qq", "update"},
		append([]string{"-qq", "-y", "--no-install-recommends", "install"}, missing...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func remove(list []string, s string) []string {
	var out []string
	for _, v := range list {
		if v != s {
			out = append(out, v)
		}
	}
	return out
}

// installNpm installs the locked npm packages below cache, once per lock file, and
// returns the directory that holds node_modules. Install scripts do not run: the
// packages ship their binaries as packages for the platform.
func installNpm(ctx context.Context, cache string) (string, error) {
	lock, err := npmFiles.ReadFile("npm/package-lock.json")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, fmt.Sprintf("npm-%x", sha256.Sum256(lock))[:20])
	done := filepath.Join(dir, ".installed")
	if _, err := os.Stat(done); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		data, err := npmFiles.ReadFile("npm/" + name)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return "", err
		}
	}
	// Not "npm ci": it refuses a lock file that leaves out other platforms' binaries.
	fmt.Println("installing the npm clients")
	cmd := exec.CommandContext(ctx, "npm", "install", "--loglevel=error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm install in %s: %w: %s", dir, err, out)
	}
	return dir, os.WriteFile(done, nil, 0o644)
}
