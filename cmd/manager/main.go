// Command manager is the operator: its controllers and its admission webhooks.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
)

var version = "dev"

func main() {
	o := managercmd.NewOptions()
	fs := pflag.NewFlagSet("manager", pflag.ContinueOnError)
	showVersion := fs.Bool("version", false, "Print the version and exit.")
	o.AddFlags(fs)
	switch err := fs.Parse(os.Args[1:]); {
	case errors.Is(err, pflag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println(version)
		return
	}
	if err := o.Validate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := run(o); err != nil {
		ctrl.Log.Error(err, "manager ended")
		os.Exit(1)
	}
}

func run(o managercmd.Options) error {
	ctrl.SetLogger(logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: o.Level()})))
	ctx := ctrl.SetupSignalHandler()
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	mgr, err := managercmd.New(ctx, cfg, o)
	if err != nil {
		return err
	}
	ctrl.Log.Info("starting", "version", version, "image", o.Image)
	return mgr.Start(ctx)
}
