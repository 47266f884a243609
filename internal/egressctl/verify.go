package egressctl

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

type verifyResult struct {
	Valid  bool          `json:"valid"`
	Reason string        `json:"reason,omitempty"`
	Error  string        `json:"error,omitempty"`
	Claims *token.Claims `json:"claims,omitempty"`
}

func (a *App) verifyCommand() *cobra.Command {
	var jwks, file string
	cmd := &cobra.Command{
		Use:   "verify --jwks FILE [TOKEN]",
		Short: "Verify a token as the proxy does",
		Long: `Verify a token as the proxy does: signature, algorithm, issuer, audience, times and claims.
Exit code 0: valid, 1: refused, 2: no answer.

` + tokenSources,
		Example: `  egressctl token verify --jwks jwks.json --file token.txt
  kubectl get secret egress-x -o jsonpath='{.data.token}' | base64 -d | egressctl token verify --jwks jwks.json`,
		Args: atMostOneToken,
		RunE: func(_ *cobra.Command, args []string) error {
			if jwks == "" {
				return errors.New("--jwks is missing: the file with the public keys")
			}
			if jwks == "-" && file != "-" && len(args) == 0 || jwks == "-" && file == "-" {
				return errors.New("--jwks: stdin cannot hold both the JWKS and the token")
			}
			data, err := a.readInput("--jwks", jwks)
			if err != nil {
				return err
			}
			set, err := token.ParseJWKS(data)
			if err != nil {
				return fmt.Errorf("--jwks: %s: %w", jwks, err)
			}
			raw, err := a.readToken(args, file)
			if err != nil {
				return err
			}
			return a.verify(set, raw)
		},
	}
	cmd.Flags().StringVar(&jwks, "jwks", "", "JWKS file with the public keys (required)")
	cmd.Flags().StringVar(&file, "file", "", `file with the token, "-" for stdin`)
	return cmd
}

func (a *App) verify(set *token.KeySet, raw string) error {
	claims, verr := token.NewVerifier(set, token.WithClock(a.Now)).Verify(raw)
	res := verifyResult{Valid: verr == nil, Claims: claims}
	if verr != nil {
		res.Reason, res.Error = token.Reason(verr), verr.Error()
	}
	err := a.print(res, func(w io.Writer) {
		if verr != nil {
			fmt.Fprintf(w, "refused: %s: %s\n", res.Reason, printable(res.Error))
			return
		}
		fmt.Fprintf(w, "valid until %s\n", claims.ExpiresAt.UTC().Format(time.RFC3339))
		table(w, func(w io.Writer) {
			for _, row := range claimRows(claims) {
				if row[1] != "" {
					fmt.Fprintf(w, "  %s\t%s\n", row[0], row[1])
				}
			}
		})
	})
	if err == nil && verr != nil {
		return errDenied
	}
	return err
}

func claimRows(c *token.Claims) [][2]string {
	hosts := c.AllowedHosts
	switch {
	case hosts == "" && c.EgressPolicy == "":
		hosts = "(nothing)"
	case hosts == "":
		hosts = "(the live policy decides)"
	}
	return [][2]string{
		{"container_id", c.ContainerID},
		{"organization_uuid", c.OrganizationUUID},
		{"allowed_hosts", hosts},
		{"egress_policy", c.EgressPolicy},
		{"is_hipaa_regulated", fmt.Sprint(bool(c.IsHIPAARegulated))},
		{"use_egress_gateway", fmt.Sprint(bool(c.UseEgressGateway))},
		{"enforce_container_binding", fmt.Sprint(bool(c.EnforceContainerBinding))},
		{"enforce_centralized_egress", fmt.Sprint(bool(c.EnforceCentralizedEgress))},
		{"jti", c.ID},
	}
}
