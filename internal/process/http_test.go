package process

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/yaml"
)

func TestEveryRouteButTheProbesNeedsTheToken(t *testing.T) {
	s := startLocal(t, nil)
	for _, r := range append(s.server.routes(), route{pattern: "GET /no/such/route"}, route{pattern: "PATCH /execute"}) {
		method, path, _ := strings.Cut(r.pattern, " ")
		for name, auth := range map[string][]string{
			"none": {"Authorization", ""}, "wrong": {"Authorization", "Bearer " + testToken + "x"}, "shorter": {"Authorization", "Bearer " + testToken[:5]},
			"basic": {"Authorization", "Basic " + testToken}, "bare": {"Authorization", testToken},
		} {
			resp := s.open(method, path, strings.NewReader(`{"command":"true"}`), auth...)
			_ = resp.Body.Close()
			want := http.StatusUnauthorized
			if r.open {
				want = http.StatusOK
			}
			if resp.StatusCode != want || (want == 401) != (resp.Header.Get("WWW-Authenticate") != "") {
				t.Errorf("%s with %s token: %d", r.pattern, name, resp.StatusCode)
			}
		}
	}
	if n := s.manager.Running(); n != 0 {
		t.Errorf("%d processes run", n)
	}
}

func TestTwoAuthorizationHeadersAreRefused(t *testing.T) {
	s := startLocal(t, nil)
	req, err := http.NewRequest(http.MethodGet, s.base+"/v1/info", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Authorization"] = []string{"Bearer " + testToken, "Bearer " + testToken}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestPagesOfOtherOriginsAreRefused(t *testing.T) {
	s := startLocal(t, nil)
	host := strings.TrimPrefix(s.base, "http://")
	for origin, want := range map[string]int{"": 200, "http://" + host: 200, "https://" + host: 200, "http://evil.example": 403, "null": 403, "http://" + host + ".evil.example": 403, host: 403} {
		header := []string{}
		if origin != "" {
			header = []string{"Origin", origin}
		}
		resp := s.open("POST", "/execute", strings.NewReader(`{"command":"true"}`), header...)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Origin %q: %d, want %d", origin, resp.StatusCode, want)
		}
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("CORS header %s", name)
			}
		}
	}
}

