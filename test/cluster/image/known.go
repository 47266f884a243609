package image

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Names of the images that tests and the demo use.
const (
	// ProjectRef is the product's own image, as the Dockerfile makes it.
	ProjectRef = "sandbox-egress.test/sandbox-egress:dev"
	// SandboxRef is what runs in a sandbox: a small Debian with curl, git and
	// Python, where nothing is known of the product.
	SandboxRef = "sandbox-egress.test/sandbox:1"
)

// SandboxPackages are the Debian packages of the sandbox image.
func SandboxPackages() []string {
	return []string{
		"base-files", "bash", "ca-certificates", "coreutils", "curl", "dash", "git", "grep",
		"libc-bin", "mawk", "netcat-openbsd", "procps", "python3", "sed",
	}
}

// Sandbox writes the sandbox image to file. The packages are kept below cache.
// extraCA, PEM, may be nil; it is added to the system's certificates, so that
// HTTPS to the test internet verifies.
func Sandbox(ctx context.Context, cache string, extraCA []byte, file string) error {
	layer, err := DebianLayer(ctx, cache, SandboxPackages()...)
	if err != nil {
		return err
	}
	spec := Spec{
		Ref:        SandboxRef,
		Layers:     []v1.Layer{layer},
		Cmd:        []string{"/bin/sleep", "infinity"},
		Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/home/sandbox"},
		User:       "1000:1000",
		WorkingDir: "/home/sandbox",
		Contents: map[string][]byte{
			"/etc/nsswitch.conf": []byte("passwd: files\ngroup: files\nhosts: files dns\n"),
		},
	}
	if extraCA != nil {
		bundle, err := rootsOf(layer)
		if err != nil {
			return err
		}
		spec.Contents[bundlePath] = append(bundle, extraCA...)
	}
	return Write(spec, file)
}

// Binaries writes an image with the given binaries (name -> file of the host)
// in its root, laid out as the product's Dockerfile does.
func Binaries(ref string, binaries map[string]string, entrypoint, file string) error {
	if _, ok := binaries[entrypoint]; !ok {
		return fmt.Errorf("image %s: entry point %q is not among its binaries %v", ref, entrypoint, slices.Sorted(maps.Keys(binaries)))
	}
	files := map[string]string{}
	for name, source := range binaries {
		files["/"+name] = source
	}
	spec := Spec{
		Ref: ref, Files: files, Entrypoint: []string{"/" + entrypoint}, User: "65532:65532",
		Env: []string{"PATH=/"},
		Contents: map[string][]byte{
			"/etc/passwd": []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"),
			"/etc/group":  []byte("root:x:0:\nnonroot:x:65532:\n"),
		},
	}
	if roots, err := os.ReadFile(filepath.Join("/", bundlePath)); err == nil {
		spec.Contents[bundlePath] = roots
	}
	return Write(spec, file)
}
