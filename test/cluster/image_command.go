package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
)

func imageCommand() *cobra.Command {
	var out, ca string
	cmd := &cobra.Command{
		Use:       "image project|sandbox",
		Short:     "Write the product's image or the sandbox image as an archive",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"project", "sandbox"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return fmt.Errorf("--output: the file to write is needed")
			}
			progress := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			if args[0] == "project" {
				root, err := build.FindRoot()
				if err != nil {
					return err
				}
				binaries, err := build.Project(cmd.Context(), build.Options{Root: root, Progress: progress}, "dev", build.ProjectBinaries()...)
				if err != nil {
					return err
				}
				return image.Binaries(image.ProjectRef, binaries, "manager", out)
			}
			cache, err := build.DefaultCache()
			if err != nil {
				return err
			}
			var extra []byte
			if ca != "" {
				if extra, err = os.ReadFile(ca); err != nil {
					return fmt.Errorf("--ca: %w", err)
				}
			}
			return image.Sandbox(cmd.Context(), filepath.Join(cache, "images"), extra, out)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write")
	cmd.Flags().StringVar(&ca, "ca", "", "certificate to trust in the sandbox image, e.g. "+node.DefaultStateDir+"/internet/ca.crt")
	return cmd
}
