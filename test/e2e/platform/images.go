package platform

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
)

// Image is the product's image. Its tag names its contents, so that an upgrade of a
// cluster that is still up rolls out what was built last.
func (p *Platform) Image() string { return p.repository() + ":" + p.tag }

func (p *Platform) repository() string {
	repository, _, _ := strings.Cut(image.ProjectRef, ":")
	return repository
}

// projectImage builds the product's programs and returns the archive of their image.
func (p *Platform) projectImage(ctx context.Context) (string, error) {
	binaries, err := build.Project(ctx, build.Options{Root: p.root, Progress: p.log}, "dev", build.ProjectBinaries()...)
	if err != nil {
		return "", err
	}
	p.egressctl = binaries["egressctl"]
	if p.tag, err = digest(binaries); err != nil {
		return "", err
	}
	archive := filepath.Join(p.work, "project.tar")
	return archive, image.Binaries(p.Image(), binaries, "manager", archive)
}

func digest(files map[string]string) (string, error) {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintln(sum, name)
		f, err := os.Open(files[name])
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// loadImages imports the product's image and the sandbox image, which trusts the test
// internet's certificates.
func (p *Platform) loadImages(ctx context.Context, project string) error {
	ca, err := os.ReadFile(p.Cluster.Internet().CAPath)
	if err != nil {
		return err
	}
	cache, err := build.DefaultCache()
	if err != nil {
		return err
	}
	sandbox := filepath.Join(p.work, "sandbox.tar")
	p.log("making the sandbox image")
	if err := image.Sandbox(ctx, filepath.Join(cache, "images"), ca, sandbox); err != nil {
		return err
	}
	for _, archive := range []string{project, sandbox} {
		if err := p.Cluster.LoadImage(ctx, archive); err != nil {
			return err
		}
		if err := os.Remove(archive); err != nil {
			return err
		}
	}
	p.log("images are loaded")
	return nil
}

// buildHelm builds bin/helm from its pinned module when it is missing, as make does.
func (p *Platform) buildHelm(ctx context.Context) error {
	if _, err := os.Stat(p.helm()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.log("building helm")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", p.helm(), "tool")
	cmd.Dir = filepath.Join(p.root, "hack/tools/helm")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building helm: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (p *Platform) helm() string { return filepath.Join(p.root, "bin/helm") }
