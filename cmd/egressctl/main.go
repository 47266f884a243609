// Command egressctl makes keys and tokens and checks policies offline; see internal/egressctl.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandbox-egress/sandbox-egress/internal/egressctl"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &egressctl.App{Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	// kubectl runs plugins by their file name.
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		app.Name = "kubectl egress"
	}
	return app.Execute(ctx, os.Args[1:])
}
