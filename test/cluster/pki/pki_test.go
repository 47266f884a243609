package pki_test

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
)

func TestIssuedCertificateVerifiesAgainstItsAuthorityOnly(t *testing.T) {
	authority, err := pki.NewAuthority("one")
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewAuthority("two")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(pki.Request{CommonName: "c", Organizations: []string{"o"}, DNSNames: []string{"a.example"}, IPs: []net.IP{net.IPv4(192, 0, 2, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	if cert.Leaf.Subject.CommonName != "c" || cert.Leaf.Subject.Organization[0] != "o" {
		t.Errorf("subject %v", cert.Leaf.Subject)
	}
	tests := map[string]struct {
		pem  []byte
		name string
		ok   bool
	}{
		"its name":          {authority.PEM, "a.example", true},
		"its address":       {authority.PEM, "192.0.2.1", true},
		"another name":      {authority.PEM, "b.example", false},
		"another authority": {other.PEM, "a.example", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(test.pem)
			_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: test.name})
			if (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAuthoritySurvivesBeingWritten(t *testing.T) {
	base := filepath.Join(t.TempDir(), "ca")
	authority, err := pki.NewAuthority("one")
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Write(base); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(base + ".key")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	loaded, err := pki.LoadAuthority(base)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := loaded.Issue(pki.Request{CommonName: "x", DNSNames: []string{"x.example"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM)
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "x.example"}); err != nil {
		t.Error(err)
	}
	if _, err := pki.LoadAuthority(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing authority loads")
	}
}
