package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// DebianLayer returns a layer with the packages and all that they depend on,
// unpacked but not configured (no maintainer scripts run). The packages come
// through apt-get, so root and a configured apt are needed; they are kept
// below cache, and a second call with the same packages needs neither apt nor
// a network.
func DebianLayer(ctx context.Context, cache string, packages ...string) (v1.Layer, error) {
	content, err := debianTar(ctx, cache, packages)
	if err != nil {
		return nil, fmt.Errorf("layer of Debian packages: %w", err)
	}
	return layerOf(content)
}

// layerFormat is part of the cache key: raise it when layers are made
// differently.
const layerFormat = "2 "

func debianTar(ctx context.Context, cache string, packages []string) ([]byte, error) {
	packages = slices.Compact(slices.Sorted(slices.Values(packages)))
	sum := sha256.Sum256([]byte(layerFormat + strings.Join(packages, " ")))
	dir := filepath.Join(cache, "debian-"+hex.EncodeToString(sum[:])[:16])
	if err := os.MkdirAll(filepath.Join(dir, "archives", "partial"), 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}

	file := filepath.Join(dir, "layer.tar")
	if content, err := os.ReadFile(file); err == nil {
		return content, nil
	}
	debs, err := download(ctx, dir, packages)
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	if err := mergeDebs(ctx, &content, debs); err != nil {
		return nil, err
	}
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, content.Bytes(), 0o644); err != nil {
		return nil, err
	}
	return content.Bytes(), os.Rename(tmp, file)
}

// download resolves the packages against an empty system, so that the set is
// complete on its own whatever the host has installed.
func download(ctx context.Context, dir string, packages []string) ([]string, error) {
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	archives := filepath.Join(dir, "archives")
	args := append([]string{
		"-qq", "-y", "--download-only", "--no-install-recommends",
		"-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache::archives=" + archives,
		"-o", "APT::Sandbox::User=root",
		"-o", "APT::Architectures::=", // multiarch hosts would resolve foreign packages
		"install",
	}, packages...)
	err := aptGet(ctx, args...)
	if err != nil {
		// The usual cause is a package list that was never fetched or is too old.
		if updateErr := aptGet(ctx, "-qq", "update"); updateErr != nil {
			return nil, errors.Join(err, updateErr)
		}
		err = aptGet(ctx, args...)
	}
	if err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil || len(debs) == 0 {
		return nil, fmt.Errorf("apt-get downloaded nothing for %s", strings.Join(packages, " "))
	}
	slices.Sort(debs)
	return debs, nil
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[len(args)-1], err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

func mergeDebs(ctx context.Context, w io.Writer, debs []string) error {
	m := newMerger(w)
	if err := m.base(); err != nil {
		return err
	}
	for _, deb := range debs {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
		content, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("dpkg-deb %s: %w", filepath.Base(deb), err)
		}
		if err := m.add(bytes.NewReader(content)); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	return m.finish()
}

// merger writes the contents of packages into one tar.
type merger struct {
	out  *tar.Writer
	seen map[string]bool
	// roots collects the CA certificates, whose bundle a maintainer script
	// would make.
	roots bytes.Buffer
}

func newMerger(w io.Writer) *merger {
	return &merger{out: tar.NewWriter(w), seen: map[string]bool{}}
}

// merged are the directories that Debian keeps as links into /usr; packages of
// bookworm still ship files under the old names.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

func (m *merger) base() error {
	for _, dir := range []string{"usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "root", "run", "proc", "sys", "dev", "home", "var"} {
		if err := m.dir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := m.dir("tmp", 0o1777); err != nil {
		return err
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := m.link(link, "usr/"+link); err != nil {
			return err
		}
	}
	accounts := map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
		"etc/group":    "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
		"etc/hostname": "",
	}
	for _, file := range []string{"etc/passwd", "etc/group", "etc/hostname"} {
		if err := m.file(file, []byte(accounts[file])); err != nil {
			return err
		}
	}
	return m.dir("home/sandbox", 0o777)
}

func (m *merger) dir(name string, mode int64) error {
	m.seen[name] = true
	return m.out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
}

func (m *merger) link(name, target string) error {
	m.seen[name] = true
	return m.out.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

func (m *merger) file(name string, content []byte) error {
	m.seen[name] = true
	if err := m.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := m.out.Write(content)
	return err
}

func (m *merger) add(r io.Reader) error {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := canonical(header.Name)
		if name == "." || name == "" || skipped(name) || m.seen[name] {
			continue
		}
		m.seen[name] = true
		header.Name, header.Format = name, tar.FormatUnknown
		if header.Typeflag == tar.TypeDir {
			header.Name += "/"
		}
		if header.Typeflag == tar.TypeLink {
			header.Linkname = canonical(header.Linkname)
		}
		if err := m.copy(header, in); err != nil {
			return err
		}
	}
}

func (m *merger) copy(header *tar.Header, content io.Reader) error {
	if err := m.out.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	if strings.HasPrefix(header.Name, "usr/share/ca-certificates/mozilla/") {
		content = io.TeeReader(content, &m.roots)
	}
	_, err := io.Copy(m.out, content)
	return err
}

// finish adds what maintainer scripts would have made.
func (m *merger) finish() error {
	if m.roots.Len() > 0 {
		if !m.seen["etc/ssl/certs"] {
			for _, dir := range []string{"etc/ssl", "etc/ssl/certs"} {
				if err := m.dir(dir, 0o755); err != nil {
					return err
				}
			}
		}
		if err := m.file(strings.TrimPrefix(bundlePath, "/"), m.roots.Bytes()); err != nil {
			return err
		}
	}
	for _, link := range []struct{ name, target string }{{"sh", "dash"}, {"awk", "mawk"}, {"nc", "nc.openbsd"}} {
		if m.seen["usr/bin/"+link.target] && !m.seen["usr/bin/"+link.name] {
			if err := m.link("usr/bin/"+link.name, link.target); err != nil {
				return err
			}
		}
	}
	return m.out.Close()
}

// bundlePath is where Debian's programs look for CA certificates.
const bundlePath = "/etc/ssl/certs/ca-certificates.crt"

// rootsOf returns the CA bundle of a layer.
func rootsOf(layer v1.Layer) ([]byte, error) {
	content, err := layer.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	in := tar.NewReader(content)
	for {
		header, err := in.Next()
		if err != nil {
			return nil, fmt.Errorf("layer without %s: %w", bundlePath, err)
		}
		if "/"+header.Name == bundlePath {
			return io.ReadAll(in)
		}
	}
}

// canonical returns a package's path below the merged /usr.
func canonical(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains(merged, first) {
		return "usr/" + name
	}
	return name
}

// skipped leaves out what no test reads and would only make the image larger.
func skipped(name string) bool {
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}
