package egressctl

import (
	"fmt"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
)

// target is what a client would ask the proxy for.
type target struct {
	authority hostname.Authority
	path      string // raw, without the query
	// visible: the proxy sees method and path, because the request is plain HTTP.
	visible bool
}

var schemes = map[string]struct {
	port    uint16
	visible bool
}{
	"http": {80, true}, "ws": {80, true}, "https": {443, false}, "wss": {443, false},
}

// parseTarget reads a URL or an authority. Its errors are what the proxy would answer with
// 400: the caller counts them as denied.
func parseTarget(s string) (target, error) {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		return parseAuthorityTarget(s)
	}
	kind, ok := schemes[strings.ToLower(scheme)]
	if !ok {
		return target{}, fmt.Errorf("scheme %q is not http, https, ws or wss", clipText(scheme))
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, err := hostname.ParseAuthorityDefault(rest[:end], kind.port)
	if err != nil {
		return target{}, err
	}
	path, _, _ := strings.Cut(rest[end:], "#")
	path, _, _ = strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	return target{authority: authority, path: path, visible: kind.visible}, nil
}

// parseAuthorityTarget reads "host" or "host:port". Port 443 stands for a missing one.
// On port 80 the proxy reads the HTTP inside the tunnel, as it does for http URLs.
func parseAuthorityTarget(s string) (target, error) {
	authority, err := hostname.ParseAuthorityDefault(s, 443)
	if err != nil {
		return target{}, err
	}
	return target{authority: authority, path: "/", visible: authority.Port == 80}, nil
}

func clipText(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
