package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
)

func buildCommand() *cobra.Command {
	var only string
	var printDir bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build what is missing of the cluster's components into the cache",
		Long: `Builds what is missing of the cluster's components into the cache
($` + build.CacheEnv + `, else sandbox-egress in the user's cache directory).
The last line on stdout is the directory that holds the binaries; progress goes
to stderr. --only envtest builds etcd, kube-apiserver and kubectl, whose
directory is what KUBEBUILDER_ASSETS wants.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var components []build.Component
			switch only {
			case "":
				only, components = "cluster", build.Cluster()
			case "envtest":
				components = build.EnvTest()
			default:
				return fmt.Errorf("--only %q: the one group is envtest", only)
			}
			root, err := build.FindRoot()
			if err != nil {
				return err
			}
			progress := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			dir, err := build.Build(cmd.Context(), build.Options{Root: root, Progress: progress}, only, components)
			if err != nil {
				return err
			}
			if !printDir {
				progress("all components are built")
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&only, "only", "", "build only this group: envtest")
	cmd.Flags().BoolVar(&printDir, "print-dir", false, "print nothing but the directory when there is nothing to build")
	return cmd
}
