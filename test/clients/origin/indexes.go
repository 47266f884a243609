package origin

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The package that every index offers.
const (
	PackageName    = "sandbox-egress-demo"
	PackageVersion = "1.0.0"
)

func serveBytes(mux *http.ServeMux, path, contentType string, data []byte) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
}

// zipped makes an archive from name, content pairs.
func zipped(files ...string) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		if err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// addPip serves a simple index (PEP 503) with one wheel (PEP 427).
func addPip(_ context.Context, mux *http.ServeMux, _ string) error {
	name := strings.ReplaceAll(PackageName, "-", "_")
	file := name + "-" + PackageVersion + "-py3-none-any.whl"
	info := name + "-" + PackageVersion + ".dist-info/"
	wheel, err := zipped(
		name+".py", fmt.Sprintf("GREETING = %q\n", Greeting),
		info+"METADATA", "Metadata-Version: 2.1\nName: "+PackageName+"\nVersion: "+PackageVersion+"\n",
		info+"WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		info+"RECORD", name+".py,,\n"+info+"METADATA,,\n"+info+"WHEEL,,\n"+info+"RECORD,,\n")
	if err != nil {
		return err
	}
	serveBytes(mux, "/simple/"+PackageName+"/{$}", "text/html", []byte(`<!doctype html><a href="../../wheels/`+file+`">`+file+`</a>`))
	serveBytes(mux, "/wheels/"+file, "application/octet-stream", wheel)
	return nil
}

// addNpm serves one package the way an npm registry does.
func addNpm(_ context.Context, mux *http.ServeMux, _ string) error {
	manifest := map[string]any{"name": PackageName, "version": PackageVersion, "main": "index.js"}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	var tgz bytes.Buffer
	gz := gzip.NewWriter(&tgz)
	tw := tar.NewWriter(gz)
	for _, f := range []struct {
		name string
		data []byte
	}{{"package/package.json", raw}, {"package/index.js", fmt.Appendf(nil, "module.exports = %q\n", Greeting)}} {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if err := gz.Close(); err != nil {
		return err
	}
	sum := sha512.Sum512(tgz.Bytes())
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	tarball := "/npm/" + PackageName + "/-/" + PackageName + "-" + PackageVersion + ".tgz"

	mux.HandleFunc("GET /npm/"+PackageName, func(w http.ResponseWriter, r *http.Request) {
		version := map[string]any{
			"name": PackageName, "version": PackageVersion, "main": "index.js",
			"dist": map[string]any{"tarball": base(r) + tarball, "integrity": integrity},
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"name": PackageName, "dist-tags": map[string]string{"latest": PackageVersion},
			"time":     map[string]string{PackageVersion: "2020-01-01T00:00:00.000Z", "modified": "2020-01-01T00:00:00.000Z"},
			"versions": map[string]any{PackageVersion: version},
		})
	})
	serveBytes(mux, tarball, "application/octet-stream", tgz.Bytes())
	return nil
}

// addMaven serves a parent POM, which Maven needs before it can do anything with a project
// that names it, and which takes no plugin to fetch.
func addMaven(_ context.Context, mux *http.ServeMux, _ string) error {
	serveBytes(mux, "/maven2/test/origin/parent/1.0.0/parent-1.0.0.pom", "text/xml", []byte(`<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>test.origin</groupId><artifactId>parent</artifactId><version>1.0.0</version><packaging>pom</packaging>
  <description>`+Greeting+`</description>
</project>
`))
	return nil
}

// GoModule is the module in the Go module index.
const GoModule = "origin.example/demo"

// addGo serves one module by the GOPROXY protocol.
func addGo(_ context.Context, mux *http.ServeMux, _ string) error {
	mod := "module " + GoModule + "\n"
	prefix := GoModule + "@v1.0.0/"
	archive, err := zipped(prefix+"go.mod", mod, prefix+"demo.go", "// Package demo is fetched by the client matrix.\npackage demo\n\nconst Greeting = \""+Greeting+"\"\n")
	if err != nil {
		return err
	}
	at := "/goproxy/" + GoModule + "/@v/"
	serveBytes(mux, at+"list", "text/plain", []byte("v1.0.0\n"))
	serveBytes(mux, at+"v1.0.0.info", "application/json", []byte(`{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}`))
	serveBytes(mux, at+"v1.0.0.mod", "text/plain", []byte(mod))
	serveBytes(mux, at+"v1.0.0.zip", "application/zip", archive)
	return nil
}
