// Command cluster builds, starts and stops the single-node Kubernetes cluster
// that the end-to-end tests and the demo run in. See README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "Single-node Kubernetes cluster in a network namespace without an uplink",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(buildCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		stop()
		os.Exit(1)
	}
}
