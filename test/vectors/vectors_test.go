// Package vectors attacks a real listening proxy with raw sockets, so that no client
// library tidies the attack up. Each vector asserts the status, the reason, what the origin
// saw, and the audit records.
package vectors

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy"
	"github.com/sandbox-egress/sandbox-egress/internal/proxy/proxytest"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

var proxyOwn = netip.MustParseAddrPort("203.0.113.99:8443")

// minVectors is the number that must not be lost.
const minVectors = 120

func TestVectors(t *testing.T) {
	groups := map[string]map[string]vector{
		"authority": authorityVectors(), "host": hostVectors(), "address": addressVectors(), "dns": dnsVectors(),
		"request": requestVectors(), "framing": framingVectors(), "auth": authVectors(), "binding": bindingVectors(),
		"tunnel": tunnelVectors(), "inner": innerVectors(), "forward": forwardVectors(), "response": responseVectors(),
		"limits": limitVectors(), "revocation": revocationVectors(), "mode": modeVectors(),
	}
	n := 0
	for _, g := range groups {
		n += len(g)
	}
	t.Logf("%d vectors", n)
	if n < minVectors {
		t.Errorf("%d vectors, want at least %d", n, minVectors)
	}
	for group, vectors := range groups {
		t.Run(group, func(t *testing.T) {
			for name, v := range vectors {
				t.Run(name, func(t *testing.T) { runVector(t, v) })
			}
		})
	}
}

// connectTo is a CONNECT with good credentials.
func connectTo(target string) string {
	return "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n$AUTH\r\n"
}

// get is a plain request with good credentials.
func get(url, host string) string {
	return "GET " + url + " HTTP/1.1\r\nHost: " + host + "\r\n$AUTH\r\n"
}

func bad(send, reason string) vector    { return vector{send: send, status: 400, reason: reason} }
func denied(send, reason string) vector { return vector{send: send, status: 403, reason: reason} }
func unauth(send, reason string) vector { return vector{send: send, status: 407, reason: reason} }

var allowed = []string{"decision allow", "close allow closed"}

// passes is a plain request that reaches the origin as want.
func passes(send, want string) vector {
	return vector{send: send, status: 200, origin: want, dials: 1, audit: allowed}
}

func authorityVectors() map[string]vector {
	withHost := func(target, host string) string {
		return "CONNECT " + target + " HTTP/1.1\r\nHost: " + host + "\r\n$AUTH\r\n"
	}
	v := map[string]vector{}
	for name, target := range map[string]string{
		"path":                              "example.com:443/",
		"path to a metadata service":        "example.com:443/latest/meta-data",
		"userinfo":                          "user@example.com:443",
		"userinfo with password":            "user:pw@example.com:443",
		"userinfo that looks like the host": "example.com:443@evil.example:443",
		"scheme":                            "https://example.com:443",
		"scheme without slashes":            "https:example.com:443",
		"zone":                              "[fe80::1%25eth0]:443",
		"zone unescaped":                    "[fe80::1%eth0]:443",
		"missing port":                      "example.com",
		"empty port":                        "example.com:",
		"overlong port":                     "example.com:4430000",
		"port above 65535":                  "example.com:65979",
		"zero-padded port":                  "example.com:0443",
		"port zero":                         "example.com:0",
		"signed port":                       "example.com:+443",
		"negative port":                     "example.com:-443",
		"hexadecimal port":                  "example.com:0x1bb",
		"two ports":                         "example.com:443:80",
		"name in brackets":                  "[example.com]:443",
		"IPv4 in brackets":                  "[203.0.113.7]:443",
		"unclosed bracket":                  "[2001:db8::7:443",
		"percent-encoded NUL":               "example.com%00.evil.example:443",
		"percent-encoded letter":            "ex%61mple.com:443",
		"query":                             "example.com:443?x",
		"fragment":                          "example.com:443#x",
		"backslash":                         "example.com:443\\@evil.example",
		"empty host":                        ":443",
		"origin-form with evil Host":        "/foo",
		"asterisk":                          "*",
		"comma":                             "example.com,evil.example:443",
		"label of 64 characters":            strings.Repeat("a", 64) + ".example.com:443",
		"name of 300 characters":            strings.Repeat("abcde.", 50) + "example.com:443",
		"empty label":                       "example..com:443",
		"two trailing dots":                 "example.com..:443",
		"leading dot":                       ".example.com:443",
	} {
		v[name] = bad(withHost(target, "evil.example"), "bad_target")
	}
	v["NUL in the target"] = bad(withHost("example.com\x00.evil.example:443", "x"), "bad_request_line")
	v["tab in the target"] = bad("CONNECT example.com:443\tevil.example HTTP/1.1\r\nHost: x\r\n$AUTH\r\n", "bad_target")
	v["space in the target"] = bad("CONNECT example.com:443 evil.example HTTP/1.1\r\nHost: x\r\n$AUTH\r\n", "bad_request_line")
	v["full-width dots as raw UTF-8"] = bad(withHost("example。com:443", "example.com"), "bad_target")
	v["full-width dots in Host"] = bad("GET http://example.com/ HTTP/1.1\r\nHost: evil。example\r\n$AUTH\r\n", "host_mismatch")
	v["soft hyphen in Host"] = bad("GET http://example.com/ HTTP/1.1\r\nHost: exa\u00admple.com.evil\r\n$AUTH\r\n", "host_mismatch")
	v["CONNECT with another Host"] = bad(withHost("example.com:443", "evil.example:443"), "host_mismatch")
	v["CONNECT with another port in Host"] = bad(withHost("example.com:443", "example.com:80"), "host_mismatch")
	v["absolute-form with another Host"] = bad(get("http://example.com/", "evil.example"), "host_mismatch")
	v["absolute-form with userinfo in Host"] = bad(get("http://example.com/", "x@example.com"), "bad_host")
	v["absolute-form with userinfo"] = bad(get("http://user@example.com/", "example.com"), "bad_target")
	v["absolute-form with backslash"] = bad(get(`http://evil.example\@example.com/`, "example.com"), "bad_target")
	v["absolute-form with fragment before @"] = bad(get("http://example.com#@evil.example/", "example.com"), "bad_target")
	v["absolute-form with port before @"] = bad(get("http://example.com:80@evil.example/", "example.com"), "bad_target")
	v["absolute-form with empty host"] = bad(get("http:///etc/passwd", "example.com"), "bad_target")
	v["absolute-form with three slashes"] = bad(get("http:///example.com/", "example.com"), "bad_target")
	v["absolute-form with empty port"] = bad(get("http://example.com:/", "example.com"), "bad_target")
	return v
}

func hostVectors() map[string]vector {
	v := map[string]vector{}
	for name, target := range map[string]string{
		"not listed":                   "evil.example:443",
		"listed name as a prefix":      "example.com.evil.example:443",
		"listed name as a suffix":      "notexample.com:443",
		"subdomain of an exact entry":  "www.example.com:443",
		"apex of a wildcard":           "example.org:443",
		"suffix of a wildcard's label": "evilexample.org:443",
		"IDNA look-alike":              "xn--exmple-cua.com:443",
		"address that is not listed":   "198.51.100.7:443",
		"localhost":                    "localhost:443",
		"single label":                 "example:443",
		"cluster name":                 "kubernetes.default.svc.cluster.local:443",
	} {
		v[name] = denied(connectTo(target), "host_not_allowed")
	}
	v["denied host below an allowed wildcard"] = denied(connectTo("bad.example.org:443"), "host_denied")
	v["denied host in capitals with a dot"] = denied(connectTo("BAD.Example.ORG.:443"), "host_denied")
	v["port that is not allowed"] = denied(connectTo("example.com:22"), "port_not_allowed")
	v["default port of a host with a port"] = denied(connectTo("db.example.net:443"), "port_not_allowed")
	v["plain port that is not allowed"] = denied(get("http://example.com:8080/", "example.com:8080"), "port_not_allowed")
	v["method that is not allowed"] = denied("POST http://api.example.com/v1/x HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 0\r\n$AUTH\r\n", "method_not_allowed")
	v["lower-case method"] = denied("get http://api.example.com/v1/x HTTP/1.1\r\nHost: api.example.com\r\n$AUTH\r\n", "method_not_allowed")
	for name, path := range map[string]string{
		"path that is not allowed": "/v2/x",
		"dot segments":             "/v1/../admin",
		"encoded dot segments":     "/v1/%2e%2e/admin",
		"doubly encoded dots":      "/v1/%252e%252e/admin",
		"encoded slash":            "/v1/..%2fadmin",
		"encoded backslash":        "/v1/..%5cadmin",
		"semicolon dots":           "/v1/..;/admin",
		"leading double slash":     "//v1/x",
		"prefix without its slash": "/v1x",
		"path hidden in the query": "/admin?/v1/x",
	} {
		v[name] = denied(get("http://api.example.com"+path, "api.example.com"), "path_not_allowed")
	}
	v["allowed path"] = passes(get("http://api.example.com/v1/x?q=1", "api.example.com"), "GET /v1/x?q=1 HTTP/1.1\r\nHost: api.example.com\r\nVia: 1.1 $VIA\r\n\r\n")
	v["trailing dot is the same host"] = passes(get("http://example.com./", "example.com."), "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n")
	v["capitals are the same host"] = passes(get("http://EXAMPLE.com/", "example.COM"), "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n")
	v["deep subdomain of a wildcard"] = passes(get("http://a.b.example.org/", "a.b.example.org"), "GET / HTTP/1.1\r\nHost: a.b.example.org\r\nVia: 1.1 $VIA\r\n\r\n")
	v["explicit default port"] = passes(get("http://example.com:80/", "example.com"), "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n")
	v["empty path with query"] = passes(get("http://example.com?q", "example.com"), "GET /?q HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n")
	v["a denied name is never looked up"] = vector{
		send: connectTo("evil.example:443"), status: 403, reason: "host_not_allowed",
		do: func(l *lab) {
			if asked := l.DNS.Asked(); len(asked) > 0 {
				l.Errorf("looked up %q", asked)
			}
		},
	}
	return v
}

