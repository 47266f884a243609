package egressctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

type observeOptions struct {
	kubeconfig, kubeContext, namespace string
	policy                             string
	since                              time.Duration
	noFollow, closes                   bool
	filter                             recordFilter
}

func (a *App) observeCommand() *cobra.Command {
	var o observeOptions
	cmd := &cobra.Command{
		Use:   "observe POLICY",
		Short: "Stream the decisions of all proxies of a policy",
		Long: `Stream the decisions of all proxies of a SandboxEgress, live, through the Kubernetes API.

It reads the logs of the policy's proxy pods, also of those that start later, so it needs
"list" on pods and "get" on pods/log in the namespace. It runs until it is interrupted;
--no-follow stops at the end of what there is.

With -o json every line is the record as the proxy wrote it; "egressctl suggest" reads it.`,
		Example: `  kubectl egress observe -n team-a agents --decision deny,would_deny
  kubectl egress observe -n team-a agents --since 24h --no-follow -o json | kubectl egress suggest`,
		Args: oneArg("POLICY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.policy = args[0]
			return a.observe(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, ~/.kube/config, or the pod's own account)")
	f.StringVar(&o.kubeContext, "context", "", "kubeconfig context")
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the policy (default: that of the context)")
	f.StringSliceVar(&o.filter.pods, "pod", nil, "records of this sandbox pod only; comma-separated or repeated")
	f.StringSliceVar(&o.filter.containers, "container-id", nil, "records of this container_id only")
	f.StringSliceVar(&o.filter.decisions, "decision", nil, "only these: allow, deny, would_deny")
	f.StringSliceVar(&o.filter.reasons, "reason", nil, "only these reasons, e.g. host_not_allowed")
	f.DurationVar(&o.since, "since", 0, "begin with the records of this last time (default: new ones, with --no-follow all)")
	f.BoolVar(&o.noFollow, "no-follow", false, "stop at the end of what there is")
	f.BoolVar(&o.closes, "closes", false, "show how requests and tunnels ended, too")
	complete(cmd, "decision", decisions...)
	return cmd
}

var decisions = []string{string(audit.Allow), string(audit.Deny), string(audit.WouldDeny)}

func (o *observeOptions) validate(format string) error {
	for _, d := range o.filter.decisions {
		if !slices.Contains(decisions, d) {
			return fmt.Errorf("--decision: %q is not one of %s", clipText(d), strings.Join(decisions, ", "))
		}
	}
	switch {
	case o.since < 0:
		return fmt.Errorf("--since: %s is negative", o.since)
	case format == formatYAML:
		return errors.New("--output: observe writes text or json")
	}
	return nil
}

func (a *App) observe(ctx context.Context, o observeOptions) error {
	if err := o.validate(a.format); err != nil {
		return err
	}
	source, err := a.connect(o.kubeconfig, o.kubeContext, o.namespace, o.policy)
	if err != nil {
		return err
	}
	var from time.Time
	if o.since > 0 {
		from = a.Now().Add(-o.since)
	} else if !o.noFollow {
		from = a.Now()
	}
	view := &recordView{out: a.Out, json: a.format == formatJSON, closes: o.closes, filter: o.filter}
	warn := func(err error) { fmt.Fprintln(a.Err, "warning:", printable(err.Error())) }
	return (&tail{source: source, from: from, follow: !o.noFollow, now: a.Now, warn: warn}).run(ctx, view.show)
}

// recordView prints records one by one.
type recordView struct {
	out    io.Writer
	json   bool
	closes bool
	filter recordFilter
	headed bool
}

const viewColumns = "%-24s %-10s %-24s %-8s %-40s %s\n"

// show returns an error when nobody reads the output any more.
func (v *recordView) show(line string, r *audit.Record) error {
	if r.Event == audit.Close && !v.closes || !v.filter.keeps(r) {
		return nil
	}
	if v.json {
		_, err := fmt.Fprintln(v.out, strings.TrimSpace(line[strings.IndexByte(line, '{'):]))
		return err
	}
	if !v.headed {
		v.headed = true
		if _, err := fmt.Fprintf(v.out, viewColumns, "TIME", "DECISION", "SANDBOX", "METHOD", "DESTINATION", "WHY"); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(v.out, viewColumns, r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), r.Decision,
		orDash(sandboxName(r)), orDash(r.Method), recordDestination(r), recordWhy(r))
	return err
}

func sandboxName(r *audit.Record) string {
	if r.Pod != "" {
		return printable(r.Pod)
	}
	return printable(r.ContainerID)
}

func recordDestination(r *audit.Record) string {
	if r.Host == "" {
		return "-"
	}
	return printable(destination(refusedKey{host: r.Host, port: r.Port}))
}

// recordWhy is the reason and the rule; for a close what went through as well.
func recordWhy(r *audit.Record) string {
	var parts []string
	if r.Event == audit.Close {
		parts = append(parts, fmt.Sprintf("closed, %d bytes sent, %d received", r.BytesSent, r.BytesReceived))
	}
	for _, s := range []string{r.Reason, r.Rule} {
		if s != "" {
			parts = append(parts, printable(s))
		}
	}
	return orDash(strings.Join(parts, "  "))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
