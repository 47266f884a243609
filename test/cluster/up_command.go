package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
)

// clusterCommands are those that work on a cluster.
func clusterCommands() []*cobra.Command {
	config := &node.Config{}
	commands := []*cobra.Command{
		upCommand(config), downCommand(config), statusCommand(config), kubectlCommand(config),
		loadImageCommand(config), enforcementCommand(config), restartCommand(config),
	}
	for _, cmd := range commands {
		cmd.Flags().StringVar(&config.StateDir, "state-dir", node.DefaultStateDir, "directory of sockets, logs and credentials")
	}
	return commands
}

func upCommand(config *node.Config) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build what is missing and start the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Log = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			c, err := node.Up(cmd.Context(), *config)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "kubeconfig: %s (for processes in the cluster's network namespace)\n", c.Kubeconfig())
			flag := ""
			if config.StateDir != node.DefaultStateDir {
				flag = " --state-dir=" + config.StateDir
			}
			fmt.Fprintf(cmd.OutOrStdout(), "use it with: go run ./test/cluster kubectl%s get pods -A\n", flag)
			return nil
		},
	}
	cmd.Flags().StringVar(&config.DataDir, "data-dir", node.DefaultDataDir, "directory of images, containers and etcd")
	cmd.Flags().BoolVar(&config.NoInstall, "no-install", false, "do not install missing Debian packages")
	cmd.Flags().DurationVar(&config.Timeout, "timeout", 2*time.Minute, "how long to wait for each component")
	return cmd
}

func downCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and remove everything of it, also after a crash",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return node.Down(cmd.Context(), *config) },
	}
}

func statusCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the components; exit status 1 unless all serve",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := node.Attach(*config)
			if err != nil {
				return err
			}
			var broken error
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "COMPONENT\tPID\tSTATE")
			for _, s := range c.Status(cmd.Context()) {
				state := "serving"
				switch {
				case !s.Running:
					state = "stopped"
				case s.Problem != "":
					state = s.Problem
				}
				if state != "serving" {
					broken = errors.New("not all components serve")
				}
				fmt.Fprintf(table, "%s\t%d\t%s\n", s.Name, s.PID, state)
			}
			enforced, err := c.Enforcement(cmd.Context())
			if err != nil {
				return err
			}
			if err := table.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "NetworkPolicies enforced: %v\n", enforced)
			return broken
		},
	}
}

func kubectlCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [--state-dir=DIR] [arguments of kubectl]",
		Short: "Run kubectl against the cluster",
		// All flags but a leading --state-dir are kubectl's.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if dir, ok := strings.CutPrefix(args[0], "--state-dir="); ok {
					config.StateDir, args = dir, args[1:]
				}
			}
			c, err := node.Attach(*config)
			if err != nil {
				return err
			}
			kubectl := c.KubectlCommand(cmd.Context(), args...)
			kubectl.Stdin, kubectl.Stdout, kubectl.Stderr = os.Stdin, os.Stdout, os.Stderr
			err = c.Run(kubectl)
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				// kubectl has said why.
				return exitStatus(exit.ExitCode())
			}
			return err
		},
	}
}

func loadImageCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "load-image ARCHIVE...",
		Short: "Import image archives (docker save or OCI layout, tar)",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := node.Attach(*config)
			if err != nil {
				return err
			}
			for _, archive := range args {
				if err := c.LoadImage(cmd.Context(), archive); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func enforcementCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:       "enforcement on|off",
		Short:     "Switch the enforcement of NetworkPolicies",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := node.Attach(*config)
			if err != nil {
				return err
			}
			return c.SetEnforcement(cmd.Context(), args[0] == "on")
		},
	}
}

func restartCommand(config *node.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "restart COMPONENT...",
		Short: "Stop and start components",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := node.Attach(*config)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.RestartComponent(cmd.Context(), name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
