// Command perf measures the egress-proxy beside Squid and beside no proxy at all, in one
// run with the same payloads, and writes docs/performance.md.
//
//	go run ./test/perf [-quick] [-runs 5]
//
// It needs root: load generator, proxies and origin run in network namespaces of their own
// with documentation addresses and no uplink. The whole run is bounded: about 6 minutes
// with the defaults, about one with -quick.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
)

// config bounds a run.
type config struct {
	runs        int
	warmUp      time.Duration
	duration    time.Duration
	idleTunnels int
	// profile is where a processor profile of the egress-proxy of every workload goes; ""
	// for none.
	profile string
	only    string
}

func main() {
	lab.EnterIfAsked()
	if len(os.Args) == 3 && os.Args[1] == peerCommand {
		if err := runPeer(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "perf:", err)
			os.Exit(1)
		}
		return
	}
	c := config{warmUp: 300 * time.Millisecond, idleTunnels: 5000}
	flag.IntVar(&c.runs, "runs", 5, "interleaved runs; medians are taken over them")
	flag.DurationVar(&c.duration, "duration", 2*time.Second, "measured time of one workload")
	flag.StringVar(&c.profile, "profile", "", "directory for processor profiles of the egress-proxy, one per workload of the first run")
	flag.StringVar(&c.only, "only", "", "only the workloads whose name contains this; no document is written")
	output := flag.String("output", "docs/performance.md", "the document to write")
	quick := flag.Bool("quick", false, "a smoke run: one short run, 500 idle tunnels, no document")
	flag.Parse()
	if *quick {
		c.runs, c.duration, c.warmUp, c.idleTunnels = 1, 500*time.Millisecond, 100*time.Millisecond, 500
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	err := run(ctx, c, *output, !*quick && c.only == "")
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config, output string, write bool) (err error) {
	if runtime.NumCPU() < 2 {
		return errors.New("two processors are needed: one for the proxy, one for the load")
	}
	scratch, err := os.MkdirTemp("", "sandbox-egress-perf-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	// Squid's worker is not root and writes its log there.
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	m := describeMachine()
	b, err := newBench(ctx, scratch, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	begin := time.Now()
	samples, err := b.measure(ctx)
	if err != nil {
		return err
	}
	m.loadAfter = loadAverage()
	t := tabulate(samples)
	fmt.Print(t.text())
	fmt.Printf("took %s; %s\n", time.Since(begin).Round(time.Second), m)
	if !write {
		return nil
	}
	if err := os.WriteFile(output, []byte(t.document(c, m, b.squidVersion)), 0o644); err != nil {
		return err
	}
	fmt.Println("wrote", output)
	return nil
}