func addressVectors() map[string]vector {
	v := map[string]vector{}
	for name, host := range map[string]string{
		"short form":              "127.1",
		"single number":           "2130706433",
		"octal":                   "0177.0.0.1",
		"octal single number":     "017700000001",
		"hexadecimal":             "0x7f.0.0.1",
		"hexadecimal number":      "0x7f000001",
		"three parts":             "127.0.1",
		"leading zeros":           "127.000.000.001",
		"part above 255":          "127.0.0.256",
		"five parts":              "127.0.0.1.1",
		"trailing dot on address": "127.0.0.1.",
	} {
		v[name] = bad(connectTo(host+":443"), "bad_target")
	}
	for name, host := range map[string]string{
		"loopback":                "127.0.0.1",
		"metadata":                "169.254.169.254",
		"private":                 "10.0.0.5",
		"shared address space":    "100.64.0.1",
		"unspecified":             "0.0.0.0",
		"IPv6 loopback":           "[::1]",
		"IPv6 loopback spelt out": "[0:0:0:0:0:0:0:1]",
		"mapped loopback":         "[::ffff:127.0.0.1]",
		"mapped loopback in hex":  "[::ffff:7f00:1]",
		"mapped metadata":         "[::ffff:169.254.169.254]",
		"NAT64 of loopback":       "[64:ff9b::127.0.0.1]",
		"6to4 of loopback":        "[2002:7f00:1::]",
		"IPv6 link-local":         "[fe80::1]",
	} {
		v[name+" although listed"] = denied(connectTo(host+":443"), "address_not_allowed")
	}
	v["plain request to metadata although listed"] = denied(get("http://169.254.169.254/latest/meta-data/", "169.254.169.254"), "address_not_allowed")
	v["mapped form of a listed address"] = vector{
		send: connectTo("[::ffff:203.0.113.7]:443") + hello(""), status: 200, origin: hello(""), dials: 1, audit: allowed,
		do: func(l *lab) { l.origin.wait(hello("")) },
	}
	return v
}

