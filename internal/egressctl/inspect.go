package egressctl

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

type inspectResult struct {
	// Verified is always false: this command looks at no key.
	Verified bool            `json:"verified"`
	Header   json.RawMessage `json:"header"`
	Payload  json.RawMessage `json:"payload"`
	Expired  bool            `json:"expired"`
	Problems []string        `json:"problems"`
}

func (a *App) inspectCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "inspect [TOKEN]",
		Short: "Show what a token says, without verifying it",
		Long: `Show what a token says, WITHOUT verifying its signature.

` + tokenSources,
		Args: atMostOneToken,
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := a.readToken(args, file)
			if err != nil {
				return err
			}
			return a.inspect(raw)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", `file with the token, "-" for stdin`)
	return cmd
}

func (a *App) inspect(raw string) error {
	seen, err := token.Inspect(raw)
	if err != nil {
		return err
	}
	res := inspectResult{Header: seen.Header, Payload: seen.Payload, Problems: []string{}}
	for _, p := range seen.Problems {
		res.Problems = append(res.Problems, p.Error())
	}
	now := a.Now()
	if c := seen.Claims; c != nil && c.ExpiresAt != nil {
		res.Expired = !now.Before(c.ExpiresAt.Add(token.Leeway))
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintln(w, "NOT VERIFIED: anyone can write this; use egressctl token verify")
		fmt.Fprintf(w, "header:  %s\npayload: %s\n", printable(string(res.Header)), printable(string(res.Payload)))
		if c := seen.Claims; c != nil {
			writeTime(w, "issued:    ", c.IssuedAt, now)
			writeTime(w, "not before:", c.NotBefore, now)
			writeTime(w, "expires:   ", c.ExpiresAt, now)
		}
		for _, p := range res.Problems {
			fmt.Fprintln(w, "problem: ", p)
		}
	})
}

func writeTime(w io.Writer, label string, t *jwt.NumericDate, now time.Time) {
	if t == nil {
		fmt.Fprintln(w, label, "missing")
		return
	}
	distance := "in " + t.Sub(now).Round(time.Second).String()
	if !t.After(now) {
		distance = now.Sub(t.Time).Round(time.Second).String() + " ago"
	}
	fmt.Fprintf(w, "%s %s (%s)\n", label, t.UTC().Format(time.RFC3339), distance)
}
