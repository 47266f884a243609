// Command egress-proxy is the forward proxy that sandboxes reach the network through.
package main

import (
	"os"

	"github.com/sandbox-egress/sandbox-egress/internal/proxycmd"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(proxycmd.Main(version, os.Args[1:], os.Stdout, os.Stderr, map[string]proxycmd.SourceFactory{
		"kube": &kubeSource{},
	}))
}
