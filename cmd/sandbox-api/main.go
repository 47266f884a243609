// Command sandbox-api runs, observes and stops processes inside a sandbox
// container, over HTTP. It can be the container's PID 1. See docs/sandbox-api.md.
package main

import (
	"context"
	"os"

	"github.com/sandbox-egress/sandbox-egress/internal/process"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(process.Main(context.Background(), version, os.Args[1:], os.Stderr))
}
