package relay

import (
	"bufio"
	"bytes"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// anyAuthorization finds the field as the most lenient parsers would.
var anyAuthorization = regexp.MustCompile(`(?i)[\r\n]\s*proxy-authorization\s*:`)

// Whatever a sandbox sends, a strict and a lenient reader of what the relay makes of it
// find exactly one Proxy-Authorization: the relay's.
func FuzzRequestHead(f *testing.F) {
	for _, s := range []string{
		"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: Basic eA==\r\n\r\n",
		"CONNECT example.com:443 HTTP/1.1\nHost: example.com\nPROXY-AUTHORIZATION:x\n\n",
		"GET / HTTP/1.0\r\nX: a\r\n Proxy-Authorization: b\r\n\r\n",
		"GET / HTTP/1.1\r\nX: a\rProxy-Authorization: b\r\n\r\n",
		"GET / HTTP/1.1\r\nProxy-Authorization : b\r\n\r\n",
		"GET / HTTP/1.1\r\nConnection: proxy-authorization, Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"POST http://e/ HTTP/1.1\r\nHost: e\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
		"GET http://e/\x00 HTTP/1.1\r\n\r\n", "\r\n", "", "\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		head, err := readHead(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(data, head) {
			t.Fatalf("head %q is not what was sent", head)
		}
		req, err := parseRequest(head)
		if err != nil {
			return
		}
		out := req.render("Basic mine")
		again, err := readHead(bufio.NewReader(bytes.NewReader(out)))
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("rendered head %q is read as %q, %v", out, again, err)
		}
		if n := len(anyAuthorization.FindAll(out, -1)); n != 1 {
			t.Fatalf("%d Proxy-Authorization fields in %q", n, out)
		}
		parsed, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			return // for the proxy to refuse
		}
		if got := parsed.Header["Proxy-Authorization"]; len(got) != 1 || got[0] != "Basic mine" {
			t.Fatalf("net/http reads %q from %q", got, out)
		}
	})
}

func FuzzResponseHead(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 407\r\n\r\n", "HTTP/1.0 099 x\n\n", "HTTP/1.1 2000\r\n\r\n", "HTTP/1.1 +20 x\r\n\r\n", "SSH-2.0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		head, status, err := readStatus(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if status < 100 || status > 999 || !bytes.Contains(head, []byte{byte('0' + status/100)}) {
			t.Fatalf("status %d from %q", status, head)
		}
	})
}

func TestReadHeadNeedsTheWholeHead(t *testing.T) {
	for name, s := range map[string]string{
		"cut in a line":            "GET / HTTP/1.1\r\nHost",
		"cut before the last line": "GET / HTTP/1.1\r\nHost: a\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if head, err := readHead(bufio.NewReader(strings.NewReader(s))); err == nil {
				t.Errorf("read %q", head)
			}
		})
	}
}

func TestReadHeadAcceptsLinesLongerThanItsBuffer(t *testing.T) {
	want := "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 5000) + "\r\n\r\n"
	head, err := readHead(bufio.NewReaderSize(strings.NewReader(want+"rest"), 16))
	if err != nil || string(head) != want {
		t.Errorf("read %d bytes, %v", len(head), err)
	}
}
