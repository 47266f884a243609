// Command cluster-internet runs the servers of package internet inside the
// internet's network namespace.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
)

func main() {
	var ca, log, control, gitBackend, gitRoot, ready string
	flag.StringVar(&ca, "ca", "", "path of the test authority without .crt and .key")
	flag.StringVar(&log, "log", "", "path of the request log")
	flag.StringVar(&control, "control", "", "path of the control socket")
	flag.StringVar(&gitBackend, "git-backend", "", "path of git-http-backend")
	flag.StringVar(&gitRoot, "git-root", "", "directory of the repositories")
	flag.StringVar(&ready, "ready-file", "", "written once everything listens")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, ca, log, ready, internet.Config{
		Zone:       internet.NewZone(internet.DefaultRecords()),
		Control:    control,
		GitBackend: gitBackend,
		GitRoot:    gitRoot,
		Hosts:      internet.Hosts(),
		Resolvers:  internet.Resolvers(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster-internet:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, ca, log, ready string, config internet.Config) (err error) {
	if config.Authority, err = pki.LoadAuthority(ca); err != nil {
		return err
	}
	if config.Log, err = internet.OpenLog(log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, config.Log.Close()) }()
	return internet.Serve(ctx, config, func() error {
		tmp := filepath.Join(filepath.Dir(ready), ".ready-internet")
		if err := os.WriteFile(tmp, nil, 0o644); err != nil {
			return err
		}
		return os.Rename(tmp, ready)
	})
}
