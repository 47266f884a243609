// Command egress-relay runs inside sandboxes: as the sidecar that adds the token to each
// request (serve), as the start gate (gate), and as the sidecar's probe (health).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/relay"
	"github.com/sandbox-egress/sandbox-egress/internal/relay/gate"
)

var version = "dev"

const usage = `usage:
  egress-relay serve  --proxy IP:PORT --container-id ID --token-file FILE [--port 3128]
  egress-relay gate   --proxy IP:PORT --canary IP:PORT [--timeout 60s] [--termination-log FILE]
  egress-relay health [--address 127.0.0.1:3128]
  egress-relay --version
`

// errUsage is a mistake on the command line: exit code 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "egress-relay:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "egress-relay:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return fmt.Errorf("%w: a command is missing", errUsage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	switch args[0] {
	case "serve":
		return serve(ctx, flags, args[1:], stderr)
	case "gate":
		return waitAtGate(ctx, flags, args[1:], stdout)
	case "health":
		address := flags.String("address", "127.0.0.1:3128", "address of the relay")
		if err := parse(flags, args[1:]); err != nil {
			return err
		}
		return relay.Health(ctx, *address)
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, version)
		return nil
	case "help", "--help", "-help", "-h":
		fmt.Fprint(stdout, usage)
		return nil
	default:
		fmt.Fprint(stderr, usage)
		return fmt.Errorf("%w: unknown command %q", errUsage, args[0])
	}
}

func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	return nil
}

func serve(ctx context.Context, flags *flag.FlagSet, args []string, stderr io.Writer) error {
	cfg := relay.Config{Log: slog.New(slog.NewJSONHandler(stderr, nil))}
	flags.TextVar(&cfg.Proxy, "proxy", netip.AddrPort{}, "IP:PORT of the egress proxy")
	flags.StringVar(&cfg.ContainerID, "container-id", "", "container id of the sandbox")
	flags.StringVar(&cfg.TokenFile, "token-file", "", "file that holds the token; it may change")
	port := flags.Uint("port", 3128, "port to listen on, on loopback")
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case !cfg.Proxy.IsValid():
		return fmt.Errorf("%w: --proxy is required", errUsage)
	case cfg.ContainerID == "":
		return fmt.Errorf("%w: --container-id is required", errUsage)
	case cfg.TokenFile == "":
		return fmt.Errorf("%w: --token-file is required", errUsage)
	case *port > 65535:
		return fmt.Errorf("%w: --port %d is not a port", errUsage, *port)
	}
	cfg.Port = uint16(*port) //nolint:gosec // checked above
	s, err := relay.New(ctx, cfg)
	if err != nil {
		return err
	}
	cfg.Log.Info("serving", "addresses", s.Addrs(), "proxy", cfg.Proxy.String(), "version", version)
	return s.Serve(ctx)
}

func waitAtGate(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	var g gate.Gate
	flags.TextVar(&g.Proxy, "proxy", netip.AddrPort{}, "IP:PORT of the egress proxy, must answer")
	flags.TextVar(&g.Canary, "canary", netip.AddrPort{}, "IP:PORT of its canary, must not answer")
	flags.DurationVar(&g.Timeout, "timeout", time.Minute, "time after which the gate gives up")
	termination := flags.String("termination-log", "/dev/termination-log", "file that gets the reason of a failure")
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case !g.Proxy.IsValid():
		return fmt.Errorf("%w: --proxy is required", errUsage)
	case !g.Canary.IsValid():
		return fmt.Errorf("%w: --canary is required", errUsage)
	case g.Timeout <= 0:
		return fmt.Errorf("%w: --timeout must be positive", errUsage)
	}
	start := time.Now()
	err := g.Wait(ctx)
	if err == nil {
		fmt.Fprintf(stdout, "egress is isolated and the proxy answers (%s)\n", time.Since(start).Round(time.Millisecond))
		return nil
	}
	err = fmt.Errorf("start gate: %w", err)
	// Outside Kubernetes there is no such file, and stderr says the same.
	if file, openErr := os.OpenFile(*termination, os.O_WRONLY|os.O_TRUNC, 0); openErr == nil { //nolint:gosec // the flag says which file
		fmt.Fprintln(file, err)
		file.Close()
	}
	return err
}
