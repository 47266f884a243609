// Package image makes container images from files and Debian packages, as
// archives, without a registry and without Docker.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec describes an image.
type Spec struct {
	// Ref is the image's name with a tag, e.g. "sandbox-egress.test/pause:1".
	Ref string
	// Files maps absolute paths in the image to files of the host; the mode is
	// the host file's.
	Files map[string]string
	// Contents maps absolute paths in the image to contents of mode 0644.
	Contents map[string][]byte
	// Layers are whole layers, below Files and Contents; see DebianLayer.
	Layers []v1.Layer
	// Entrypoint, Cmd, Env ("K=V"), User ("65532:65532") and WorkingDir are the
	// image's configuration.
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
}

// Write makes the image and writes it to file, in the format of docker save,
// which ctr and every other tool can import.
func Write(spec Spec, file string) error {
	ref, err := name.NewTag(spec.Ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("image name: %w", err)
	}
	img, err := build(spec)
	if err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = tarball.Write(ref, img, tmp)
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("writing image %s: %w", spec.Ref, err)
	}
	return os.Rename(tmp.Name(), file)
}

func build(spec Spec) (v1.Image, error) {
	layers := slices.Clone(spec.Layers)
	if len(spec.Files)+len(spec.Contents) > 0 {
		var content bytes.Buffer
		if err := writeFiles(&content, spec.Files, spec.Contents); err != nil {
			return nil, err
		}
		layer, err := layerOf(content.Bytes())
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{
		Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, Env: spec.Env,
		User: spec.User, WorkingDir: spec.WorkingDir,
	}
	return mutate.ConfigFile(img, config)
}

// layerOf does not compress: the archive is imported once, on this machine.
func layerOf(content []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, tarball.WithCompressionLevel(gzip.NoCompression))
}

type entry struct {
	target, source string
	content        []byte
}

// writeFiles writes a reproducible tar: sorted, without times, owned by root,
// parent directories first.
func writeFiles(w io.Writer, files map[string]string, contents map[string][]byte) error {
	var entries []entry
	for target, source := range files {
		entries = append(entries, entry{target: target, source: source})
	}
	for target, content := range contents {
		if _, twice := files[target]; twice {
			return fmt.Errorf("%s is given twice", target)
		}
		entries = append(entries, entry{target: target, content: content})
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.target, b.target) })

	out := tar.NewWriter(w)
	seen := map[string]bool{"/": true}
	for _, e := range entries {
		if !path.IsAbs(e.target) || path.Clean(e.target) != e.target {
			return fmt.Errorf("%q is not a clean absolute path", e.target)
		}
		if err := writeParents(out, e.target, seen); err != nil {
			return err
		}
		mode := int64(0o644)
		if e.source != "" {
			info, err := os.Stat(e.source)
			if err != nil {
				return err
			}
			if e.content, err = os.ReadFile(e.source); err != nil {
				return err
			}
			mode = int64(info.Mode().Perm())
		}
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: strings.TrimPrefix(e.target, "/"),
			Mode: mode, Size: int64(len(e.content)),
		}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		if _, err := out.Write(e.content); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeParents(out *tar.Writer, target string, seen map[string]bool) error {
	dir := path.Dir(target)
	if seen[dir] {
		return nil
	}
	if err := writeParents(out, dir, seen); err != nil {
		return err
	}
	seen[dir] = true
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755})
}
