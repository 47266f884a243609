package egressctl

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
)

type presetResult struct {
	allowlist.Preset
	// AllHosts are the hosts of the preset and of all that it includes.
	AllHosts []string `json:"allHosts"`
}

func (a *App) presetsCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the presets",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return a.presetsList() },
	}
	show := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show the hosts of a preset and what it risks",
		Args:              oneArg("preset name"),
		ValidArgsFunction: cobra.FixedCompletions(presetNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE:              func(_ *cobra.Command, args []string) error { return a.presetsShow(args[0]) },
	}
	return group("presets", "The named host lists that come with the operator", list, show)
}

func presetNames() []string {
	var names []string
	for _, p := range allowlist.Presets() {
		names = append(names, p.Name)
	}
	return names
}

func expandPreset(p allowlist.Preset) (presetResult, error) {
	m, err := allowlist.Compile(allowlist.Spec{Presets: []string{p.Name}})
	if err != nil {
		return presetResult{}, fmt.Errorf("preset %s: %w", p.Name, err)
	}
	return presetResult{Preset: p, AllHosts: m.Hosts()}, nil
}

func (a *App) presetsList() error {
	presets := allowlist.Presets()
	if len(presets) == 0 {
		return fmt.Errorf("this program holds no presets")
	}
	results := make([]presetResult, 0, len(presets))
	for _, p := range presets {
		res, err := expandPreset(p)
		if err != nil {
			return err
		}
		results = append(results, res)
	}
	return a.print(results, func(w io.Writer) {
		table(w, func(w io.Writer) {
			fmt.Fprintln(w, "NAME\tVERSION\tRISK\tHOSTS\tDESCRIPTION")
			for _, r := range results {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", r.Name, r.Version, r.Risk, len(r.AllHosts), firstSentence(r.Description))
			}
		})
	})
}

func (a *App) presetsShow(name string) error {
	preset, ok := allowlist.LookupPreset(name)
	if !ok {
		return fmt.Errorf("no preset %q; there are %s", printable(name), strings.Join(presetNames(), ", "))
	}
	res, err := expandPreset(preset)
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%s (version %s): %s\n", res.Name, res.Version, res.Description)
		fmt.Fprintf(w, "risk: %s: %s\n", res.Risk, res.RiskReason)
		if len(res.Includes) > 0 {
			fmt.Fprintf(w, "includes: %s\n", strings.Join(res.Includes, ", "))
		}
		fmt.Fprintln(w, "hosts:")
		for _, h := range res.AllHosts {
			fmt.Fprintln(w, "  "+h)
		}
	})
}

// firstSentence keeps the table to one line per preset; "show" has the whole text.
func firstSentence(s string) string {
	if first, _, more := strings.Cut(s, ". "); more {
		return first + "."
	}
	return s
}
