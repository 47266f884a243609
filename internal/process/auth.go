package process

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

const (
	minTokenLen   = 16
	maxTokenBytes = 8 << 10
	// A Secret volume changes under a running server; this bounds the stat calls.
	tokenCheckPeriod = time.Second
)

// tokenFile is a bearer token in a file. It follows changes of the file; while
// the file cannot be read no token is right.
type tokenFile struct {
	path  string
	clock clock.PassiveClock

	mu      sync.Mutex
	checked time.Time
	sum     [sha256.Size]byte
	valid   bool
	err     error
}

// openToken reads the token for the first time. The error says what is wrong
// with the file.
func openToken(path string, c clock.PassiveClock) (*tokenFile, error) {
	t := &tokenFile{path: path, clock: c}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reload()
	return t, t.err
}

func (t *tokenFile) reload() {
	t.checked = t.clock.Now()
	t.valid = false
	token, err := readToken(t.path)
	if t.err = err; err == nil {
		t.sum, t.valid = sha256.Sum256([]byte(token)), true
	}
}

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	switch {
	case len(b) > maxTokenBytes:
		return "", fmt.Errorf("--token-file: %s is longer than %d bytes", path, maxTokenBytes)
	case len(token) < minTokenLen:
		return "", fmt.Errorf("--token-file: the token in %s has %d characters, want at least %d", path, len(token), minTokenLen)
	case strings.ContainsAny(token, " \t\r\n"):
		return "", fmt.Errorf("--token-file: %s holds more than one word", path)
	}
	return token, nil
}

// allows compares digests, in constant time and without telling the length of the
// token.
func (t *tokenFile) allows(r *http.Request) bool {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return false
	}
	scheme, given, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	t.mu.Lock()
	if t.clock.Since(t.checked) >= tokenCheckPeriod {
		t.reload()
	}
	want, valid := t.sum, t.valid
	t.mu.Unlock()
	got := sha256.Sum256([]byte(strings.TrimSpace(given)))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && valid
}

// sameOrigin holds when no browser page of another site made the request: no
// Origin, or one whose host is the request's own. A page of another site cannot
// leave Origin out of a WebSocket handshake (RFC 6455 section 4.1) or a CORS
// request.
func sameOrigin(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	_, host, ok := strings.Cut(origins[0], "://")
	return ok && strings.EqualFold(host, r.Host)
}
