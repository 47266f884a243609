package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRefusedCommandLines(t *testing.T) {
	none := "--state-dir=" + t.TempDir()
	tests := map[string]struct {
		args []string
		want string
	}{
		"unknown group":          {[]string{"build", "--only", "everything"}, `--only "everything"`},
		"unknown command":        {[]string{"launch"}, `unknown command "launch"`},
		"enforcement of what":    {[]string{"enforcement", "maybe", none}, `invalid argument "maybe"`},
		"image of what":          {[]string{"image", "product"}, `invalid argument "product"`},
		"image without a file":   {[]string{"image", "project"}, "--output"},
		"load-image of nothing":  {[]string{"load-image", none}, "requires at least 1 arg"},
		"status without cluster": {[]string{"status", none}, "no cluster is running"},
		"kubectl without one":    {[]string{"kubectl", none, "get", "pods", "-A"}, "no cluster is running"},
		"restart without one":    {[]string{"restart", none, "kubelet"}, "no cluster is running"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := rootCommand()
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetArgs(test.args)
			err := cmd.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, test.want)
			}
		})
	}
}
