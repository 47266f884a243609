package egressctl

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/internal/audit"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
)

// maxDestinations bounds what hostile sandboxes can make of one run.
const maxDestinations = 10000

type suggestOptions struct {
	policyFile, ref string
	since           time.Duration
	filter          recordFilter
}

// suggestResult is a patch and what it is based on.
type suggestResult struct {
	Policy string `json:"policy,omitempty"`
	// Records were read; Skipped lines were no records.
	Records int `json:"records"`
	Skipped int `json:"skipped"`
	// AllowedHosts are the entries to add, most wanted first.
	AllowedHosts []suggestion `json:"allowedHosts"`
	// NotCovered cannot be helped by allowedHosts.
	NotCovered []uncovered `json:"notCovered"`
	// Patch is an RFC 6902 JSON Patch of the SandboxEgress.
	Patch []patchOp `json:"patch"`
}

type suggestion struct {
	Host  string    `json:"host"`
	Count int       `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Ports []uint16  `json:"ports"`
	// Sandboxes asked for it; at most maxSandboxes are named.
	Sandboxes []string `json:"sandboxes"`
}

type uncovered struct {
	Destination string `json:"destination"`
	Reason      string `json:"reason"`
	Count       int    `json:"count"`
	Remedy      string `json:"remedy"`
}

type patchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

func (a *App) suggestCommand() *cobra.Command {
	var o suggestOptions
	cmd := &cobra.Command{
		Use:   "suggest [FILE...]",
		Short: "Propose allowedHosts from audit records",
		Long: `Propose, from the audit records of egress proxies, the allowedHosts that would cover what
was denied or would have been denied (mode Audit), as a JSON Patch to review.

Records come from files or stdin, one JSON object per line, as the proxies print them;
other lines are skipped and counted. With --policy the manifest is taken into account: what
it allows already is left out, and what it denies is not proposed.

REVIEW EVERY LINE: a sandbox decides what it asks for. Code that tries to leak data puts
its own host into these records, and the proposal repeats it.`,
		Example: `  kubectl logs -n team-a -l egress.sandbox.dev/component=proxy,egress.sandbox.dev/policy=agents --tail=-1 \
      | egressctl suggest -f agents.yaml > patch.yaml
  kubectl patch sandboxegress -n team-a agents --type=json --patch-file patch.yaml`,
		RunE: func(_ *cobra.Command, args []string) error { return a.suggest(o, args) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.policyFile, "policy", "f", "", "SandboxEgress manifest that the patch is for")
	f.StringVar(&o.ref, "for", "", `"namespace/name": records of this policy only (default: that of --policy)`)
	f.StringSliceVar(&o.filter.pods, "pod", nil, "records of this pod only; comma-separated or repeated")
	f.StringSliceVar(&o.filter.containers, "container-id", nil, "records of this container_id only")
	f.DurationVar(&o.since, "since", 0, "records of this last time only, e.g. 24h")
	return cmd
}

func (a *App) suggest(o suggestOptions, files []string) error {
	if o.since < 0 {
		return fmt.Errorf("--since: %s is negative", o.since)
	}
	var object *v1alpha1.SandboxEgress
	if o.policyFile != "" {
		if o.policyFile == "-" && (len(files) == 0 || slices.Contains(files, "-")) {
			return errors.New("--policy: stdin cannot hold both the manifest and the records")
		}
		data, err := a.readInput("--policy", o.policyFile)
		if err != nil {
			return err
		}
		if object, err = manifest.Decode(data); err != nil {
			return fmt.Errorf("--policy: %s: %w", o.policyFile, err)
		}
		if _, err := manifest.Compile(object); err != nil {
			return fmt.Errorf("--policy: %s: %w", o.policyFile, err)
		}
		if o.ref == "" {
			o.ref = object.Namespace + "/" + object.Name
		}
	}
	seen := newDestinations(o, a.Now())
	if err := a.readAll(files, seen); err != nil {
		return err
	}
	if err := seen.onePolicy(); err != nil {
		return err
	}
	res, err := seen.suggest(object)
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) { writeSuggest(w, res, object != nil) })
}

func (a *App) readAll(files []string, seen *destinations) error {
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, name := range files {
		if err := a.readOne(name, seen); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if seen.overflow {
		return fmt.Errorf("the records name more than %d destinations: narrow them with --pod, --container-id or --since", maxDestinations)
	}
	return nil
}

func (a *App) readOne(name string, seen *destinations) error {
	stream := a.In
	if name != "-" {
		file, err := os.Open(filepath.Clean(name))
		if err != nil {
			return err
		}
		defer file.Close()
		stream = file
	}
	skipped, err := readRecords(stream, func(_ []byte, r audit.Record) { seen.add(r) })
	seen.skipped += skipped
	return err
}

// writeSuggest writes a YAML patch that kubectl reads; everything else is in comments.
func writeSuggest(w io.Writer, res suggestResult, known bool) {
	fmt.Fprintf(w, "# From %d audit record%s", res.Records, plural(res.Records))
	if res.Skipped > 0 {
		fmt.Fprintf(w, " (%d other line%s skipped)", res.Skipped, plural(res.Skipped))
	}
	fmt.Fprintln(w, ". Review every line: a sandbox decides what it asks for.")
	if res.Policy != "" {
		namespace, name, _ := strings.Cut(res.Policy, "/")
		fmt.Fprintf(w, "# kubectl patch sandboxegress -n %s %s --type=json --patch-file FILE\n", printable(namespace), printable(name))
	}
	if len(res.AllowedHosts) > 0 && !known {
		fmt.Fprintln(w, "# This patch adds to spec.allowedHosts, which must exist; give the manifest with --policy to be sure.")
	}
	for _, s := range res.AllowedHosts {
		fmt.Fprintf(w, "# %s: %d time%s, port%s %s, %s to %s, by %s\n", s.Host, s.Count, plural(s.Count), plural(len(s.Ports)), joinPorts(s.Ports),
			s.First.UTC().Format(time.RFC3339), s.Last.UTC().Format(time.RFC3339), printable(strings.Join(s.Sandboxes, ", ")))
	}
	for _, u := range res.NotCovered {
		fmt.Fprintf(w, "# not covered: %s, %d time%s, %s: %s\n", printable(u.Destination), u.Count, plural(u.Count), printable(u.Reason), u.Remedy)
	}
	// A struct of strings always marshals.
	data, err := yaml.Marshal(res.Patch)
	if err != nil {
		fmt.Fprintf(w, "# no patch: %v\n", err)
		return
	}
	fmt.Fprintf(w, "%s", data)
}

func joinPorts(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = fmt.Sprint(p)
	}
	return strings.Join(texts, ", ")
}

func byCount[T any](count func(T) int, name func(T) string) func(a, b T) int {
	return func(a, b T) int {
		return cmp.Or(cmp.Compare(count(b), count(a)), cmp.Compare(name(a), name(b)))
	}
}