func TestTokenFile(t *testing.T) {
	clk := testclock.NewFakePassiveClock(time.Now())
	path := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"empty": "", "short": "0123456789abcde", "two words": "0123456789abcdef 0123", "huge": strings.Repeat("x", maxTokenBytes+1)} {
		write(content)
		if _, err := openToken(path, clk); err == nil || !strings.Contains(err.Error(), "--token-file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := openToken(path+"x", clk); err == nil {
		t.Error("a missing file was accepted")
	}
	write("first-token-0123456\n")
	f, err := openToken(path, clk)
	if err != nil {
		t.Fatal(err)
	}
	allows := func(token string) bool {
		r, err := http.NewRequest(http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "bearer "+token)
		return f.allows(r)
	}
	if !allows("first-token-0123456") || allows("") || allows("first-token-0123457") {
		t.Error("wrong answer for the first token")
	}
	write("second-token-0123456")
	clk.SetTime(clk.Now().Add(2 * tokenCheckPeriod))
	if allows("first-token-0123456") || !allows("second-token-0123456") {
		t.Error("the change was not picked up")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clk.SetTime(clk.Now().Add(2 * tokenCheckPeriod))
	if allows("second-token-0123456") || allows("") {
		t.Error("a token is right although the file is gone")
	}
	write("second-token-0123456")
	clk.SetTime(clk.Now().Add(2 * tokenCheckPeriod))
	if !allows("second-token-0123456") {
		t.Error("the file is back, the token is not")
	}
}

func TestFilesOverHTTP(t *testing.T) {
	s := startLocal(t, nil)
	if status, b := s.do("PUT", "/v1/files/dir/f.txt", strings.NewReader("0123456789")); status != 404 {
		t.Errorf("without parents: %d %s", status, b)
	}
	status, b := s.do("PUT", "/v1/files/dir/f.txt?parents=true&mode=0600", strings.NewReader("0123456789"))
	if status != 201 || !bytes.Contains(b, []byte(`"path":"/dir/f.txt","size":10`)) {
		t.Fatalf("PUT: %d %s", status, b)
	}
	resp := s.open("GET", "/v1/files/dir/f.txt", nil)
	got, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(got) != "0123456789" || resp.Header.Get("Content-Type") != "application/octet-stream" || resp.Header.Get("X-File-Mode") != "0600" {
		t.Errorf("GET: %q %v", got, resp.Header)
	}
	tag := resp.Header.Get("ETag")
	for name, tt := range map[string]struct {
		header []string
		status int
		body   string
	}{
		"range":                       {[]string{"Range", "bytes=2-4"}, 206, "234"},
		"end":                         {[]string{"Range", "bytes=-3"}, 206, "789"},
		"open range":                  {[]string{"Range", "bytes=8-"}, 206, "89"},
		"outside":                     {[]string{"Range", "bytes=20-"}, 416, ""},
		"If-Range holds":              {[]string{"Range", "bytes=0-0", "If-Range", tag}, 206, "0"},
		"If-Range does not hold":      {[]string{"Range", "bytes=0-0", "If-Range", `"x"`}, 200, "0123456789"},
		"If-None-Match, not modified": {[]string{"If-None-Match", tag}, 304, ""},
	} {
		status, b := s.do("GET", "/v1/files/dir/f.txt", nil, tt.header...)
		if status != tt.status || (tt.body != "" && string(b) != tt.body) {
			t.Errorf("%s: %d %q", name, status, b)
		}
	}
	resp = s.open("HEAD", "/v1/files/dir/f.txt", nil)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != 10 {
		t.Errorf("HEAD: %d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	if status, b := s.do("GET", "/v1/files/dir", nil); status != 200 || !bytes.Contains(b, []byte(`"name":"f.txt","type":"file","size":10,"mode":"0600"`)) {
		t.Errorf("list: %d %s", status, b)
	}
	if status, b := s.do("GET", "/v1/files/", nil); status != 200 || !bytes.Contains(b, []byte(`"name":"dir","type":"directory"`)) {
		t.Errorf("list root: %d %s", status, b)
	}
	if status, b := s.do("PUT", "/v1/files/x/y?directory=true", nil); status != 201 {
		t.Errorf("mkdir: %d %s", status, b)
	}
	for _, tt := range []struct {
		name, method, path string
		header             []string
		want               int
	}{
		{"exists", "PUT", "/v1/files/dir/f.txt", []string{"If-None-Match", "*"}, 412},
		{"over a directory", "PUT", "/v1/files/dir", nil, 409},
		{"bad mode", "PUT", "/v1/files/g?mode=888", nil, 400},
		{"setuid", "PUT", "/v1/files/g?mode=4755", nil, 400},
		{"missing", "GET", "/v1/files/missing", nil, 404},
		{"encoded parent", "GET", "/v1/files/%2e%2e%2fetc%2fpasswd", nil, 400},
		{"NUL", "GET", "/v1/files/a%00b", nil, 400},
		{"root cannot go", "DELETE", "/v1/files/?recursive=true", nil, 403},
		{"not empty", "DELETE", "/v1/files/dir", nil, 409},
		{"bad listing limit", "GET", "/v1/files/?limit=10001", nil, 400},
		{"delete a directory", "DELETE", "/v1/files/dir?recursive=true", nil, 204},
		{"it is gone", "DELETE", "/v1/files/dir?recursive=true", nil, 404},
	} {
		if status, b := s.do(tt.method, tt.path, nil, tt.header...); status != tt.want {
			t.Errorf("%s: %d %s", tt.name, status, b)
		}
	}
}

func TestLinkOutOfTheRootIsForbidden(t *testing.T) {
	s := startLocal(t, nil)
	if err := os.Symlink("/etc", s.root+"/etc"); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		if status, b := s.do(method, "/v1/files/etc/hostname-of-test", strings.NewReader("x")); status != 403 || !bytes.Contains(b, []byte("path_escapes")) {
			t.Errorf("%s: %d %s", method, status, b)
		}
	}
}

func TestUploadBeyondTheLimit(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxFile = 1000 })
	if status, _ := s.do("PUT", "/v1/files/f", bytes.NewReader(make([]byte, 1000))); status != 201 {
		t.Errorf("at the limit: %d", status)
	}
	before, err := os.ReadFile(s.root + "/f")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]io.Reader{"with length": bytes.NewReader(make([]byte, 1001)), "chunked": io.MultiReader(bytes.NewReader(make([]byte, 1001)))} {
		if status, b := s.do("PUT", "/v1/files/f", body); status != 413 {
			t.Errorf("%s: %d %s", name, status, b)
		}
	}
	if after, err := os.ReadFile(s.root + "/f"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a refused upload changed the file: %v", err)
	}
	if list, _ := os.ReadDir(s.root); len(list) != 1 {
		t.Errorf("left: %v", list)
	}
}

