package egressctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

const (
	formatText = "text"
	formatJSON = "json"
	formatYAML = "yaml"
)

func checkFormat(format string) error {
	switch format {
	case formatText, formatJSON, formatYAML:
		return nil
	}
	return fmt.Errorf("--output: %q is not text, json or yaml", format)
}

// print writes v in the chosen format; text writes the form for people.
func (a *App) print(v any, text func(w io.Writer)) error {
	var out bytes.Buffer
	switch a.format {
	case formatText:
		text(&out)
	default:
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		if a.format == formatYAML {
			data, err := yaml.JSONToYAML(out.Bytes())
			if err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			out = *bytes.NewBuffer(data)
		}
	}
	if _, err := a.Out.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// table aligns columns; rows are made by writing tab-separated lines.
func table(w io.Writer, rows func(w io.Writer)) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows(tw)
	_ = tw.Flush() // w is a buffer
}

// printable keeps text from files and logs from driving the terminal.
func printable(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}
