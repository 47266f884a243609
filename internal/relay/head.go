package relay

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// maxHeadBytes bounds the start line and header fields of a request or response.
const maxHeadBytes = 64 << 10

var (
	errHeadTooLarge = fmt.Errorf("the header is larger than %d bytes", maxHeadBytes)
	errBadRequest   = errors.New("not an HTTP/1 request")
	errBadResponse  = errors.New("not an HTTP/1 response")
)

// readHead reads up to and including the empty line. io.EOF means that nothing was sent,
// io.ErrUnexpectedEOF that the head is incomplete.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(head)+len(part) > maxHeadBytes {
			return nil, errHeadTooLarge
		}
		start := len(head)
		head = append(head, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			// The rest of the line follows; it is complete only with its line feed.
			continue
		case err == io.EOF && len(head) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		line := bytes.TrimSuffix(bytes.TrimSuffix(head[start:], []byte("\n")), []byte("\r"))
		if len(line) == 0 && (start == 0 || head[start-1] == '\n') {
			return head, nil
		}
	}
}

// request is a parsed request head. Fields keep the client's order and spelling.
type request struct {
	method string
	line   string   // the request line, without line end
	fields []string // "Name: value" lines without Proxy-Authorization and Connection
	body   bool     // Content-Length or Transfer-Encoding announces one
}

// parseRequest reads a head strictly: a line that different parsers could understand
// differently (folded, without a colon, with a space before it, with bare CR or NUL) is an
// error, so that no spelling of Proxy-Authorization gets past.
func parseRequest(head []byte) (*request, error) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
		if strings.ContainsAny(lines[i], "\r\x00") {
			return nil, fmt.Errorf("%w: control character in line %d", errBadRequest, i+1)
		}
	}
	req := &request{line: lines[0]}
	parts := strings.Split(req.line, " ")
	if len(parts) != 3 || !httpguts.ValidHeaderFieldName(parts[0]) || parts[1] == "" || (parts[2] != "HTTP/1.1" && parts[2] != "HTTP/1.0") {
		return nil, fmt.Errorf("%w: the request line must be METHOD TARGET HTTP/1.1", errBadRequest)
	}
	req.method = parts[0]

	var connection []string
	for i, l := range lines[1:] {
		if l == "" {
			break
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("%w: malformed header field in line %d", errBadRequest, i+2)
		}
		switch strings.ToLower(name) {
		case "proxy-authorization", "proxy-connection", "keep-alive":
			continue
		case "connection":
			for token := range strings.SplitSeq(value, ",") {
				switch token = strings.TrimSpace(token); strings.ToLower(token) {
				// Naming it would make the proxy drop the field that is added.
				case "", "close", "keep-alive", "proxy-authorization":
				default:
					connection = append(connection, token)
				}
			}
			continue
		case "content-length", "transfer-encoding":
			req.body = true
		}
		req.fields = append(req.fields, l)
	}
	// After a tunnel or an upgrade the connection is not HTTP any more, but a refused
	// upgrade ends like every other response.
	if req.method != "CONNECT" {
		connection = append(connection, "close")
	}
	if len(connection) > 0 {
		req.fields = append(req.fields, "Connection: "+strings.Join(connection, ", "))
	}
	return req, nil
}

// render writes the head with the given Proxy-Authorization value.
func (r *request) render(authorization string) []byte {
	var b bytes.Buffer
	b.WriteString(r.line)
	b.WriteString("\r\n")
	for _, f := range r.fields {
		b.WriteString(f)
		b.WriteString("\r\n")
	}
	b.WriteString("Proxy-Authorization: ")
	b.WriteString(authorization)
	b.WriteString("\r\n\r\n")
	return b.Bytes()
}

// parseStatus reads the status code from a response head (RFC 9112 section 4).
func parseStatus(head []byte) (int, error) {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || rest[1] != ' ' {
		return 0, errBadResponse
	}
	code, err := strconv.Atoi(string(rest[2:5]))
	if err != nil || code < 100 || code > 999 || len(rest) > 5 && rest[5] != ' ' && rest[5] != '\r' {
		return 0, errBadResponse
	}
	return code, nil
}
