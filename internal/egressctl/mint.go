package egressctl

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/hostname"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

type mintOptions struct {
	key, notBefore, proxy                              string
	claims                                             token.MintOptions
	binding, noBinding, hipaa, gateway, centralizedOut bool
}

type mintResult struct {
	Token    string       `json:"token"`
	KID      string       `json:"kid"`
	Expires  time.Time    `json:"expires"`
	Claims   token.Claims `json:"claims"`
	ProxyURL string       `json:"proxyURL,omitempty"`
}

func (a *App) mintCommand() *cobra.Command {
	var o mintOptions
	cmd := &cobra.Command{
		Use:   "mint",
		Short: "Sign a token for a sandbox",
		Long: `Sign a token for a sandbox and print it, or with --proxy-url the HTTP_PROXY value.

Without --egress-policy the hosts given with --allow decide what the token reaches; a
token without any reaches nothing.`,
		Example: `  egressctl token mint --key k.pem --container-id sandbox_session_abc123 --organization user_123 \
      --allow api.example.com,github.com --ttl 4h
  export HTTP_PROXY=$(egressctl token mint --key k.pem --container-id job-7 --allow pypi.org --proxy-url 127.0.0.1:8443)`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.mint(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "private key file, PEM (required)")
	f.StringVar(&o.claims.ContainerID, "container-id", "", "container_id: the sandbox's session id (required)")
	f.StringVar(&o.claims.Organization, "organization", "", "organization_uuid: who the sandbox runs for")
	f.StringSliceVar(&o.claims.AllowedHosts, "allow", nil, `allowed_hosts: "host", "host:port" or "*.host"; comma-separated or repeated`)
	f.StringVar(&o.claims.EgressPolicy, "egress-policy", "", `egress_policy: "namespace/name" of a live policy that decides instead of --allow`)
	f.DurationVar(&o.claims.TTL, "ttl", 4*time.Hour, "exp: how long the token lives")
	f.StringVar(&o.notBefore, "not-before", "", "nbf: RFC 3339 time, or a duration from now (default: now)")
	f.StringVar(&o.claims.ID, "jti", "", "jti: token id (default: random)")
	f.BoolVar(&o.binding, "binding", true, "enforce_container_binding: the token works from its container's address only")
	f.BoolVar(&o.noBinding, "no-binding", false, "the same as --binding=false")
	f.BoolVar(&o.hipaa, "hipaa", false, "is_hipaa_regulated")
	f.BoolVar(&o.gateway, "gateway", false, "use_egress_gateway")
	f.BoolVar(&o.centralizedOut, "centralized", false, "enforce_centralized_egress")
	f.StringVar(&o.proxy, "proxy-url", "", "HOST:PORT of the proxy: print the HTTP_PROXY URL instead of the token")
	cmd.MarkFlagsMutuallyExclusive("binding", "no-binding")
	return cmd
}

func (a *App) mint(o mintOptions) error {
	switch {
	case o.key == "":
		return errors.New("--key is missing: the private key that egressctl keygen wrote")
	case o.claims.ContainerID == "":
		return errors.New("--container-id is missing")
	}
	if err := token.ValidateContainerID(o.claims.ContainerID); err != nil {
		return fmt.Errorf("--container-id %w", err)
	}
	if err := token.ValidatePolicyRef(o.claims.EgressPolicy); err != nil {
		return fmt.Errorf("--egress-policy %w", err)
	}
	if o.claims.TTL < time.Second {
		return fmt.Errorf("--ttl: %s is below one second", o.claims.TTL)
	}
	if _, err := allowlist.Compile(allowlist.Spec{AllowedHosts: o.claims.AllowedHosts}); err != nil {
		return flagError(err)
	}
	var proxy hostname.Authority
	if o.proxy != "" {
		var err error
		if proxy, err = hostname.ParseAuthority(o.proxy); err != nil {
			return fmt.Errorf("--proxy-url: want HOST:PORT: %w", err)
		}
	}
	data, err := a.readInput("--key", o.key)
	if err != nil {
		return err
	}
	key, err := token.ParsePrivateKeyPEM(data)
	if err != nil {
		return fmt.Errorf("--key: %s: %w", o.key, err)
	}
	o.claims.Now = a.Now()
	if o.claims.NotBefore, err = parseWhen(o.notBefore, o.claims.Now); err != nil {
		return fmt.Errorf("--not-before: %w", err)
	}
	o.claims.ContainerBinding = o.binding && !o.noBinding
	o.claims.HIPAARegulated, o.claims.EgressGateway, o.claims.CentralizedEgress = o.hipaa, o.gateway, o.centralizedOut

	claims, err := token.NewClaims(o.claims)
	if err != nil {
		return err
	}
	raw, err := key.Mint(claims)
	if err != nil {
		return err
	}
	if len(o.claims.AllowedHosts) == 0 && o.claims.EgressPolicy == "" {
		fmt.Fprintln(a.Err, "warning: without --allow or --egress-policy this token reaches nothing")
	}
	res := mintResult{Token: raw, KID: key.KID, Expires: claims.ExpiresAt.UTC(), Claims: claims}
	if o.proxy != "" {
		res.ProxyURL = token.ProxyURL(claims.ContainerID, raw, proxy.String())
	}
	return a.print(res, func(w io.Writer) {
		if res.ProxyURL != "" {
			fmt.Fprintln(w, res.ProxyURL)
			return
		}
		fmt.Fprintln(w, res.Token)
	})
}

// parseWhen reads an RFC 3339 time or a duration from now; "" is the zero time.
func parseWhen(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is neither an RFC 3339 time nor a duration", strconv.QuoteToASCII(s))
	}
	return t, nil
}
