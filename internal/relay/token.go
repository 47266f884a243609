package relay

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxTokenBytes leaves room above the 2 KiB that tokens may have.
const maxTokenBytes = 8 << 10

// tokenFile is read for every request (about 15 µs): the kubelet replaces the file by a
// symlink swap, so there is nothing to watch and no copy that could be stale.
type tokenFile string

// read returns the token. The character check keeps a corrupt file from adding header
// lines; a JWT is base64url and dots.
func (f tokenFile) read() (string, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxTokenBytes+1))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	switch {
	case token == "":
		return "", fmt.Errorf("token file %s: is empty", f)
	case len(raw) > maxTokenBytes:
		return "", fmt.Errorf("token file %s: is larger than %d bytes", f, maxTokenBytes)
	case strings.ContainsFunc(token, notJWT):
		return "", errors.New("token file " + string(f) + ": holds characters that no JWT has")
	}
	return token, nil
}

func notJWT(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}

// basic is the value of Proxy-Authorization (RFC 7617; user and password as in design
// section 3).
func basic(containerID, token string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte("container_"+containerID+":jwt_"+token))
}
