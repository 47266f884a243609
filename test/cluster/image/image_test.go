package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

type file struct {
	header  tar.Header
	content string
}

func untar(t *testing.T, r io.Reader) (names []string, files map[string]file) {
	t.Helper()
	files = map[string]file{}
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		files[header.Name] = file{*header, string(content)}
	}
}

func program(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWrittenImageHasItsFilesAndConfiguration(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "image.tar")
	err := Binaries("example.test/product:1", map[string]string{"manager": program(t, "binary"), "proxy": program(t, "other")}, "manager", archive)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("example.test/product:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/manager"}) {
		t.Errorf("configuration: %+v", config)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	names, files := untar(t, content)
	if got := files["manager"]; got.content != "binary" || got.header.Mode != 0o755 || got.header.Uid != 0 {
		t.Errorf("manager: %+v", got)
	}
	if got := files["etc/passwd"]; !strings.Contains(got.content, "nonroot:x:65532") || got.header.Mode != 0o644 {
		t.Errorf("etc/passwd: %+v", got)
	}
	if slices.Index(names, "etc/") > slices.Index(names, "etc/passwd") {
		t.Errorf("a file precedes its directory: %q", names)
	}
}

func TestTheSameInputsMakeTheSameImage(t *testing.T) {
	spec := Spec{Ref: "a.test/b:1", Files: map[string]string{"/z": program(t, "z"), "/a/b": program(t, "b")}, Contents: map[string][]byte{"/m": []byte("m")}}
	digest := func() string {
		img, err := build(spec)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return digest.String()
	}
	if a, b := digest(), digest(); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

func TestRefusedImages(t *testing.T) {
	exists := program(t, "x")
	tests := map[string]struct {
		spec Spec
		want string
	}{
		"name without a tag": {Spec{Ref: "example.test/x"}, "image name"},
		"relative target":    {Spec{Ref: "example.test/x:1", Files: map[string]string{"x": exists}}, "clean absolute path"},
		"target with dots":   {Spec{Ref: "example.test/x:1", Files: map[string]string{"/a/../x": exists}}, "clean absolute path"},
		"missing source":     {Spec{Ref: "example.test/x:1", Files: map[string]string{"/x": "/nonexistent"}}, "no such file"},
		"given twice":        {Spec{Ref: "example.test/x:1", Files: map[string]string{"/x": exists}, Contents: map[string][]byte{"/x": nil}}, "given twice"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "image.tar")
			err := Write(test.spec, archive)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if _, err := os.Stat(archive); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an archive was written: %v", err)
			}
		})
	}
	if err := Binaries("example.test/x:1", map[string]string{"a": exists}, "b", filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), `entry point "b"`) {
		t.Errorf("unknown entry point: %v", err)
	}
}

// deb is the file system part of a package.
func deb(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Size, h.Linkname = int64(len(content)), ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestMergedPackagesFormOneTree(t *testing.T) {
	var out bytes.Buffer
	m := newMerger(&out)
	if err := m.base(); err != nil {
		t.Fatal(err)
	}
	packages := []*bytes.Buffer{
		deb(t,
			tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
			tar.Header{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o755},
			tar.Header{Typeflag: tar.TypeReg, Name: "./bin/dash", Mode: 0o755, Linkname: "dash"},
			tar.Header{Typeflag: tar.TypeLink, Name: "./bin/dash2", Linkname: "./bin/dash"},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "./lib64/ld.so", Linkname: "/lib/ld-1.so"},
			tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/doc/dash/copyright", Linkname: "text"},
		),
		deb(t,
			tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/dash", Mode: 0o755, Linkname: "from the second package"},
			tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/ca-certificates/mozilla/A.crt", Linkname: "A\n"},
			tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/ca-certificates/mozilla/B.crt", Linkname: "B\n"},
		),
	}
	for _, p := range packages {
		if err := m.add(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.finish(); err != nil {
		t.Fatal(err)
	}
	layer, err := layerOf(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	names, files := untar(t, &out)
	if len(names) != len(files) {
		t.Errorf("a name occurs twice: %q", names)
	}
	if got := files["usr/bin/dash"].content; got != "dash" {
		t.Errorf("usr/bin/dash: %q, want the first package's", got)
	}
	if got := files["usr/bin/dash2"].header.Linkname; got != "usr/bin/dash" {
		t.Errorf("hard link to %q", got)
	}
	if got := files["usr/lib64/ld.so"].header.Linkname; got != "/lib/ld-1.so" {
		t.Errorf("usr/lib64/ld.so -> %q", got)
	}
	if got := files["usr/bin/sh"].header.Linkname; got != "dash" {
		t.Errorf("usr/bin/sh -> %q", got)
	}
	if got := files["bin"].header.Linkname; got != "usr/bin" {
		t.Errorf("bin -> %q", got)
	}
	if _, ok := files["usr/share/doc/dash/copyright"]; ok {
		t.Error("documentation is included")
	}
	roots, err := rootsOf(layer)
	if err != nil || string(roots) != "A\nB\n" {
		t.Errorf("CA bundle: %q, %v", roots, err)
	}
}

func TestRootsOfALayerWithoutABundle(t *testing.T) {
	var layer v1.Layer
	layer, err := layerOf(deb(t).Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rootsOf(layer); err == nil || !strings.Contains(err.Error(), bundlePath) {
		t.Errorf("got %v", err)
	}
}
