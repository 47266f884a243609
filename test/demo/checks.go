package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

// result is a line of the table.
type result struct{ what, expected, seen string }

func (r result) holds() bool { return r.seen == r.expected }

const (
	answered = "answered"
	silence  = "no answer"
)

func (s *scene) checks(ctx context.Context) ([]result, error) {
	stolen, err := s.Shell(ctx, s.one, `printf %s "$HTTP_PROXY"`)
	if err != nil {
		return nil, err
	}
	tests := []struct {
		what, expected string
		see            func(context.Context) (string, error)
	}{
		{"curl http://allowed.example", "200 OK", s.curl(s.one, "http://allowed.example/")},
		{"curl https://allowed.example", "200 OK", s.curl(s.one, "https://allowed.example/")},
		{"curl https://www.example.org, allowed as *.example.org", "200 OK", s.curl(s.one, "https://www.example.org/")},
		{"git clone https://allowed.example/git/demo.git", "cloned", s.clone},
		{"WebSocket to allowed.example", "echo", s.webSocket},
		{"curl http://evil-site.example", "403 Egress-Blocked host_not_allowed", s.curl(s.one, "http://evil-site.example/")},
		{"curl https://evil-site.example", "403 Egress-Blocked host_not_allowed", s.curl(s.one, "https://evil-site.example/")},
		{"tunnel to allowed.example, TLS for evil-site.example", "tunnel closed, sni_mismatch", s.wrongServerName},
		{"another sandbox's token", "403 Egress-Blocked source_not_bound", s.curl(s.two, "-x", stolen.Stdout, "http://allowed.example/")},
		{"no token", "407 Proxy-Authentication-Required auth_required", s.curl(s.one, "-x", "http://"+s.policy.Status.ProxyAddress, "http://allowed.example/")},
		{"past the proxy: the address of allowed.example", silence, s.direct("tcp:" + internet.SiteA + ":80")},
		{"past the proxy: the address of evil-site.example", silence, s.direct("tcp:" + internet.SiteEvil + ":443")},
		{"past the proxy: another pod", silence, s.direct("tcp:" + s.neighbour.Status.PodIP + ":8000")},
		{"past the proxy: the node", silence, s.direct("tcp:" + node.NodeIP + ":10250")},
		{"past the proxy: the API server", silence, s.direct("tcp:" + node.APIServerIP + ":443")},
		{"past the proxy: cloud metadata", silence, s.direct("tcp:" + internet.Metadata + ":80")},
		{"past the proxy: UDP", silence, s.direct("udp:" + internet.SiteA + ":443")},
		{"DNS of the cluster", answered, s.direct("dns:" + node.DNSIP + ":allowed.example")},
		{"DNS at another server", silence, s.direct("dns:" + internet.RogueDNS + ":evil-site.example")},
		{"what evil-site.example has seen of all this", "nothing", s.reached(internet.SiteEvil)},
	}
	var results []result
	for _, t := range tests {
		seen, err := t.see(ctx)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		if err != nil {
			seen = err.Error()
		}
		results = append(results, result{what: t.what, expected: t.expected, seen: seen})
	}
	return results, nil
}

var statusLine = regexp.MustCompile(`(?m)^HTTP/[0-9.]+ ([0-9]{3}) ?([^\r\n]*)\r?$`)

// curl sees the last status line: the site's, or the proxy's when it refused.
func (s *scene) curl(pod *corev1.Pod, args ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		answer, err := s.Curl(ctx, pod, append([]string{"--http1.1"}, args...)...)
		if err != nil {
			return "", err
		}
		lines := statusLine.FindAllStringSubmatch(answer.Stdout, -1)
		if len(lines) == 0 {
			return strings.TrimSpace(answer.Stderr), nil
		}
		last := lines[len(lines)-1]
		return strings.TrimSpace(last[1] + " " + last[2]), nil
	}
}

func (s *scene) clone(ctx context.Context) (string, error) {
	out, err := s.Shell(ctx, s.one, "rm -rf /tmp/demo && git clone -q https://allowed.example/git/demo.git /tmp/demo && git -C /tmp/demo rev-parse -q --verify HEAD")
	if err != nil || out.Exit != 0 {
		return strings.TrimSpace(out.Stderr), err
	}
	return "cloned", nil
}

func (s *scene) webSocket(ctx context.Context) (string, error) {
	out, err := s.WebSocket(ctx, s.one, "connect", "allowed.example", "80", "hello")
	if err != nil || out.Stdout != "hello\n" {
		return strings.TrimSpace(out.Stderr), err
	}
	return "echo", nil
}

// wrongServerName asks for a tunnel to the allowed host and starts TLS for another one in
// it, then looks for the proxy's record of the tunnel.
func (s *scene) wrongServerName(ctx context.Context) (string, error) {
	answer, err := s.Curl(ctx, s.one, "--connect-to", "evil-site.example:443:allowed.example:443", "https://evil-site.example/")
	if err != nil {
		return "", err
	}
	if answer.Connect != 200 || answer.Exit == 0 || answer.Status != 0 {
		return answer.String(), nil
	}
	// The log of a container reaches the kubelet a moment later.
	for range 20 {
		log, err := s.Cluster.Kubectl(ctx, "-n", namespace, "logs", "deployment/agents-egress-proxy")
		if err != nil {
			return "", err
		}
		if strings.Contains(string(log), `"reason":"sni_mismatch"`) {
			return "tunnel closed, sni_mismatch", nil
		}
		time.Sleep(250 * time.Millisecond)
	}
	return "tunnel closed, no record of why", nil
}

func (s *scene) direct(target string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		results, err := s.Probe(ctx, s.one, target)
		switch {
		case err != nil:
			return "", err
		case results[target] == platform.Open:
			return answered, nil
		}
		return silence, nil
	}
}

func (s *scene) reached(address string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		events, err := s.Reached(address, s.begin)
		if err != nil || len(events) == 0 {
			return "nothing", err
		}
		return fmt.Sprintf("%d connections and requests", len(events)), nil
	}
}
