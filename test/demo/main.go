// Command demo shows Sandbox Egress at work: it brings a single-node cluster up, installs
// the chart, starts two sandboxes, tries what they may and what they may not do, and prints
// a table of expected against seen. It needs root, and exits with 0 only when all of it
// holds. KEEP=1 in the environment leaves the cluster up.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Its client logs warnings of the API server through a global logger.
	ctrllog.SetLogger(logr.Discard())
	held, err := run(ctx, os.Getenv("KEEP") != "")
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !held {
		os.Exit(1)
	}
}

// ownClock is the time since its own start that the cluster's progress begins with.
var ownClock = regexp.MustCompile(`^\[ *[0-9]+s\] `)

// run says whether every check held.
func run(ctx context.Context, keep bool) (held bool, err error) {
	begin := time.Now()
	progress := func(line string) {
		fmt.Printf("%4.0fs  %s\n", time.Since(begin).Seconds(), ownClock.ReplaceAllString(line, ""))
	}
	p, err := platform.Start(ctx, platform.Options{Reuse: true, Log: progress})
	if err != nil {
		return false, err
	}
	defer func() {
		if keep && ctx.Err() == nil {
			err = errors.Join(err, p.Detach())
			fmt.Println(p.Usage(ctx))
			fmt.Println("  try it:  go run ./test/cluster kubectl -n demo exec sandbox-1 -- curl -sS http://evil-site.example/")
			return
		}
		progress("stopping the cluster")
		// ctx may have ended.
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, p.Stop(cleanup))
	}()
	defer func() {
		if ctx.Err() == nil && !held {
			err = errors.Join(err, diagnose(ctx, p))
		}
	}()

	s, err := prepare(ctx, p, progress)
	if err != nil {
		return false, err
	}
	results, err := s.checks(ctx)
	if err != nil {
		return false, err
	}
	fmt.Println()
	held = printTable(os.Stdout, colours(os.Stdout), results)
	fmt.Println()
	return held, nil
}

// diagnose writes what is needed to find out why to a file.
func diagnose(ctx context.Context, p *platform.Platform) error {
	f, err := os.CreateTemp("", "sandbox-egress-demo-*.log")
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p.Diagnose(ctx, f, namespace)
	fmt.Println("the cluster's state and logs are in", f.Name())
	return nil
}