func dnsVectors() map[string]vector {
	answers := func(name string, addrs ...string) func(*lab) {
		return func(l *lab) { l.DNS.Set(name, addrs...) }
	}
	fails := func(name string, err error) func(*lab) {
		return func(l *lab) { l.DNS.SetFunc(name, func() ([]netip.Addr, error) { return nil, err }) }
	}
	failed := func(v vector, status int, reason string) vector {
		v.status, v.reason = status, reason
		v.audit = []string{"decision allow " + reason}
		return v
	}
	hang := func(o *proxy.Options) {
		o.DialTimeout = 50 * time.Millisecond
		o.Dial = func(ctx context.Context, addr netip.AddrPort, check proxy.Control) (net.Conn, error) {
			if err := check(addr, nil); err != nil {
				return nil, err
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	rebound := 0
	return map[string]vector{
		"name that leads to a private address": {with: answers("internal.example.net", "10.1.2.3"), send: connectTo("internal.example.net:443"), status: 403, reason: "address_not_allowed"},
		"name that leads to metadata":          {with: answers("metadata.example.net", "169.254.169.254"), send: connectTo("metadata.example.net:443"), status: 403, reason: "address_not_allowed"},
		"name that leads to loopback":          {with: answers("internal.example.net", "::1"), send: connectTo("internal.example.net:443"), status: 403, reason: "address_not_allowed"},
		"mixed answer, public first":           {with: answers("mixed.example.net", "203.0.113.7", "10.0.0.1"), send: connectTo("mixed.example.net:443"), status: 403, reason: "address_not_allowed"},
		"mixed answer, private first":          {with: answers("mixed.example.net", "10.0.0.1", "203.0.113.7"), send: connectTo("mixed.example.net:443"), status: 403, reason: "address_not_allowed"},
		"mixed families":                       {with: answers("mixed.example.net", "203.0.113.7", "fd00::1"), send: connectTo("mixed.example.net:443"), status: 403, reason: "address_not_allowed"},
		"mapped private address":               {with: answers("mapped.example.net", "::ffff:10.0.0.1"), send: connectTo("mapped.example.net:443"), status: 403, reason: "address_not_allowed"},
		"NAT64 of a private address":           {with: answers("nat64.example.net", "64:ff9b::a00:1"), send: connectTo("nat64.example.net:443"), status: 403, reason: "address_not_allowed"},
		"rebinding between two requests": {
			options: func(o *proxy.Options) { o.DNSTTL = time.Nanosecond },
			with: func(l *lab) {
				l.Net.Route("203.0.113.7:80", l.origin.addr)
				l.DNS.SetFunc("rebind.example.net", func() ([]netip.Addr, error) {
					rebound++
					if rebound == 1 {
						return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
					}
					return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
				})
			},
			send: get("http://rebind.example.net/1", "rebind.example.net"), status: 200,
			do: func(l *lab) {
				w := l.connect()
				w.send(get("http://rebind.example.net/2", "rebind.example.net"))
				if res := w.response("GET"); res.status != 403 || res.header.Get("X-Deny-Reason") != "address_not_allowed" {
					l.Errorf("%d %s", res.status, res.header.Get("X-Deny-Reason"))
				}
			},
			origin: "GET /1 HTTP/1.1\r\nHost: rebind.example.net\r\nVia: 1.1 $VIA\r\n\r\n", dials: 1,
			audit: []string{"decision allow", "close allow closed", "decision deny address_not_allowed"},
		},
		"name that does not exist":                failed(vector{send: connectTo("gone.example.net:443")}, 502, "dns_not_found"),
		"resolver failure":                        failed(vector{with: fails("servfail.example.net", errors.New("server misbehaving")), send: connectTo("servfail.example.net:443")}, 502, "dns_failure"),
		"resolver timeout":                        failed(vector{with: fails("slow.example.net", &net.DNSError{IsTimeout: true}), send: connectTo("slow.example.net:443")}, 504, "dns_timeout"),
		"answer without address":                  failed(vector{with: answers("empty.example.net"), send: connectTo("empty.example.net:443")}, 502, "dns_not_found"),
		"connection refused":                      failed(vector{send: connectTo("closed.example.net:443")}, 502, "connect_failed"),
		"connection timeout":                      failed(vector{options: hang, with: answers("hang.example.net", "203.0.113.7"), send: connectTo("hang.example.net:443")}, 504, "connect_timeout"),
		"plain request, name that does not exist": failed(vector{send: get("http://gone.example.net/", "gone.example.net")}, 502, "dns_not_found"),
		"the proxy itself by name":                {with: answers("loop.example.net", "203.0.113.99"), send: connectTo("loop.example.net:8443"), status: 403, reason: "loop_detected"},
	}
}

func requestVectors() map[string]vector {
	line := func(l string) string { return l + "\r\nHost: example.com\r\n$AUTH\r\n" }
	field := func(f string) string {
		return "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + f + "\r\n$AUTH\r\n"
	}
	many := strings.Repeat("X: y\r\n", 300)
	return map[string]vector{
		"HTTP/2 preface":               bad("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not_supported"),
		"HTTP/2.0 in the request line": bad(line("GET http://example.com/ HTTP/2.0"), "not_supported"),
		"HTTP/0.9":                     bad("GET http://example.com/\r\n\r\n", "bad_request_line"),
		"HTTP/1.2":                     bad(line("GET http://example.com/ HTTP/1.2"), "bad_request_line"),
		"HTTP/1.10":                    bad(line("GET http://example.com/ HTTP/1.10"), "bad_request_line"),
		"lower-case version":           bad(line("GET http://example.com/ http/1.1"), "bad_request_line"),
		"two spaces":                   bad(line("GET  http://example.com/ HTTP/1.1"), "bad_request_line"),
		"trailing space":               bad(line("GET http://example.com/ HTTP/1.1 "), "bad_request_line"),
		"leading space":                bad(line(" GET http://example.com/ HTTP/1.1"), "bad_request_line"),
		"method with a colon":          bad(line("GE:T http://example.com/ HTTP/1.1"), "bad_request_line"),
		"method of 33 characters":      bad(line(strings.Repeat("G", 33)+" http://example.com/ HTTP/1.1"), "bad_request_line"),
		"two empty lines first":        bad("\r\n\r\n"+line("GET http://example.com/ HTTP/1.1"), "bad_request_line"),
		"origin-form":                  bad(line("GET / HTTP/1.1"), "not_a_proxy_request"),
		"OPTIONS *":                    bad(line("OPTIONS * HTTP/1.1"), "not_a_proxy_request"),
		"https in absolute-form":       bad(line("GET https://example.com/ HTTP/1.1"), "not_supported"),
		"ftp":                          bad(line("GET ftp://example.com/ HTTP/1.1"), "not_supported"),
		"file":                         bad(line("GET file:///etc/passwd HTTP/1.1"), "not_supported"),
		"gopher":                       bad(line("GET gopher://example.com/ HTTP/1.1"), "not_supported"),
		"scheme with one slash":        bad(line("GET http:/example.com/ HTTP/1.1"), "bad_target"),
		"scheme without slashes":       bad(line("GET http:example.com HTTP/1.1"), "bad_target"),
		"authority-form with GET":      bad(line("GET example.com:80 HTTP/1.1"), "bad_target"),
		"fragment":                     bad(line("GET http://example.com/#x HTTP/1.1"), "bad_target"),
		"raw UTF-8 in the path":        bad(line("GET http://example.com/ü HTTP/1.1"), "bad_target"),
		"TRACE":                        bad(line("TRACE http://example.com/ HTTP/1.1"), "not_supported"),
		"no Host":                      bad("GET http://example.com/ HTTP/1.1\r\n$AUTH\r\n", "bad_host"),
		"two Hosts":                    bad(field("Host: example.com"), "bad_host"),
		"empty Host":                   bad("GET http://example.com/ HTTP/1.1\r\nHost:\r\n$AUTH\r\n", "bad_host"),
		"Host with a path":             bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com/x\r\n$AUTH\r\n", "bad_host"),
		"Host with two names":          bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com, evil.example\r\n$AUTH\r\n", "bad_host"),
		"CONNECT without Host":         bad("CONNECT example.com:443 HTTP/1.1\r\n$AUTH\r\n", "bad_host"),
		"bare LF":                      bad("GET http://example.com/ HTTP/1.1\nHost: example.com\n\n", "bad_header"),
		"bare LF after one header":     bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com\nX: y\r\n\r\n", "bad_header"),
		"LF CR LF at the end":          bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\n\r\n", "bad_header"),
		"bare CR in a header":          bad(field("X: a\rEvil: b"), "bad_header"),
		"bare CR in the request line":  bad(line("GET http://example.com/\r HTTP/1.1"), "bad_request_line"),
		"NUL in a header":              bad(field("X: a\x00b"), "bad_header"),
		"DEL in a header":              bad(field("X: a\x7fb"), "bad_header"),
		"folded header":                bad(field("X: a\r\n b"), "bad_header"),
		"folded first header":          bad("GET http://example.com/ HTTP/1.1\r\n Host: example.com\r\n$AUTH\r\n", "bad_header"),
		"space before the colon":       bad(field("Transfer-Encoding : chunked"), "bad_header"),
		"tab before the colon":         bad(field("Content-Length\t: 5"), "bad_header"),
		"header without colon":         bad(field("Nonsense"), "bad_header"),
		"header without name":          bad(field(": value"), "bad_header"),
		"header name with a bracket":   bad(field("X[0]: y"), "bad_header"),
		"300 headers":                  bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n"+many+"\r\n", "header_too_large"),
		"header above 64 KiB":          bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nX: "+strings.Repeat("a", 70<<10), "header_too_large"),
		"request line above 64 KiB":    bad("GET http://example.com/"+strings.Repeat("a", 70<<10), "header_too_large"),
		"unknown expectation":          bad(field("Expect: magic"), "bad_header"),
		"TLS to the plain port":        bad("\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "bad_request_line"),
		"PROXY header from anyone":     bad("PROXY TCP4 10.0.0.9 10.0.0.1 1 2\r\n"+line("GET http://example.com/ HTTP/1.1"), "bad_header"),
		"slow header": {
			options: func(o *proxy.Options) { o.HeaderTimeout = 100 * time.Millisecond },
			send:    "GET http://example.com/ HTTP/1.1\r\nHost: exa", status: 400, reason: "header_timeout",
			do: func(l *lab) { l.wire.closed() },
		},
		"connection that sends nothing": {
			options: func(o *proxy.Options) { o.HeaderTimeout = 100 * time.Millisecond },
			do:      func(l *lab) { l.wire.closed() },
			audit:   []string{},
		},
		"one empty line first is tolerated": passes("\r\n"+line("GET http://example.com/ HTTP/1.1"), "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n"),
		"HTTP/1.0 plain request": {
			send: "GET http://example.com/ HTTP/1.0\r\n$AUTH\r\n", status: 200, dials: 1, audit: allowed,
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.0 $VIA\r\n\r\n",
			do:     func(l *lab) { l.wire.closed() },
		},
		"HTTP/1.0 CONNECT": {
			send: "CONNECT example.com:443 HTTP/1.0\r\n$AUTH\r\n" + hello("example.com"), status: 200, dials: 1, audit: allowed,
			origin: hello("example.com"), do: func(l *lab) { l.origin.wait(hello("example.com")) },
		},
	}
}

func framingVectors() map[string]vector {
	post := func(fields, body string) string {
		return "POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\n$AUTH" + fields + "\r\n" + body
	}
	smuggled := "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"
	head := func(fields string) string {
		return "POST / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n" + fields + "\r\n"
	}
	// A body that turns out wrong ends the request to the origin unfinished.
	badBody := func(body, origin string) vector {
		return vector{
			send: post("Transfer-Encoding: chunked\r\n", body), status: 400, reason: "bad_body", dials: 1,
			with:   serve(func(c net.Conn, got func([]byte)) { record(c, got) }),
			origin: head("Transfer-Encoding: chunked\r\n") + origin, audit: []string{"decision allow", "close deny bad_body"},
		}
	}
	return map[string]vector{
		"Content-Length with Transfer-Encoding": bad(post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled), "bad_framing"),
		"Transfer-Encoding with Content-Length": bad(post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+smuggled), "bad_framing"),
		"two Content-Lengths that differ":       bad(post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), "bad_framing"),
		"two Content-Lengths that agree":        bad(post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), "bad_framing"),
		"list of Content-Lengths":               bad(post("Content-Length: 5, 5\r\n", "hello"), "bad_framing"),
		"signed Content-Length":                 bad(post("Content-Length: +5\r\n", "hello"), "bad_framing"),
		"negative Content-Length":               bad(post("Content-Length: -1\r\n", "hello"), "bad_framing"),
		"hexadecimal Content-Length":            bad(post("Content-Length: 0x5\r\n", "hello"), "bad_framing"),
		"Content-Length beyond 64 bits":         bad(post("Content-Length: 18446744073709551621\r\n", "hello"), "bad_framing"),
		"empty Content-Length":                  bad(post("Content-Length:\r\n", ""), "bad_framing"),
		"Content-Length with inner space":       bad(post("Content-Length: 1 2\r\n", "hello"), "bad_framing"),
		"unknown transfer coding":               bad(post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), "bad_framing"),
		"chunked twice":                         bad(post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), "bad_framing"),
		"two Transfer-Encodings":                bad(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"), "bad_framing"),
		"xchunked":                              bad(post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), "bad_framing"),
		"quoted chunked":                        bad(post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), "bad_framing"),
		"empty Transfer-Encoding":               bad(post("Transfer-Encoding:\r\n", ""), "bad_framing"),
		"Transfer-Encoding in HTTP/1.0":         bad("POST http://example.com/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n$AUTH\r\n0\r\n\r\n", "bad_framing"),
		"CONNECT with Content-Length":           bad("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nContent-Length: 5\r\n$AUTH\r\nhello", "bad_framing"),
		"CONNECT with chunked body":             bad("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nTransfer-Encoding: chunked\r\n$AUTH\r\n0\r\n\r\n", "bad_framing"),
		"CONNECT with Upgrade":                  bad("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nConnection: upgrade\r\nUpgrade: websocket\r\n$AUTH\r\n", "bad_framing"),
		"WebSocket handshake with a body":       bad("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n$AUTH\r\nx", "bad_framing"),
		"chunk size that is not a number":       badBody("zz\r\nhello\r\n0\r\n\r\n", ""),
		"chunk size with a sign":                badBody("-5\r\nhello\r\n0\r\n\r\n", ""),
		"chunk size with 0x":                    badBody("0x5\r\nhello\r\n0\r\n\r\n", ""),
		"chunk size beyond 64 bits":             badBody("fffffffffffffffff\r\nhello\r\n0\r\n\r\n", ""),
		"chunk size with a bare LF":             badBody("5\nhello\r\n0\r\n\r\n", ""),
		"chunk data longer than its size":       badBody("3\r\nhello\r\n0\r\n\r\n", ""),
		"chunk extension with a bare LF":        badBody("5;a\nb\r\nhello\r\n0\r\n\r\n", ""),
		"trailer that is not a field":           badBody("5\r\nhello\r\n0\r\n evil\r\n\r\n", ""),
		"body cut short": {
			send: post("Content-Length: 10\r\n", "hello"), dials: 1,
			with:   serve(func(c net.Conn, got func([]byte)) { record(c, got) }),
			origin: head("Content-Length: 10\r\n") + "hello", audit: []string{"decision allow", "close deny bad_body"},
			do: func(l *lab) {
				l.origin.wait("hello")
				_ = l.wire.Conn.(*net.TCPConn).CloseWrite()
				if res := l.wire.response("POST"); res.status != 400 || res.header.Get("X-Deny-Reason") != "bad_body" {
					l.Errorf("%d %s", res.status, res.header.Get("X-Deny-Reason"))
				}
			},
		},
		"chunk extensions and trailers are dropped": {
			send: post("Transfer-Encoding: chunked\r\nTrailer: X-Evil\r\n", "5;ext=1\r\nhello\r\n0\r\nX-Evil: 1\r\n\r\n"), status: 200, dials: 1, audit: allowed,
			with:   serve(answerAfter("0\r\n\r\n")),
			origin: head("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
		},
		"what follows the body is the next request": {
			send: post("Content-Length: 5\r\n", "hello"+smuggled), status: 200, dials: 1,
			with:   serve(answerAfter("hello")),
			origin: head("Content-Length: 5\r\n") + "hello",
			do: func(l *lab) {
				if res := l.wire.response("GET"); res.status != 407 {
					l.Errorf("the smuggled request got %d, want 407", res.status)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny auth_required"},
		},
		"body on GET is framed": {
			send: "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n$AUTH\r\nhello", status: 200, dials: 1, audit: allowed,
			with:   serve(answerAfter("hello")),
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\nContent-Length: 5\r\n\r\nhello",
		},
		"Expect is answered by the origin": {
			send: post("Content-Length: 5\r\nExpect: 100-continue\r\n", ""), dials: 1, audit: allowed,
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
				readUntil(c, got, "hello")
				_, _ = io.WriteString(c, okReply)
			}),
			origin: head("Content-Length: 5\r\nExpect: 100-continue\r\n") + "hello",
			do: func(l *lab) {
				l.wire.expect("HTTP/1.1 100 Continue\r\n")
				for s := ""; s != "\r\n"; {
					s, _ = l.wire.r.ReadString('\n')
				}
				l.wire.send("hello")
				if res := l.wire.response("POST"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
			},
		},
	}
}

