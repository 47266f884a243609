package egressctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes of every command.
const (
	ExitOK     = 0 // done; allowed; valid
	ExitDenied = 1 // the answer is no: denied, refused, not valid
	ExitError  = 2 // no answer: wrong usage, unreadable or invalid input
)

// App is what the commands share. The zero value of Now is time.Now; the streams must be set.
type App struct {
	// Name is shown in help, "egressctl" or "kubectl egress".
	Name    string
	Version string
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Now     func() time.Time

	format string
	// logs replaces the Kubernetes API in tests.
	logs func(namespace, policy string) logSource
}

// errDenied ends a command whose answer is no and has been printed.
var errDenied = errors.New("denied")

// Execute runs one command line and returns its exit code.
func (a *App) Execute(ctx context.Context, args []string) int {
	if a.Now == nil {
		a.Now = time.Now
	}
	root := a.root() //nolint:contextcheck // cobra hands the context to the commands
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errDenied):
		return ExitDenied
	}
	fmt.Fprintln(a.Err, "error:", err)
	return ExitError
}

func (a *App) root() *cobra.Command {
	name := a.Name
	if name == "" {
		name = "egressctl"
	}
	root := &cobra.Command{
		Use:   "egressctl",
		Short: "Keys, tokens and policy checks for Sandbox Egress",
		Long: `Keys, tokens and policy checks for Sandbox Egress.

Exit codes: 0 done, allowed or valid; 1 denied or not valid; 2 wrong usage or input.

Linked as "kubectl-egress" on the PATH it is a kubectl plugin as well:
  ln -s "$(command -v egressctl)" /usr/local/bin/kubectl-egress && kubectl egress --help`,
		Version:       a.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: name},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return checkFormat(a.format)
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.PersistentFlags().StringVarP(&a.format, "output", "o", formatText, "output format: text, json or yaml")
	complete(root, "output", formatText, formatJSON, formatYAML)
	root.AddCommand(a.keygenCommand(), a.tokenCommand(), a.checkCommand(), a.presetsCommand(),
		a.suggestCommand(), a.observeCommand(), a.versionCommand())
	return root
}

// complete offers fixed values for a flag. The flag was defined one line before, so the
// only error there is cannot happen; without completion the flag still works.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown argument %q; see %q", args[0], cmd.CommandPath()+" --help")
	}
	return nil
}

// oneArg names what is missing, which cobra.ExactArgs does not.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 1:
			return nil
		case 0:
			return fmt.Errorf("%s is missing: %s", what, cmd.UseLine())
		}
		return fmt.Errorf("want one %s, got %d arguments: %s", what, len(args), cmd.UseLine())
	}
}

// group is a command that only has subcommands; a mistyped one must not exit 0.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(children...)
	return cmd
}
