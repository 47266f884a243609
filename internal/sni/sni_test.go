package sni_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"

	"github.com/sandbox-egress/sandbox-egress/internal/sni"
)

// hello returns the bytes of a ClientHello as crypto/tls sends it.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, cfg).Handshake()
		client.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func named(name string) *tls.Config {
	return &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
}

// split cuts the one record of h into records of at most n bytes of payload.
func split(h []byte, n int) []byte {
	var out []byte
	for body := h[5:]; len(body) > 0; {
		k := min(n, len(body))
		out = append(out, h[0], h[1], h[2], byte(k>>8), byte(k))
		out = append(out, body[:k]...)
		body = body[k:]
	}
	return out
}

func TestPeek(t *testing.T) {
	h := hello(t, named("api.example.com"))
	oldMinor := bytes.Clone(h)
	oldMinor[2] = 0x00
	huge := append([]byte{0x16, 3, 1, 0x40, 0x00, 1, 0, 0xff, 0xff}, make([]byte, 0x4000-4)...)
	broken := bytes.Clone(h)
	broken[5] = 2 // ServerHello
	for name, tc := range map[string]struct {
		in       io.Reader
		wantName string
		wantErr  error
	}{
		"one record":                  {in: bytes.NewReader(h), wantName: "api.example.com"},
		"one byte per read":           {in: iotest.OneByteReader(bytes.NewReader(h)), wantName: "api.example.com"},
		"many records":                {in: bytes.NewReader(split(h, 37)), wantName: "api.example.com"},
		"one byte per record":         {in: bytes.NewReader(split(h, 1)), wantName: "api.example.com"},
		"record version 3.0":          {in: bytes.NewReader(oldMinor), wantName: "api.example.com"},
		"no SNI":                      {in: bytes.NewReader(hello(t, &tls.Config{InsecureSkipVerify: true})), wantName: ""},
		"data after the hello":        {in: bytes.NewReader(append(bytes.Clone(h), "more"...)), wantName: "api.example.com"},
		"plain text":                  {in: bytes.NewReader([]byte("GET / HTTP/1.1\r\n")), wantErr: sni.ErrNotTLS},
		"one byte of something else":  {in: bytes.NewReader([]byte("S")), wantErr: sni.ErrNotTLS},
		"SSLv2 hello":                 {in: bytes.NewReader([]byte{0x80, 0x2e, 1, 3, 1}), wantErr: sni.ErrNotTLS},
		"alert record first":          {in: bytes.NewReader(append([]byte{0x15, 3, 1, 0, 2, 1, 0}, h...)), wantErr: sni.ErrNotTLS},
		"nothing":                     {in: bytes.NewReader(nil), wantErr: io.EOF},
		"cut short":                   {in: bytes.NewReader(h[:len(h)-1]), wantErr: io.ErrUnexpectedEOF},
		"cut after one byte":          {in: bytes.NewReader(h[:1]), wantErr: io.ErrUnexpectedEOF},
		"larger than the cap":         {in: io.MultiReader(bytes.NewReader(huge), zeros{}), wantErr: sni.ErrTooLarge},
		"another handshake message":   {in: bytes.NewReader(broken), wantErr: sni.ErrMalformed},
		"handshake record of garbage": {in: io.MultiReader(bytes.NewReader([]byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0}), zeros{}), wantErr: sni.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			got, read, err := sni.Peek(tc.in, nil)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("err = %v, want %v", err, tc.wantErr)
			}
			if got != tc.wantName {
				t.Errorf("name = %q, want %q", got, tc.wantName)
			}
			if len(read) > sni.MaxHello {
				t.Errorf("%d bytes read, the cap is %d", len(read), sni.MaxHello)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestPeekReturnsEveryByteItRead(t *testing.T) {
	in := append(split(hello(t, named("a.example")), 100), "tail"...)
	for _, size := range []int{0, 1, 5, 200, 4096, 2 * sni.MaxHello} {
		r := iotest.HalfReader(bytes.NewReader(in))
		_, read, err := sni.Peek(r, make([]byte, size))
		if err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(r)
		if !bytes.Equal(append(bytes.Clone(read), rest...), in) {
			t.Errorf("with a buffer of %d bytes, read + rest is not the input", size)
		}
	}
}

// greaseECH adds an encrypted_client_hello extension (RFC 9849 section 6.2: GREASE) to h.
func greaseECH(h []byte) []byte {
	payload := append([]byte{0, 0, 1, 0, 1, 42, 0, 32}, make([]byte, 32)...)
	payload = append(payload, 0, 144)
	payload = append(payload, make([]byte, 144)...)
	ext := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(payload)))
	ext = append(ext, payload...)

	body := bytes.Clone(h[9:])
	at := 2 + 32
	at += 1 + int(body[at])
	at += 2 + int(binary.BigEndian.Uint16(body[at:]))
	at += 1 + int(body[at])
	extLen := binary.BigEndian.Uint16(body[at:])
	binary.BigEndian.PutUint16(body[at:], extLen+uint16(len(ext)))
	body = append(body, ext...)
	msg := append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{0x16, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

func TestPeekToleratesECH(t *testing.T) {
	got, _, err := sni.Peek(bytes.NewReader(greaseECH(hello(t, named("outer.example")))), nil)
	if err != nil || got != "outer.example" {
		t.Errorf("name = %q, err = %v; want the outer name", got, err)
	}
}

func FuzzPeek(f *testing.F) {
	h := hello(f, named("api.example.com"))
	f.Add(h)
	f.Add(split(h, 7))
	f.Add(greaseECH(h))
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		_, read, _ := sni.Peek(r, nil)
		if len(read) > sni.MaxHello {
			t.Fatalf("read %d bytes", len(read))
		}
		if !bytes.Equal(read, in[:len(in)-r.Len()]) {
			t.Fatal("what was read is not what came in")
		}
	})
}

func BenchmarkPeek(b *testing.B) {
	h := hello(b, named("api.example.com"))
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := sni.Peek(bytes.NewReader(h), buf); err != nil {
			b.Fatal(err)
		}
	}
}
