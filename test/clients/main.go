// Command clients runs real HTTP clients through the real egress-proxy and writes what
// each of them does into docs/clients.md: an allowed host over http and https, a denied
// host, and what the person at the keyboard gets to see of the refusal.
//
//	go run ./test/clients [-only curl,git] [-keep]
//
// It needs root: client, proxy and origin run in network namespaces of their own with
// documentation addresses and no uplink. The client's namespace has a route to the proxy
// only, and no DNS, as a sandbox under dns: None. Missing Debian and npm packages are
// installed first.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
)

// goClientCommand makes this program the Go client.
const goClientCommand = "go-client"

func main() {
	lab.EnterIfAsked()
	if len(os.Args) == 3 && os.Args[1] == goClientCommand {
		os.Exit(goClient(os.Args[2]))
	}
	only := flag.String("only", "", "comma-separated parts of client names; others are left out, and no document is written")
	output := flag.String("output", "docs/clients.md", "the document to write")
	keep := flag.Bool("keep", false, "keep the scratch directory")
	verbose := flag.Bool("v", false, "print what every client printed")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	err := run(ctx, strings.Split(*only, ","), *output, *keep, *verbose)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only []string, output string, keep, verbose bool) (err error) {
	scratch, err := os.MkdirTemp("", "sandbox-egress-clients-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("scratch:", scratch)
	} else {
		defer os.RemoveAll(scratch)
	}
	site, err := build(ctx, scratch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.close()) }()

	var results []result
	for _, c := range clients() {
		if !wanted(c.name, only) {
			continue
		}
		r, err := site.try(ctx, c, verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Println(r.line())
		results = append(results, r)
	}
	if len(results) == 0 {
		return errors.New("-only names no client")
	}
	if only[0] == "" {
		if err := os.WriteFile(output, []byte(document(results)), 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", filepath.Clean(output))
	}
	return verdict(results)
}

func wanted(name string, only []string) bool {
	for _, o := range only {
		if strings.Contains(strings.ToLower(name), strings.ToLower(o)) {
			return true
		}
	}
	return false
}

// verdict is the exit of the run: every problem of every client.
func verdict(results []result) error {
	passed := 0
	var failed []string
	for _, r := range results {
		problems := r.problems()
		if len(problems) == 0 {
			passed++
			continue
		}
		failed = append(failed, r.client.name+": "+strings.Join(problems, "; "))
	}
	fmt.Printf("%d passed, %d failed\n", passed, len(failed))
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "\n"))
	}
	return nil
}

// goClient is net/http as it comes.
func goClient(url string) int {
	resp, err := http.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
