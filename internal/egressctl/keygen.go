package egressctl

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

type keygenOptions struct {
	key, jwks     string
	force, append bool
}

type keygenResult struct {
	KID  string `json:"kid"`
	Key  string `json:"key"`
	JWKS string `json:"jwks"`
	// Keys is the number of public keys in the JWKS.
	Keys int `json:"keys"`
}

func (a *App) keygenCommand() *cobra.Command {
	var o keygenOptions
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make an ES256 signing key and its JWKS",
		Long: `Make an ES256 (P-256) signing key and the JWKS file that verifies its tokens.

The private key is PKCS #8 PEM, readable by its owner only. Existing files are never
overwritten without --force. --append keeps the keys of an existing JWKS, so that tokens
of the previous key stay good while a key is replaced.`,
		Example: `  egressctl keygen --key k.pem --jwks jwks.json
  egressctl keygen --key k2.pem --jwks jwks.json --append`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.keygen(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "signing-key.pem", "private key file to write")
	f.StringVar(&o.jwks, "jwks", "jwks.json", "JWKS file to write")
	f.BoolVar(&o.append, "append", false, "add to the JWKS file instead of making a new one")
	f.BoolVar(&o.force, "force", false, "overwrite existing files")
	return cmd
}

func (a *App) keygen(o keygenOptions) error {
	if o.key == "" || o.jwks == "" {
		return fmt.Errorf("--key and --jwks must not be empty")
	}
	if o.key == o.jwks {
		return fmt.Errorf("--key and --jwks name the same file %s", o.key)
	}
	if !o.force {
		if err := checkNew("--key", o.key); err != nil {
			return err
		}
	}
	if !o.force && !o.append {
		if err := checkNew("--jwks", o.jwks); err != nil {
			return err
		}
	}
	key, err := token.GenerateKey(nil)
	if err != nil {
		return err
	}
	set, err := a.jwksWith(o, key)
	if err != nil {
		return err
	}
	pemData, err := key.MarshalPEM()
	if err != nil {
		return err
	}
	jwksData, err := set.MarshalJWKS()
	if err != nil {
		return err
	}
	if err := writeFile("--key", o.key, pemData, 0o600, o.force); err != nil {
		return err
	}
	if err := writeFile("--jwks", o.jwks, append(jwksData, '\n'), 0o644, o.force || o.append); err != nil {
		if !o.force {
			// A key that nothing can verify would only block the next attempt.
			os.Remove(o.key)
		}
		return err
	}
	res := keygenResult{KID: key.KID, Key: o.key, JWKS: o.jwks, Keys: set.Len()}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "kid:         %s\nprivate key: %s (keep it secret)\nJWKS:        %s (%d key%s, give it to the proxy)\n",
			res.KID, res.Key, res.JWKS, res.Keys, plural(res.Keys))
	})
}

func (a *App) jwksWith(o keygenOptions, key *token.SigningKey) (*token.KeySet, error) {
	keys := []token.PublicKey{key.Public()}
	if o.append {
		data, err := a.readInput("--jwks", o.jwks)
		if err != nil {
			return nil, fmt.Errorf("--append: %w", err)
		}
		old, err := token.ParseJWKS(data)
		if err != nil {
			return nil, fmt.Errorf("--append: %s: %w", o.jwks, err)
		}
		for _, kid := range old.KIDs() {
			keys = append(keys, token.PublicKey{KID: kid, Key: old.Lookup(kid)})
		}
	}
	return token.NewKeySet(keys...)
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
