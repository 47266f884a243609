package egressctl

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

type versionResult struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			res := versionResult{Version: a.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(res, func(w io.Writer) {
				fmt.Fprintf(w, "egressctl %s (%s, %s)\n", res.Version, res.Go, res.Platform)
			})
		},
	}
}