func TestInterruptedUploadChangesNothing(t *testing.T) {
	s := startLocal(t, nil)
	if status, _ := s.do("PUT", "/v1/files/f", strings.NewReader("old")); status != 201 {
		t.Fatal(status)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(conn, "PUT /v1/files/f HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testToken+"\r\nContent-Length: 100\r\n\r\nhalf of it")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "upload is under way", func() bool { list, _ := os.ReadDir(s.root); return len(list) == 2 })
	_ = conn.Close()
	eventually(t, "upload is cleaned up", func() bool { list, _ := os.ReadDir(s.root); return len(list) == 1 })
	if b, err := os.ReadFile(s.root + "/f"); string(b) != "old" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestConcurrentUploadsOverHTTP(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxTransfers = 64 })
	const size = 100_000
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if status, b := s.do("PUT", "/v1/files/f", bytes.NewReader(bytes.Repeat([]byte{byte('a' + i)}, size))); status != 201 {
					t.Errorf("PUT: %d %s", status, b)
				}
				if _, b := s.do("GET", "/v1/files/f", nil); len(b) != size || bytes.Count(b, b[:1]) != size {
					t.Errorf("a mixed or partial file of %d bytes", len(b))
				}
			}
		})
	}
	wg.Wait()
}

func TestTransferCap(t *testing.T) {
	s := startLocal(t, func(o *options) { o.maxTransfers = 1 })
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() { status, _ := s.do("PUT", "/v1/files/f", r); done <- status }()
	eventually(t, "upload is under way", func() bool { return s.server.transfers.held.Load() == 1 })
	if status, b := s.do("GET", "/v1/files/", nil); status != 429 {
		t.Errorf("%d %s", status, b)
	}
	_ = w.Close()
	if status := <-done; status != 201 {
		t.Errorf("upload: %d", status)
	}
}

func TestOpenAPIListsTheRoutesThatExist(t *testing.T) {
	s := startLocal(t, nil)
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := yaml.UnmarshalStrict(openAPIDocument, &map[string]any{}); err != nil {
		t.Fatal(err)
	}
	status, b := s.do("GET", "/openapi.json", nil)
	if status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	decode(t, b, &doc)
	documented := map[string]bool{}
	for path, ops := range doc.Paths {
		for method := range ops {
			if method != "parameters" {
				documented[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	for _, r := range s.server.routes() {
		p := strings.Replace(r.pattern, "{path...}", "{path}", 1)
		if !documented[p] {
			t.Errorf("not in the OpenAPI document: %s", p)
		}
		delete(documented, p)
	}
	for p := range documented {
		t.Errorf("documented but not served: %s", p)
	}
	// Every reference resolves.
	var all any
	decode(t, b, &all)
	for _, m := range regexp.MustCompile(`"\$ref":"#/([^"]+)"`).FindAllStringSubmatch(string(b), -1) {
		at := all
		for part := range strings.SplitSeq(m[1], "/") {
			next, ok := at.(map[string]any)
			if !ok || next[part] == nil {
				t.Errorf("dangling reference %s", m[1])
				break
			}
			at = next[part]
		}
	}
	if _, b := s.do("GET", "/openapi.yaml", nil); !bytes.Equal(b, openAPIDocument) {
		t.Error("the YAML served is not the document")
	}
}

// The document has the fields that the code reads, and no others.
func TestOpenAPIRequestMatchesTheParser(t *testing.T) {
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any
			}
		}
	}
	if err := yaml.Unmarshal(openAPIDocument, &doc); err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	b, err := io.ReadAll(jsonBody(t, Request{}))
	if err != nil {
		t.Fatal(err)
	}
	decode(t, b, &fields)
	props := doc.Components.Schemas["Request"].Properties
	for f := range fields {
		if props[f] == nil {
			t.Errorf("not documented: %s", f)
		}
	}
	if len(props) != len(fields) {
		t.Errorf("%d fields are documented, %d are read", len(props), len(fields))
	}
}

func TestMetrics(t *testing.T) {
	s := startLocal(t, nil)
	s.execute(map[string]any{"command": "echo hi"})
	s.execute(map[string]any{"command": "exit 1"})
	_, b := s.do("GET", "/metrics", nil)
	for _, want := range []string{
		`sandbox_api_processes_started_total{kind="execute"} 2`, `sandbox_api_processes_finished_total{kind="execute",outcome="failed"} 1`,
		`sandbox_api_output_bytes_total{stream="stdout"} 3`, "sandbox_api_processes_running 0", `sandbox_api_requests_total{code="200",route="POST /execute"} 2`,
	} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("no %s", want)
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(dir+"/"+name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}
	defer web.CloseIdleConnections()
	get := func(addr string) int {
		resp, err := web.Get("https://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.ProtoMajor != 1 {
			t.Errorf("protocol %s: WebSocket needs HTTP/1.1", resp.Proto)
		}
		return resp.StatusCode
	}
	files := []string{"-tls-cert-file", dir + "/cert", "-tls-key-file", dir + "/key"}
	if got := get(startRemote(t, remoteOptions{args: files}).addr); got != 200 {
		t.Errorf("%d", got)
	}
	// The refusal of local callers speaks TLS as well.
	if got := get(startRemote(t, remoteOptions{args: files, keepLock: true}).addr); got != 403 {
		t.Errorf("%d", got)
	}
}
