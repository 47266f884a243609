package allowlist

// TLSMode says whether a tunnel to a TLS port has to carry TLS whose SNI is the
// CONNECT host.
type TLSMode uint8

// The zero value is the strict one.
const (
	TLSRequired TLSMode = iota
	TLSOptional         // only ever from a Rule
)

// Rule allows its hosts on its ports, and where the proxy sees the request, with
// its methods and paths.
type Rule struct {
	Hosts   []string // patterns; at least one
	Ports   []uint16 // default 80 and 443; must be empty when a host has a port
	Methods []string // exact tokens in upper case; none: any
	Paths   []string // "/v1/*" is a prefix, else exact; none: any
	TLS     TLSMode
}

// Spec is the source of a Matcher. The zero Spec allows nothing.
type Spec struct {
	Presets      []string // names of presets or groups
	AllowedHosts []string // patterns
	DeniedHosts  []string // patterns; without a port, on all ports; always beat the rest
	Rules        []Rule
}
