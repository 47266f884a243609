package egressctl

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpguts"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
	"github.com/sandbox-egress/sandbox-egress/internal/ipguard"
	"github.com/sandbox-egress/sandbox-egress/internal/policy"
	"github.com/sandbox-egress/sandbox-egress/internal/policy/manifest"
)

// Reasons beside allowlist's, in the proxy's words.
const (
	reasonBadTarget = "bad_target"
	reasonAddress   = "address_not_allowed"
)

const (
	decisionAllow     = "allow"
	decisionDeny      = "deny"
	decisionWouldDeny = "would_deny"
)

type checkOptions struct {
	policyFile           string
	allow, deny, presets []string
	privateNetworks      []string
	method, path, mode   string
}

type checkResult struct {
	Target    string `json:"target"`
	Authority string `json:"authority,omitempty"`
	Allowed   bool   `json:"allowed"`
	// Decision is allow, deny, or would_deny: allowed only because the mode is Audit.
	Decision string `json:"decision"`
	Reason   string `json:"reason,omitempty"`
	// Rule is the entry that decided, or that came closest.
	Rule   string `json:"rule,omitempty"`
	Detail string `json:"detail,omitempty"`
	Policy string `json:"policy,omitempty"`
	// TLS says whether a tunnel must carry TLS with a matching server name.
	TLS   string   `json:"tls,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

func (a *App) checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check TARGET",
		Short: "Say whether a policy or a host list allows a destination",
		Long: `Say whether a SandboxEgress manifest, or a host list, allows a destination, and which
entry decides. Nothing is contacted and no name is resolved: the proxy also refuses a name
whose addresses it may not dial.

TARGET is a URL (http, https, ws, wss) or "host[:port]" (port 443 unless given).
Method and path count for plain HTTP only, where the proxy sees them.

Exit codes: 0 allowed (also what a policy in mode Audit lets pass and records as
would_deny; --mode Enforce asks for the strict answer); 1 denied, also a target that is no
valid URL or authority, such as 127.1, since the proxy refuses it; 2 no answer: wrong
flags, or a manifest or host list that is not valid.`,
		Example: `  egressctl check --allow '*.example.com' https://a.example.com/
  egressctl check -f sandboxegress.yaml --method POST http://api.example.com/v1/items
  egressctl check --preset python --deny files.pythonhosted.org files.pythonhosted.org:443 -o json`,
		Args: oneArg("TARGET"),
		RunE: func(_ *cobra.Command, args []string) error { return a.check(o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.policyFile, "policy", "f", "", `SandboxEgress manifest, "-" for stdin`)
	f.StringSliceVar(&o.allow, "allow", nil, `allowed host: "host", "*.host", "host:port"; comma-separated or repeated`)
	f.StringSliceVar(&o.deny, "deny", nil, "denied host; beats --allow and --preset")
	f.StringSliceVar(&o.presets, "preset", nil, "preset to allow; see egressctl presets list")
	f.StringSliceVar(&o.privateNetworks, "private-network", nil, "private address range in CIDR notation that may be dialled")
	f.StringVar(&o.method, "method", "GET", "request method")
	f.StringVar(&o.path, "path", "", "request path, for a TARGET without one")
	f.StringVar(&o.mode, "mode", "", "Enforce or Audit (default: the manifest's, Enforce for a host list)")
	complete(cmd, "preset", presetNames()...)
	complete(cmd, "mode", "Enforce", "Audit")
	return cmd
}

func (a *App) check(o checkOptions, arg string) error {
	p, err := a.checkPolicy(o)
	if err != nil {
		return err
	}
	if o.path != "" && !strings.HasPrefix(o.path, "/") {
		return fmt.Errorf("--path: %q must begin with /", clipText(o.path))
	}
	if !isMethod(o.method) {
		return fmt.Errorf("--method: %q is no HTTP method", clipText(o.method))
	}
	res := decide(p, o, arg)
	if o.policyFile != "" {
		res.Policy = p.Ref
	} else {
		res.Rule = flagNames.Replace(res.Rule)
	}
	err = a.print(res, func(w io.Writer) { writeCheck(w, res) })
	if err == nil && !res.Allowed {
		return errDenied
	}
	return err
}

// checkPolicy compiles the manifest or the flags.
func (a *App) checkPolicy(o checkOptions) (*policy.Policy, error) {
	lists := len(o.allow) + len(o.deny) + len(o.presets) + len(o.privateNetworks)
	switch {
	case o.policyFile == "" && len(o.allow)+len(o.presets)+len(o.deny) == 0:
		return nil, errors.New("nothing to check against: give --policy FILE, or --allow, --deny and --preset")
	case o.policyFile != "" && lists > 0:
		return nil, errors.New("--policy cannot be combined with --allow, --deny, --preset or --private-network")
	}
	p, err := a.compilePolicy(o)
	if err != nil {
		return nil, err
	}
	switch o.mode {
	case "":
	case policy.Enforce.String():
		p.Mode = policy.Enforce
	case policy.Audit.String():
		p.Mode = policy.Audit
	default:
		return nil, fmt.Errorf("--mode: %q is not Enforce or Audit", clipText(o.mode))
	}
	return p, nil
}

func (a *App) compilePolicy(o checkOptions) (*policy.Policy, error) {
	if o.policyFile != "" {
		return a.readPolicy("--policy", o.policyFile)
	}
	m, err := allowlist.Compile(allowlist.Spec{AllowedHosts: o.allow, DeniedHosts: o.deny, Presets: o.presets})
	if err != nil {
		return nil, flagError(err)
	}
	var networks []netip.Prefix
	for _, text := range o.privateNetworks {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--private-network: %q is no address range in CIDR notation, e.g. 10.20.0.0/16", clipText(text))
		}
		networks = append(networks, prefix)
	}
	guard, err := ipguard.New(networks)
	if err != nil {
		return nil, fmt.Errorf("--private-network: %w", err)
	}
	return &policy.Policy{Matcher: m, Guard: guard}, nil
}

func (a *App) readPolicy(flag, file string) (*policy.Policy, error) {
	data, err := a.readInput(flag, file)
	if err != nil {
		return nil, err
	}
	object, err := manifest.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", flag, file, err)
	}
	p, err := manifest.Compile(object)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", flag, file, err)
	}
	return p, nil
}

// decide follows the proxy's order: parse, authorize by name, then the address guard.
func decide(p *policy.Policy, o checkOptions, arg string) checkResult {
	res := checkResult{Target: arg, Decision: decisionDeny}
	t, err := parseTarget(arg)
	if err != nil {
		res.Reason, res.Detail = reasonBadTarget, err.Error()
		return res
	}
	if o.path != "" {
		if t.path != "/" {
			res.Notes = append(res.Notes, "--path replaces the path of the URL")
		}
		t.path, _, _ = strings.Cut(o.path, "?")
	}
	res.Authority = t.authority.String()
	d := p.Matcher.Decide(allowlist.Request{Authority: t.authority, Method: o.method, Path: t.path, Visible: t.visible})
	res.Rule, res.Reason = d.Rule, string(d.Reason)
	if !t.visible && (o.method != "GET" || t.path != "/") {
		res.Notes = append(res.Notes, "method and path are inside the TLS tunnel: the proxy does not see them")
	}
	guardErr := error(nil)
	if host := t.authority.Host; host.IsIP() {
		guardErr = p.Guard.Check(host.Addr())
	}
	switch {
	case !d.Allowed && p.Mode != policy.Audit:
		res.Detail = explain(d.Reason)
		if guardErr != nil {
			res.Notes = append(res.Notes, "allowing the host would not help: "+guardErr.Error())
		}
	case guardErr != nil: // in mode Audit too
		res.Reason, res.Detail = reasonAddress, guardErr.Error()
	case !d.Allowed:
		res.Allowed, res.Decision = true, decisionWouldDeny
		res.Detail = "mode Audit lets it pass and records would_deny; mode Enforce refuses it"
	default:
		res.Allowed, res.Decision = true, decisionAllow
		if !t.visible {
			res.TLS = "Required"
			if d.TLS == allowlist.TLSOptional {
				res.TLS = "Optional"
			}
		}
	}
	return res
}

func explain(r allowlist.Reason) string {
	switch r {
	case allowlist.ReasonHostDenied:
		return "the host is on the list of denied hosts, which beats every allowed one"
	case allowlist.ReasonHostNotAllowed:
		return "no entry allows this host"
	case allowlist.ReasonPortNotAllowed:
		return "the host is allowed on other ports only; an entry without a port allows 80 and 443"
	case allowlist.ReasonMethodNotAllowed:
		return "the host is allowed for other methods only"
	case allowlist.ReasonPathNotAllowed:
		return "the host is allowed for other paths only"
	}
	return ""
}

func writeCheck(w io.Writer, res checkResult) {
	what := res.Authority
	if what == "" {
		what = clipText(res.Target)
	}
	fmt.Fprintf(w, "%s %s\n", res.Decision, printable(what))
	for _, row := range [][2]string{
		{"reason", res.Reason}, {"rule", res.Rule}, {"detail", res.Detail}, {"policy", res.Policy}, {"tls", res.TLS},
	} {
		if row[1] != "" {
			fmt.Fprintf(w, "  %s: %s\n", row[0], printable(row[1]))
		}
	}
	for _, note := range res.Notes {
		fmt.Fprintf(w, "  note: %s\n", printable(note))
	}
}

// isMethod says whether s is a token (RFC 9110 sections 5.6.2 and 9.1); methods are case-sensitive.
func isMethod(s string) bool {
	return s != "" && len(s) <= 32 && httpguts.ValidHeaderFieldName(s)
}