func record(c net.Conn, got func([]byte)) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		got(buf[:n])
		if err != nil {
			return
		}
	}
}

func readUntil(c net.Conn, got func([]byte), end string) {
	var seen []byte
	buf := make([]byte, 4096)
	for !strings.HasSuffix(string(seen), end) {
		n, err := c.Read(buf)
		got(buf[:n])
		seen = append(seen, buf[:n]...)
		if err != nil {
			return
		}
	}
}

// answerAfter answers 200 when what has come ends in end.
func answerAfter(end string) func(net.Conn, func([]byte)) {
	return func(c net.Conn, got func([]byte)) {
		readUntil(c, got, end)
		_, _ = io.WriteString(c, okReply)
		record(c, got)
	}
}

func authVectors() map[string]vector {
	with := func(fields string) string {
		return "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + fields + "\r\n"
	}
	raw := func(tok string) string { return with(basic("container_c1:jwt_" + tok)) }
	// forged tokens need the key of the running proxy.
	forged := func(reason string, header map[string]any, claims map[string]any, mangle func(l *lab, tok string) string) vector {
		return vector{
			do: func(l *lab) {
				h := map[string]any{"alg": "ES256", "typ": "JWT", "kid": l.Key.KID}
				for k, v := range header {
					if h[k] = v; v == nil {
						delete(h, k)
					}
				}
				var key *ecdsa.PrivateKey
				if h["alg"] != "none" {
					key = l.Key.Key
				}
				tok := forge(key, h, claims)
				if mangle != nil {
					tok = mangle(l, tok)
				}
				l.wire.send(raw(tok))
				res := l.wire.response("GET")
				if res.status != 407 || res.header.Get("X-Deny-Reason") != reason || res.header.Get("Proxy-Authenticate") == "" {
					l.Errorf("%d %q, want 407 %q", res.status, res.header.Get("X-Deny-Reason"), reason)
				}
			},
			audit: []string{"decision deny " + reason},
		}
	}
	hs256 := func(l *lab, tok string) string {
		jwks, err := l.Store.Load().Keys().MarshalJWKS()
		if err != nil {
			l.Fatal(err)
		}
		signed := tok[:strings.LastIndexByte(tok, '.')]
		mac := hmac.New(sha256.New, jwks)
		mac.Write([]byte(signed))
		return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	good := goodClaims(nil)
	past := time.Now().Add(-time.Hour).Unix()
	other, err := token.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	return map[string]vector{
		"no credentials":                    unauth(with(""), "auth_required"),
		"no credentials on CONNECT":         unauth("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "auth_required"),
		"no credentials, denied host":       unauth("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", "auth_required"),
		"Authorization is not meant for us": unauth(with("Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("container_c1:jwt_x"))+"\r\n"), "auth_required"),
		"two Proxy-Authorization":           bad(with("$AUTH$AUTH"), "bad_header"),
		"good one after a bad one":          bad(with(basic("a:b")+"$AUTH"), "bad_header"),
		"Bearer":                            unauth(with("Proxy-Authorization: Bearer abc\r\n"), "auth_malformed"),
		"Digest":                            unauth(with("Proxy-Authorization: Digest username=\"container_c1\"\r\n"), "auth_malformed"),
		"scheme alone":                      unauth(with("Proxy-Authorization: Basic\r\n"), "auth_malformed"),
		"bad base64":                        unauth(with("Proxy-Authorization: Basic ####\r\n"), "auth_malformed"),
		"unpadded base64":                   unauth(with("Proxy-Authorization: Basic Y29udGFpbmVyX2MxOmp3dF8x\r\n"[:len("Proxy-Authorization: Basic Y29udGFpbmVyX2MxOmp3dF8x\r\n")-3]+"\r\n"), "auth_malformed"),
		"base64url":                         unauth(with("Proxy-Authorization: Basic _-_-\r\n"), "auth_malformed"),
		"base64 with spare bits":            unauth(with("Proxy-Authorization: Basic YWJjZB==\r\n"), "auth_malformed"),
		"two spaces before base64":          unauth(with(strings.Replace(basic("container_c1:jwt_x"), "Basic ", "Basic  ", 1)), "auth_malformed"),
		"no colon":                          unauth(with(basic("container_c1")), "auth_malformed"),
		"user without prefix":               unauth(with(basic("c1:jwt_x")), "auth_malformed"),
		"password without prefix":           unauth(with(basic("container_c1:x")), "auth_malformed"),
		"empty user":                        unauth(with(basic("container_:jwt_x")), "auth_malformed"),
		"empty token":                       unauth(raw(""), "token_malformed"),
		"one dot":                           unauth(raw("a.b"), "token_malformed"),
		"two thousand dots":                 unauth(raw(strings.Repeat(".", 2000)), "token_malformed"),
		"dots beyond the token limit":       unauth(raw(strings.Repeat(".", 2100)), "token_too_large"),
		"dots beyond the credentials":       unauth(raw(strings.Repeat(".", 8000)), "auth_malformed"),
		"dots by the megabyte":              bad(raw(strings.Repeat(".", 1<<20)), "header_too_large"),
		"user is another container": {
			do: func(l *lab) {
				l.wire.send(with(basic("container_c2:jwt_" + l.Token)))
				if res := l.wire.response("GET"); res.status != 407 || res.header.Get("X-Deny-Reason") != "user_mismatch" {
					l.Errorf("%d %s", res.status, res.header.Get("X-Deny-Reason"))
				}
			},
			audit: []string{"decision deny user_mismatch"},
		},
		"alg none":            forged("token_algorithm", map[string]any{"alg": "none"}, good, nil),
		"alg None":            forged("token_algorithm", map[string]any{"alg": "None"}, good, nil),
		"HS256 with the JWKS": forged("token_algorithm", map[string]any{"alg": "HS256"}, good, hs256),
		"RS256":               forged("token_algorithm", map[string]any{"alg": "RS256"}, good, nil),
		"ES384":               forged("token_algorithm", map[string]any{"alg": "ES384"}, good, nil),
		"unknown kid":         forged("token_unknown_key", map[string]any{"kid": "other"}, good, nil),
		"missing kid":         forged("token_malformed", map[string]any{"kid": nil}, good, nil),
		"kid with a path":     forged("token_unknown_key", map[string]any{"kid": "../../dev/null"}, good, nil),
		"key in the header":   forged("token_malformed", map[string]any{"jwk": map[string]any{"kty": "EC"}}, good, nil),
		"critical header":     forged("token_malformed", map[string]any{"crit": []string{"exp"}}, good, nil),
		"missing exp":         forged("token_claims", nil, goodClaims(nil, "exp"), nil),
		"exp as a string":     forged("token_claims", nil, goodClaims(map[string]any{"exp": "never"}), nil),
		"expired":             forged("token_expired", nil, goodClaims(map[string]any{"exp": past}), nil),
		"not yet valid":       forged("token_not_yet_valid", nil, goodClaims(map[string]any{"nbf": time.Now().Add(30 * time.Minute).Unix()}), nil),
		"wrong audience":      forged("token_audience", nil, goodClaims(map[string]any{"aud": "kubernetes"}), nil),
		"missing audience":    forged("token_audience", nil, goodClaims(nil, "aud"), nil),
		"wrong issuer":        forged("token_issuer", nil, goodClaims(map[string]any{"iss": "me"}), nil),
		"missing container":   forged("token_claims", nil, goodClaims(nil, "container_id"), nil),
		"stripped signature": forged("token_signature", nil, good, func(_ *lab, tok string) string {
			return tok[:strings.LastIndexByte(tok, '.')+1]
		}),
		"changed claims": forged("token_signature", nil, good, func(l *lab, tok string) string {
			parts := strings.Split(tok, ".")
			mine := strings.Split(forge(other.Key, map[string]any{"alg": "ES256", "kid": l.Key.KID}, goodClaims(map[string]any{"egress_policy": "x/y"})), ".")
			return parts[0] + "." + mine[1] + "." + parts[2]
		}),
		"another key under our kid": forged("token_signature", nil, good, func(l *lab, _ string) string {
			return forge(other.Key, map[string]any{"alg": "ES256", "typ": "JWT", "kid": l.Key.KID}, good)
		}),
		"zero signature": forged("token_signature", nil, good, func(_ *lab, tok string) string {
			return tok[:strings.LastIndexByte(tok, '.')+1] + base64.RawURLEncoding.EncodeToString(make([]byte, 64))
		}),
		"lower-case scheme is Basic": {
			send: strings.Replace(with("$AUTH"), "$AUTH", "$AUTH", 1), status: 200, dials: 1, audit: allowed,
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n",
		},
		"a refused CONNECT is repeated with credentials on the same connection": {
			send: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", status: 407, reason: "auth_required",
			do: func(l *lab) {
				l.wire.send(connectTo("example.com:443") + hello("example.com"))
				if res := l.wire.response("CONNECT"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
				l.origin.wait(hello("example.com"))
			},
			origin: hello("example.com"), dials: 1,
			audit: []string{"decision deny auth_required", "decision allow", "close allow closed"},
		},
		"second request on a connection needs credentials too": {
			send: get("http://example.com/", "example.com"), status: 200, dials: 1,
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n",
			do: func(l *lab) {
				l.wire.send(with(""))
				if res := l.wire.response("GET"); res.status != 407 {
					l.Errorf("status %d", res.status)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny auth_required"},
		},
		"second request on a connection to a denied host": {
			send: get("http://example.com/", "example.com"), status: 200, dials: 1,
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n",
			do: func(l *lab) {
				l.wire.send(get("http://evil.example/", "evil.example"))
				if res := l.wire.response("GET"); res.status != 403 {
					l.Errorf("status %d", res.status)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny host_not_allowed"},
		},
	}
}

func bindingVectors() map[string]vector {
	pods := func(change func(*policy.Pod)) func(*policy.Config) {
		return func(c *policy.Config) { change(c.Pods[0]) }
	}
	standalone := func(c *policy.Config) {
		d := *c.Policies[0]
		d.TokenHosts = true
		c.Default, c.Pods, c.PodsKnown = &d, nil, false
	}
	minted := func(change func(*token.MintOptions), status int, reason string) func(*lab) {
		return func(l *lab) {
			l.Token = l.Mint(change)
			l.wire.send(get("http://example.com/", "example.com"))
			if res := l.wire.response("GET"); res.status != status || res.header.Get("X-Deny-Reason") != reason {
				l.Errorf("%d %q, want %d %q", res.status, res.header.Get("X-Deny-Reason"), status, reason)
			}
		}
	}
	send := get("http://example.com/", "example.com")
	origin := "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n"
	return map[string]vector{
		"replay from another source address": {state: pods(func(p *policy.Pod) { p.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7")} }), send: send, status: 403, reason: "source_not_bound"},
		"pod without address yet":            {state: pods(func(p *policy.Pod) { p.IPs = nil }), send: send, status: 403, reason: "source_not_bound"},
		"container that is not known":        {state: func(c *policy.Config) { c.Pods = nil }, send: send, status: 403, reason: "container_unknown"},
		"two pods with one container id": {state: func(c *policy.Config) {
			second := *c.Pods[0]
			c.Pods = append(c.Pods, &second)
		}, send: send, status: 403, reason: "container_ambiguous"},
		"pod that has ended":       {state: pods(func(p *policy.Pod) { p.Terminal = true }), send: send, status: 403, reason: "container_terminated"},
		"quarantined pod":          {state: pods(func(p *policy.Pod) { p.Quarantined = true }), send: send, status: 403, reason: "quarantined"},
		"pod under another policy": {state: pods(func(p *policy.Pod) { p.PolicyRef = "team-a/other" }), send: send, status: 403, reason: "policy_mismatch"},
		"policy that is gone":      {state: func(c *policy.Config) { c.Policies = nil }, send: send, status: 403, reason: "policy_unknown"},
		"narrowed pod": {state: pods(func(p *policy.Pod) {
			p.Narrow, _ = allowlist.Compile(allowlist.Spec{AllowedHosts: []string{"a.example.org"}})
		}), send: send, status: 403, reason: "host_not_allowed"},
		"pod with a broken annotation": {state: pods(func(p *policy.Pod) { p.Narrow = &allowlist.Matcher{} }), send: send, status: 403, reason: "host_not_allowed"},
		"annotation never widens": {state: pods(func(p *policy.Pod) {
			p.Narrow, _ = allowlist.Compile(allowlist.Spec{AllowedHosts: []string{"evil.example"}})
		}), send: get("http://evil.example/", "evil.example"), status: 403, reason: "host_not_allowed"},
		"unbound token from anywhere": {
			state: pods(func(p *policy.Pod) { p.IPs = nil }), do: minted(func(o *token.MintOptions) { o.ContainerBinding = false }, 200, ""),
			origin: origin, dials: 1, audit: allowed,
		},
		"token without policy in the cluster": {
			do:    minted(func(o *token.MintOptions) { o.EgressPolicy = ""; o.AllowedHosts = []string{"example.com"} }, 403, "policy_unknown"),
			audit: []string{"decision deny policy_unknown"},
		},
		"token without hosts standalone": {
			state: standalone, do: minted(func(o *token.MintOptions) { o.EgressPolicy = "" }, 403, "host_not_allowed"),
			audit: []string{"decision deny host_not_allowed"},
		},
		"token hosts narrow the standalone policy": {
			state: standalone, do: minted(func(o *token.MintOptions) { o.EgressPolicy = ""; o.AllowedHosts = []string{"a.example.org"} }, 403, "host_not_allowed"),
			audit: []string{"decision deny host_not_allowed"},
		},
		"token hosts do not widen the standalone policy": {
			state: standalone, do: func(l *lab) {
				l.Token = l.Mint(func(o *token.MintOptions) { o.EgressPolicy = ""; o.AllowedHosts = []string{"evil.example"} })
				l.wire.send(get("http://evil.example/", "evil.example"))
				if res := l.wire.response("GET"); res.status != 403 {
					l.Errorf("status %d", res.status)
				}
			},
			audit: []string{"decision deny host_not_allowed"},
		},
		"centralized egress without upstream": {
			state: standalone, do: minted(func(o *token.MintOptions) {
				o.EgressPolicy, o.CentralizedEgress, o.AllowedHosts = "", true, []string{"example.com"}
			}, 403, "upstream_required"),
			audit: []string{"decision deny upstream_required"},
		},
		"first use, then replay from another source": {
			state: standalone, options: func(o *proxy.Options) { o.FirstUse = true },
			do: func(l *lab) {
				minted(func(o *token.MintOptions) { o.EgressPolicy = ""; o.AllowedHosts = []string{"example.com"} }, 200, "")(l)
				w := l.connectFrom("127.0.0.2")
				w.send(get("http://example.com/", "example.com"))
				if res := w.response("GET"); res.status != 403 || res.header.Get("X-Deny-Reason") != "source_not_bound" {
					l.Errorf("replay: %d %s", res.status, res.header.Get("X-Deny-Reason"))
				}
			},
			origin: origin, dials: 1, audit: []string{"decision allow", "close allow closed", "decision deny source_not_bound"},
		},
	}
}

func tunnelVectors() map[string]vector {
	h := hello("example.com")
	// cut is a tunnel that gets its 200 and is closed with nothing sent to the origin.
	cut := func(target, first, reason string) vector {
		return vector{
			send: connectTo(target) + first, status: 200, dials: 1,
			do:    func(l *lab) { l.wire.closed() },
			audit: []string{"decision deny " + reason},
		}
	}
	// carried is a tunnel whose first bytes reach the origin.
	carried := func(target, first string) vector {
		return vector{
			send: connectTo(target) + first, status: 200, dials: 1, origin: first, audit: allowed,
			with: serve(echo),
			do:   func(l *lab) { l.wire.expect(first) },
		}
	}
	v := map[string]vector{
		"SNI of another host":               cut("example.com:443", hello("evil.example"), "sni_mismatch"),
		"SNI of another allowed host":       cut("example.com:443", hello("a.example.org"), "sni_mismatch"),
		"SNI of a subdomain":                cut("example.com:443", hello("www.example.com"), "sni_mismatch"),
		"SNI mismatch in split records":     cut("example.com:443", splitRecords(hello("evil.example"), 20), "sni_mismatch"),
		"no SNI":                            cut("example.com:443", hello(""), "sni_missing"),
		"plain HTTP to 443":                 cut("example.com:443", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "tls_required"),
		"SSH to 443":                        cut("example.com:443", "SSH-2.0-x\r\n", "tls_required"),
		"alert record before the hello":     cut("example.com:443", "\x15\x03\x01\x00\x02\x01\x00"+h, "tls_required"),
		"SSLv2 hello":                       cut("example.com:443", "\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", "tls_required"),
		"handshake record of garbage":       cut("example.com:443", "\x16\x03\x01\x00\x08\x01\x00\x00\x04AAAA", "client_hello_invalid"),
		"hello larger than 16 KiB":          cut("example.com:443", "\x16\x03\x01\x40\x00\x01\x00\xff\xff"+strings.Repeat("\x00", 20<<10), "client_hello_invalid"),
		"address with an unlisted SNI":      cut("203.0.113.7:443", hello("evil.example"), "sni_mismatch"),
		"IPv6 address with an unlisted SNI": cut("[2001:db8::7]:443", hello("evil.example"), "sni_mismatch"),
		"no hello at all": {
			options: func(o *proxy.Options) { o.HelloTimeout = 100 * time.Millisecond },
			send:    connectTo("example.com:443"), status: 200, dials: 1,
			do: func(l *lab) { l.wire.closed() }, audit: []string{"decision deny client_hello_timeout"},
		},
		"hello byte by byte, too late": {
			options: func(o *proxy.Options) { o.HelloTimeout = 150 * time.Millisecond },
			send:    connectTo("example.com:443"), status: 200, dials: 1,
			do: func(l *lab) {
				for _, b := range []byte(h[:100]) {
					if _, err := l.wire.Write([]byte{b}); err != nil {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				l.wire.closed()
			},
			audit: []string{"decision deny client_hello_timeout"},
		},
		"client goes away before its hello": {
			send: connectTo("example.com:443"), status: 200, dials: 1,
			do:    func(l *lab) { _ = l.wire.Conn.(*net.TCPConn).CloseWrite(); l.wire.closed() },
			audit: []string{"decision deny client_hello_invalid"},
		},
		"early data after a denied CONNECT": {
			send: connectTo("evil.example:443") + hello("evil.example"), status: 403, reason: "host_not_allowed",
			do: func(l *lab) { l.wire.closed() },
		},
		"early data after an unauthenticated CONNECT is not a request": {
			send: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n" + get("http://example.com/", "example.com"), status: 407, reason: "auth_required",
			do: func(l *lab) { l.wire.closed() },
		},
		"matching SNI in early data":        carried("example.com:443", h),
		"matching SNI in capitals":          carried("example.com:443", hello("EXAMPLE.com")),
		"split records":                     carried("example.com:443", splitRecords(h, 11)),
		"data behind the hello":             carried("example.com:443", h+"0-RTT data"),
		"address without SNI":               carried("203.0.113.7:443", hello("")),
		"address with a listed SNI":         carried("203.0.113.7:443", hello("example.com")),
		"IPv6 address without SNI":          carried("[2001:db8::7]:443", hello("")),
		"tls Optional lets other protocols": carried("optional.example.com:443", "SSH-2.0-x\r\n"),
		"another protocol on another port":  carried("db.example.net:5432", "\x00\x00\x00\x08\x04\xd2\x16\x2f"),
		"TLS with its name on another port": carried("db.example.net:5432", hello("db.example.net")),
		"TLS without name on another port":  carried("db.example.net:5432", hello("")),
		"matching SNI in small segments": {
			send: connectTo("example.com:443"), status: 200, dials: 1, origin: h, audit: allowed, with: serve(echo),
			do: func(l *lab) {
				for i := 0; i < len(h); i += 50 {
					l.wire.send(h[i:min(i+50, len(h))])
				}
				l.wire.expect(h)
			},
		},
		"SNI of another host on another port": {
			send: connectTo("db.example.net:5432") + hello("evil.example"), status: 200, dials: 1,
			do:    func(l *lab) { l.wire.closed() },
			audit: []string{"decision allow", "close deny sni_mismatch"},
		},
		"SNI of another host with tls Optional": {
			send: connectTo("optional.example.com:443") + hello("evil.example"), status: 200, dials: 1,
			do:    func(l *lab) { l.wire.closed() },
			audit: []string{"decision allow", "close deny sni_mismatch"},
		},
		"server speaks first": {
			send: connectTo("ssh.example.net:22"), status: 200, dials: 1, origin: "SSH-2.0-client\r\n", audit: allowed,
			with: serve(func(c net.Conn, got func([]byte)) {
				_, _ = io.WriteString(c, "SSH-2.0-server\r\n")
				record(c, got)
			}),
			do: func(l *lab) {
				l.wire.expect("SSH-2.0-server\r\n")
				l.wire.send("SSH-2.0-client\r\n")
				l.origin.wait("SSH-2.0-client")
			},
		},
		"client's half-close reaches the origin and the answer still comes": {
			send: connectTo("db.example.net:5432") + "question", status: 200, dials: 1, origin: "question", audit: allowed,
			with: serve(func(c net.Conn, got func([]byte)) {
				record(c, got) // until the half-close
				_, _ = io.WriteString(c, "answer")
			}),
			do: func(l *lab) {
				l.origin.wait("question")
				_ = l.wire.Conn.(*net.TCPConn).CloseWrite()
				l.wire.expect("answer")
				l.wire.closed()
			},
		},
		"origin's half-close reaches the client and the rest still goes": {
			send: connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi, and more", audit: allowed,
			with: serve(func(c net.Conn, got func([]byte)) {
				_, _ = io.WriteString(c, "bye")
				_ = c.(*net.TCPConn).CloseWrite()
				record(c, got)
			}),
			do: func(l *lab) {
				l.wire.expect("bye")
				l.wire.closed()
				l.wire.send(", and more")
				l.origin.wait("more")
			},
		},
	}
	v["GREASE ECH"] = carried("example.com:443", greaseECH(h))
	return v
}

// greaseECH adds the extension that Chromium sends when it has no ECH configuration.
func greaseECH(h string) string {
	payload := "\x00\x00\x01\x00\x01\x2a\x00\x20" + strings.Repeat("k", 32) + "\x00\x90" + strings.Repeat("p", 144)
	ext := "\xfe\x0d" + string([]byte{byte(len(payload) >> 8), byte(len(payload))}) + payload
	body := []byte(h[9:])
	at := 2 + 32
	at += 1 + int(body[at])
	at += 2 + int(body[at])<<8 + int(body[at+1])
	at += 1 + int(body[at])
	n := int(body[at])<<8 + int(body[at+1]) + len(ext)
	body[at], body[at+1] = byte(n>>8), byte(n)
	out := string(body) + ext
	msg := "\x01" + string([]byte{byte(len(out) >> 16), byte(len(out) >> 8), byte(len(out))}) + out
	return "\x16\x03\x01" + string([]byte{byte(len(msg) >> 8), byte(len(msg))}) + msg
}

func innerVectors() map[string]vector {
	tunnel := func(target string) string { return connectTo(target) }
	// inside is a request inside a tunnel to port 80 that is refused.
	inside := func(target, request string, status int, reason string) vector {
		return vector{
			send: tunnel(target) + request, status: 200, dials: 1,
			do: func(l *lab) {
				if res := l.wire.response(method(request)); res.status != status || res.header.Get("X-Deny-Reason") != reason {
					l.Errorf("%d %q, want %d %q", res.status, res.header.Get("X-Deny-Reason"), status, reason)
				}
			},
			audit: []string{"decision allow", "decision deny " + reason, "close allow closed"},
		}
	}
	four := []string{"decision allow", "decision allow", "close allow closed", "close allow closed"}
	return map[string]vector{
		"another Host":       inside("example.com:80", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400, "host_mismatch"),
		"no Host":            inside("example.com:80", "GET / HTTP/1.0\r\n\r\n", 400, "bad_host"),
		"two Hosts":          inside("example.com:80", "GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n\r\n", 400, "bad_host"),
		"absolute-form":      inside("example.com:80", "GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400, "bad_target"),
		"CONNECT inside":     inside("example.com:80", "CONNECT evil.example:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 400, "not_supported"),
		"HTTP/2 preface":     inside("example.com:80", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not_supported"),
		"TLS on port 80":     inside("example.com:80", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n", 400, "bad_request_line"),
		"CL with TE":         inside("example.com:80", "POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_framing"),
		"bare LF":            inside("example.com:80", "GET / HTTP/1.1\nHost: example.com\n\n", 400, "bad_header"),
		"method not allowed": inside("api.example.com:80", "POST /v1/x HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 0\r\n\r\n", 403, "method_not_allowed"),
		"path not allowed":   inside("api.example.com:80", "GET /admin HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 403, "path_not_allowed"),
		"path traversal":     inside("api.example.com:80", "GET /v1/..%2fadmin HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 403, "path_not_allowed"),
		"second request elsewhere": {
			send: tunnel("example.com:80") + "GET /1 HTTP/1.1\r\nHost: example.com\r\n\r\n", status: 200, dials: 1,
			do: func(l *lab) {
				if res := l.wire.response("GET"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
				l.wire.send("GET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n")
				if res := l.wire.response("GET"); res.status != 400 {
					l.Errorf("status %d", res.status)
				}
			},
			origin: "GET /1 HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n",
			audit:  append([]string{"decision deny host_mismatch"}, four...),
		},
		"the token does not leak through the tunnel": {
			send: tunnel("example.com:80") + "GET / HTTP/1.1\r\nHost: example.com\r\n$AUTHProxy-Connection: keep-alive\r\nX: 1\r\n\r\n", status: 200, dials: 1,
			do: func(l *lab) {
				if res := l.wire.response("GET"); res.status != 200 || res.body != "ok" {
					l.Errorf("status %d %q", res.status, res.body)
				}
			},
			origin: "GET / HTTP/1.1\r\nHost: example.com\r\nX: 1\r\nVia: 1.1 $VIA\r\n\r\n", audit: four,
		},
	}
}

func forwardVectors() map[string]vector {
	req := func(fields string) string {
		return "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + fields + "$AUTH\r\n"
	}
	head := func(fields string) string { return "GET / HTTP/1.1\r\nHost: example.com\r\n" + fields + "\r\n" }
	via := "Via: 1.1 $VIA\r\n"
	return map[string]vector{
		"Connection names a header":       passes(req("Connection: X-Secret, keep-alive\r\nX-Secret: 1\r\nX-Other: 2\r\n"), head("X-Other: 2\r\n"+via)),
		"two Connection headers":          passes(req("Connection: X-A\r\nX-A: 1\r\nX-B: 2\r\nConnection: x-b\r\n"), head(via)),
		"Connection names Host":           passes(req("Connection: Host, Content-Length\r\n"), head(via)),
		"Proxy headers":                   passes(req("Proxy-Connection: keep-alive\r\nProxy-X: 1\r\nProxy-Abcd: 1\r\nproxy-authenticate: x\r\nProxy-: 1\r\n"), head(via)),
		"hop-by-hop headers":              passes(req("Keep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: foo/2\r\n"), head(via)),
		"upgrade to h2c":                  passes(req("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"), head(via)),
		"Upgrade without Connection":      passes(req("Upgrade: websocket\r\n"), head(via)),
		"Via is extended":                 passes(req("Via: 1.1 other\r\n"), head("Via: 1.1 other, 1.1 $VIA\r\n")),
		"Authorization is for the origin": passes(req("Authorization: Bearer x\r\n"), head("Authorization: Bearer x\r\n"+via)),
		"forwarding headers are data":     passes(req("X-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n"), head("X-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n"+via)),
		"loop through Via": {
			do: func(l *lab) {
				l.wire.send(get("http://example.com/", "example.com"))
				res := l.wire.response("GET")
				l.wire.send(req("Via: " + res.header.Get("Via") + "\r\n"))
				if res := l.wire.response("GET"); res.status != 403 || res.header.Get("X-Deny-Reason") != "loop_detected" {
					l.Errorf("%d %s", res.status, res.header.Get("X-Deny-Reason"))
				}
			},
			origin: head(via), dials: 1, audit: []string{"decision allow", "close allow closed", "decision deny loop_detected"},
		},
		"pipelined requests to two hosts": {
			send: get("http://example.com/1", "example.com") + get("http://a.example.org/2", "a.example.org"), status: 200, dials: 2,
			do: func(l *lab) {
				if res := l.wire.response("GET"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
			},
			origin: "GET /1 HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.example.org\r\nVia: 1.1 $VIA\r\n\r\n",
			audit:  append(allowed, allowed...),
		},
		"WebSocket": {
			send: "GET http://example.com/chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n$AUTH\r\n", status: 101, dials: 1,
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nfirst frame")
				echo(c, got)
			}),
			origin: "GET /chat HTTP/1.1\r\nHost: example.com\r\nSec-WebSocket-Key: k\r\nVia: 1.1 $VIA\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nping",
			do: func(l *lab) {
				l.wire.expect("first frame")
				l.wire.send("ping")
				l.wire.expect("ping")
			},
			audit: allowed,
		},
		"WebSocket to a denied host": denied("GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n$AUTH\r\n", "host_not_allowed"),
		"JSON refusal": {
			send: "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nAccept: application/json\r\n$AUTH\r\n",
			do: func(l *lab) {
				res := l.wire.response("GET")
				for _, want := range []string{`"reason":"host_not_allowed"`, `"host":"evil.example"`, `"policy":"team-a/agents"`, `spec.allowedHosts`} {
					if !strings.Contains(res.body, want) {
						l.Errorf("%s is not in %s", want, res.body)
					}
				}
			},
			audit: []string{"decision deny host_not_allowed"},
		},
	}
}

func responseVectors() map[string]vector {
	send := get("http://example.com/", "example.com")
	origin := "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n"
	refused := func(response, reason string) vector {
		return vector{
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, response)
			}),
			send: send, status: 502, reason: reason, origin: origin, dials: 1,
			audit: []string{"decision allow", "close allow " + reason},
		}
	}
	return map[string]vector{
		"splitting with a bare CR":    refused("HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil\r\n\r\n", "bad_response"),
		"splitting with a bare LF":    refused("HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: evil\r\n\r\n", "bad_response"),
		"NUL in a header":             refused("HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n", "bad_response"),
		"folded header":               refused("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "bad_response"),
		"space before the colon":      refused("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", "bad_response"),
		"two Content-Lengths":         refused("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 2\r\n\r\nhello", "bad_response"),
		"Content-Length with chunked": refused("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "bad_response"),
		"unknown transfer coding":     refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "bad_response"),
		"HTTP/0.9 response":           refused("hello\r\n\r\n", "bad_response"),
		"status of two digits":        refused("HTTP/1.1 20 OK\r\n\r\n", "bad_response"),
		"status 999":                  refused("HTTP/1.1 999 OK\r\n\r\n", "bad_response"),
		"204 with a body":             refused("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", "bad_response"),
		"407 that asks for the token": refused("HTTP/1.1 407 Give\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", "bad_response"),
		"101 nobody asked for":        refused("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "bad_response"),
		"100 without end": {
			with: reply(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 40)),
			send: send, origin: origin, dials: 1,
			do: func(l *lab) {
				res := l.wire.response("GET")
				for n := 0; res.status == 100 && n < 40; n++ {
					res = l.wire.response("GET")
				}
				if res.status != 502 || res.header.Get("X-Deny-Reason") != "bad_response" {
					l.Errorf("%d %v", res.status, res.header)
				}
			},
			audit: []string{"decision allow", "close allow bad_response"},
		},
		"header above 64 KiB": refused("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("a", 70<<10), "bad_response"),
		"header cut short":    refused("HTTP/1.1 200 OK\r\nX: a", "bad_response"),
		"no response":         refused("", "origin_closed"),
		"second response nobody asked for": {
			with: reply(okReply + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
			send: send, status: 200, dials: 2,
			do: func(l *lab) {
				l.wire.send(strings.Replace(send, "http://example.com/ ", "http://example.com/2 ", 1))
				if res := l.wire.response("GET"); res.body != "ok" {
					l.Errorf("the second request got %q", res.body)
				}
			},
			origin: origin + strings.Replace(origin, "GET / ", "GET /2 ", 1),
			audit:  append(allowed, allowed...),
		},
		"second response nobody asked for, later": {
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, okReply)
				time.Sleep(50 * time.Millisecond)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
				record(c, got)
			}),
			send: send, status: 200, dials: 2,
			do: func(l *lab) {
				time.Sleep(200 * time.Millisecond)
				l.wire.send(strings.Replace(send, "http://example.com/ ", "http://example.com/2 ", 1))
				if res := l.wire.response("GET"); res.body != "ok" {
					l.Errorf("the second request got %q", res.body)
				}
			},
			origin: origin + strings.Replace(origin, "GET / ", "GET /2 ", 1),
			audit:  append(allowed, allowed...),
		},
		"body cut short does not look complete": {
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			}),
			send: send, origin: origin, dials: 1,
			do: func(l *lab) {
				b, _ := io.ReadAll(l.wire.r)
				if !strings.Contains(string(b), "hello") || strings.HasSuffix(string(b), "0\r\n\r\n") {
					l.Errorf("got %q", b)
				}
			},
			audit: []string{"decision allow", "close allow origin_error"},
		},
		"chunk that lies about its size": {
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n")
				record(c, got)
			}),
			send: send, origin: origin, dials: 1,
			do: func(l *lab) {
				if b, _ := io.ReadAll(l.wire.r); strings.HasSuffix(string(b), "0\r\n\r\n") {
					l.Errorf("got %q", b)
				}
			},
			audit: []string{"decision allow", "close allow origin_error"},
		},
		"the origin cannot speak for the proxy": {
			with: reply("HTTP/1.1 403 Egress-Blocked\r\nX-Deny-Reason: host_not_allowed\r\nProxy-Authenticate: Basic\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n"),
			send: send, origin: origin, dials: 1, audit: allowed,
			do: func(l *lab) {
				res := l.wire.response("GET")
				for _, name := range []string{"X-Deny-Reason", "Proxy-Authenticate", "X-Hop", "Connection"} {
					if res.header.Get(name) != "" {
						l.Errorf("%s came through", name)
					}
				}
				if res.header.Get("X-End") != "2" {
					l.Error("an end-to-end header is missing")
				}
			},
		},
		"HEAD with a length": {
			with: reply("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
			send: strings.Replace(send, "GET", "HEAD", 1), status: 200, origin: strings.Replace(origin, "GET", "HEAD", 1), dials: 1, audit: allowed,
		},
		"body to the end of the connection": {
			with: serve(func(c net.Conn, got func([]byte)) {
				readUntil(c, got, "\r\n\r\n")
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nto the end")
			}),
			send: send, origin: origin, dials: 1, audit: allowed,
			do: func(l *lab) {
				if res := l.wire.response("GET"); res.body != "to the end" {
					l.Errorf("body %q", res.body)
				}
			},
		},
	}
}

func limitVectors() map[string]vector {
	send := get("http://example.com/", "example.com")
	origin := "GET / HTTP/1.1\r\nHost: example.com\r\nVia: 1.1 $VIA\r\n\r\n"
	return map[string]vector{
		"requests per second": {
			policy: func(p *policy.Policy) { p.Limits.RequestsPerSecond = 1 },
			send:   send, status: 200, origin: origin, dials: 1,
			do: func(l *lab) {
				l.wire.send(send)
				if res := l.wire.response("GET"); res.status != 429 || res.header.Get("X-Deny-Reason") != "request_rate" || res.header.Get("Retry-After") == "" {
					l.Errorf("%d %v", res.status, res.header)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny request_rate"},
		},
		"connections": {
			policy: func(p *policy.Policy) { p.Limits.Connections = 1 },
			send:   connectTo("db.example.net:5432"), status: 200, dials: 1,
			do: func(l *lab) {
				w := l.connect()
				w.send(connectTo("db.example.net:5432"))
				if res := w.response("CONNECT"); res.status != 429 || res.header.Get("X-Deny-Reason") != "connection_limit" {
					l.Errorf("%d %v", res.status, res.header)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny connection_limit"},
		},
		"a denied request takes no place": {
			policy: func(p *policy.Policy) { p.Limits.Connections = 1 },
			send:   get("http://evil.example/", "evil.example"), status: 403, reason: "host_not_allowed",
			do: func(l *lab) {
				l.wire.send(send)
				if res := l.wire.response("GET"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
			},
			origin: origin, dials: 1, audit: append([]string{"decision deny host_not_allowed"}, allowed...),
		},
		"connections of one source": {
			options: func(o *proxy.Options) { o.MaxConnsPerSource = 1 },
			send:    send, status: 200, origin: origin, dials: 1, audit: allowed,
			do: func(l *lab) { l.connect().closed() },
		},
		"bytes per second": {
			policy: func(p *policy.Policy) { p.Limits.BytesPerSecond = 256 << 10 },
			send:   connectTo("db.example.net:5432"), status: 200, dials: 1, audit: allowed,
			with: serve(func(c net.Conn, _ func([]byte)) { _, _ = c.Write(make([]byte, 256<<10)) }),
			do: func(l *lab) {
				start := time.Now()
				n, err := io.Copy(io.Discard, l.wire.r)
				// A quarter of a second's worth is the burst; the rest takes its time.
				if took := time.Since(start); n != 256<<10 || err != nil || took < 500*time.Millisecond {
					l.Errorf("%d bytes in %v, %v", n, took, err)
				}
			},
		},
		"draining": {
			send: send, status: 200, origin: origin, dials: 1,
			do: func(l *lab) {
				w := l.connect()
				l.wire.Close()
				l.Log.Wait(patience, func(r []audit.Record) bool { return len(r) == 2 })
				l.Server.Drain()
				w.send(send)
				if res := w.response("GET"); res.status != 503 || res.header.Get("X-Deny-Reason") != "draining" || res.header.Get("Retry-After") == "" {
					l.Errorf("%d %v", res.status, res.header)
				}
			},
			audit: []string{"decision allow", "close allow closed", "decision deny draining"},
		},
		"before the first sync": {
			options: func(o *proxy.Options) { o.Store = &policy.Store{} },
			send:    send, status: 503, reason: "not_ready",
		},
	}
}

func revocationVectors() map[string]vector {
	// revoked is an open tunnel that change cuts within a second.
	revoked := func(change func(*lab, *policy.Config), reason string) vector {
		return vector{
			send: connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi",
			do: func(l *lab) {
				l.origin.wait("hi")
				spec := usual()
				c := l.Config(proxytest.Config{Spec: &spec})
				change(l, &c)
				start := time.Now()
				l.Store.Swap(policy.NewState(c))
				l.wire.closed()
				if took := time.Since(start); took > time.Second {
					l.Errorf("the tunnel was cut after %v", took)
				}
			},
			audit: []string{"decision allow", "close deny " + reason},
		}
	}
	matcher := func(hosts ...string) *allowlist.Matcher {
		m, err := allowlist.Compile(allowlist.Spec{AllowedHosts: hosts})
		if err != nil {
			panic(err)
		}
		return m
	}
	expiring := func(change func(*token.MintOptions)) func(*lab) {
		return func(l *lab) {
			l.Token = l.Mint(func(o *token.MintOptions) {
				o.Now = time.Now().Add(-time.Hour)
				o.TTL = time.Hour - token.Leeway + time.Second
				change(o)
			})
		}
	}
	return map[string]vector{
		"host removed": revoked(func(_ *lab, c *policy.Config) { c.Policies[0].Matcher = matcher("example.com") }, "host_not_allowed"),
		"host denied": revoked(func(_ *lab, c *policy.Config) {
			m, _ := allowlist.Compile(allowlist.Spec{AllowedHosts: []string{"db.example.net:5432"}, DeniedHosts: []string{"db.example.net"}})
			c.Policies[0].Matcher = m
		}, "host_denied"),
		"policy removed":    revoked(func(_ *lab, c *policy.Config) { c.Policies = nil }, "policy_unknown"),
		"pod gone":          revoked(func(_ *lab, c *policy.Config) { c.Pods = nil }, "container_unknown"),
		"pod ended":         revoked(func(_ *lab, c *policy.Config) { c.Pods[0].Terminal = true }, "container_terminated"),
		"pod quarantined":   revoked(func(_ *lab, c *policy.Config) { c.Pods[0].Quarantined = true }, "quarantined"),
		"pod address moved": revoked(func(_ *lab, c *policy.Config) { c.Pods[0].IPs = []netip.Addr{netip.MustParseAddr("10.0.0.9")} }, "source_not_bound"),
		"pod narrowed":      revoked(func(_ *lab, c *policy.Config) { c.Pods[0].Narrow = matcher("example.com") }, "host_not_allowed"),
		"network closed":    revoked(func(_ *lab, c *policy.Config) { c.Policies[0].Guard = nil }, "address_not_allowed"),
		"upstream demanded": revoked(func(_ *lab, c *policy.Config) {
			c.Policies[0].Upstream = &policy.Upstream{Authority: proxytest.Authority("corp-proxy:3128")}
		}, "policy_changed"),
		"key removed": revoked(func(l *lab, c *policy.Config) {
			k, err := token.GenerateKey(nil)
			if err != nil {
				l.Fatal(err)
			}
			c.Keys, _ = token.NewKeySet(k.Public())
		}, "key_removed"),
		"policy changes while the origin is dialled": {
			options: func(o *proxy.Options) {
				dial, store := o.Dial, o.Store
				o.Dial = func(ctx context.Context, addr netip.AddrPort, check proxy.Control) (net.Conn, error) {
					c, err := dial(ctx, addr, check)
					st := store.Load()
					pod, podErr := st.Pod(proxytest.ContainerID)
					if podErr != nil {
						return nil, podErr
					}
					p := *st.Policy(proxytest.Ref)
					p.Matcher = matcher("example.com")
					store.Swap(policy.NewState(policy.Config{Policies: []*policy.Policy{&p}, Pods: []*policy.Pod{pod}, PodsKnown: true, Keys: st.Keys()}))
					time.Sleep(50 * time.Millisecond) // the live flows have been checked by now
					return c, err
				}
			},
			send: connectTo("db.example.net:5432") + "hi", status: 403, reason: "host_not_allowed", dials: 1,
		},
		"a change that still allows it cuts nothing": {
			send: connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi, still", audit: allowed, with: serve(echo),
			do: func(l *lab) {
				l.wire.expect("hi")
				c := l.Config(proxytest.Config{Allow: []string{"*.example.net:5432"}})
				l.Store.Swap(policy.NewState(c))
				time.Sleep(100 * time.Millisecond)
				l.wire.send(", still")
				l.wire.expect(", still")
			},
		},
		"additions work at once": {
			send: get("http://evil.example/", "evil.example"), status: 403, reason: "host_not_allowed",
			do: func(l *lab) {
				l.DNS.Set("evil.example", "203.0.113.7")
				l.Swap(proxytest.Config{Allow: []string{"evil.example"}})
				l.wire.send(get("http://evil.example/", "evil.example"))
				if res := l.wire.response("GET"); res.status != 200 {
					l.Errorf("status %d", res.status)
				}
			},
			origin: "GET / HTTP/1.1\r\nHost: evil.example\r\nVia: 1.1 $VIA\r\n\r\n", dials: 1,
			audit: append([]string{"decision deny host_not_allowed"}, allowed...),
		},
		"an unbound token's tunnel ends with it": {
			with: expiring(func(o *token.MintOptions) { o.ContainerBinding = false }),
			send: connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi",
			do:    func(l *lab) { l.wire.closed() },
			audit: []string{"decision allow", "close deny token_expired"},
		},
		"a bound token's tunnel outlives it": {
			with: func(l *lab) { expiring(func(*token.MintOptions) {})(l); serve(echo)(l) },
			send: connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi, still",
			audit: append([]string{"decision deny token_expired"}, allowed...),
			do: func(l *lab) {
				l.wire.expect("hi")
				time.Sleep(1500 * time.Millisecond)
				l.wire.send(", still")
				l.wire.expect(", still")
				w := l.connect()
				w.send(get("http://example.com/", "example.com"))
				if res := w.response("GET"); res.status != 407 || res.header.Get("X-Deny-Reason") != "token_expired" {
					l.Errorf("a new request got %d", res.status)
				}
			},
		},
		"idle tunnel": {
			options: func(o *proxy.Options) { o.IdleTimeout = 100 * time.Millisecond },
			send:    connectTo("db.example.net:5432") + "hi", status: 200, dials: 1, origin: "hi",
			do:    func(l *lab) { l.wire.closed() },
			audit: []string{"decision allow", "close allow idle"},
		},
	}
}

func modeVectors() map[string]vector {
	auditMode := func(p *policy.Policy) { p.Mode = policy.Audit }
	would := func(reason string) []string {
		return []string{"decision would_deny " + reason, "close would_deny closed"}
	}
	h := hello("evil.example")
	return map[string]vector{
		"Audit lets a host off the list pass": {
			policy: auditMode, with: func(l *lab) { l.DNS.Set("evil.example", "203.0.113.7") },
			send: get("http://evil.example/", "evil.example"), status: 200, dials: 1,
			origin: "GET / HTTP/1.1\r\nHost: evil.example\r\nVia: 1.1 $VIA\r\n\r\n", audit: would("host_not_allowed"),
		},
		"Audit lets a tunnel off the list pass": {
			policy: auditMode, with: func(l *lab) { l.DNS.Set("evil.example", "203.0.113.7"); serve(echo)(l) },
			send: connectTo("evil.example:443") + h, status: 200, dials: 1, origin: h, audit: would("host_not_allowed"),
			do: func(l *lab) { l.wire.expect(h) },
		},
		"Audit lets another SNI pass": {
			policy: auditMode, with: serve(echo),
			send: connectTo("example.com:443") + h, status: 200, dials: 1, origin: h, audit: would("sni_mismatch"),
			do: func(l *lab) { l.wire.expect(h) },
		},
		"Audit still authenticates": {policy: auditMode, send: "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", status: 407, reason: "auth_required"},
		"Audit still binds": {
			policy: auditMode, state: func(c *policy.Config) { c.Pods[0].IPs = nil },
			send: get("http://example.com/", "example.com"), status: 403, reason: "source_not_bound",
		},
		"Audit still guards addresses": {
			policy: auditMode, with: func(l *lab) { l.DNS.Set("evil.example", "10.0.0.1") },
			send: get("http://evil.example/", "evil.example"), status: 403, reason: "address_not_allowed",
		},
		"Audit still refuses what is malformed": {policy: auditMode, send: get("http://example.com/", "evil.example"), status: 400, reason: "host_mismatch"},
	}
}
