package injector

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// Names that injection owns inside a pod. Users may not use them; see CheckReserved.
const (
	GateContainer  = "egress-gate"
	RelayContainer = "egress-relay"
	TokenVolume    = "egress-token"

	tokenDir    = "/var/run/secrets/egress.sandbox.dev" //nolint:gosec // a directory, no credential
	relayBinary = "/egress-relay"
)

// DefaultGateTimeout bounds the start gate when Config.GateTimeout is zero.
const DefaultGateTimeout = 60 * time.Second

// Config is what the operator decides for every sandbox.
type Config struct {
	// Image holds the relay and the start gate (one image, both in /egress-relay).
	Image string
	// ImagePullPolicy of the injected containers; empty leaves Kubernetes' default.
	ImagePullPolicy corev1.PullPolicy
	// GateTimeout bounds the start gate; zero means DefaultGateTimeout.
	GateTimeout time.Duration
}

// Input is one pod and the policy it is under.
type Input struct {
	Pod    *corev1.Pod
	Policy *v1alpha1.SandboxEgress
	// ID is used when the pod has none yet; see NewID.
	ID string
}

var (
	// ErrNotReady means that the policy has no proxy address yet. Trying again later helps.
	ErrNotReady = errors.New("the egress proxy has no address yet")
	// ErrConflict means that the pod was injected for another policy, delivery or id form.
	// It must be created anew.
	ErrConflict = errors.New("the pod was injected differently before")
)

// proxyAddress returns the proxy's address and its canary's. Only an IP will do: a name
// would need DNS, which the sandbox may not have.
func proxyAddress(p *v1alpha1.SandboxEgress) (proxy, canary string, err error) {
	address := p.Status.ProxyAddress
	if address == "" {
		return "", "", fmt.Errorf("%w: SandboxEgress %q has no status.proxyAddress; create the pod again when it is Ready", ErrNotReady, p.Name)
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return "", "", fmt.Errorf("%w: status.proxyAddress %q of SandboxEgress %q is not ip:port", ErrNotReady, address, p.Name)
	}
	return at.String(), net.JoinHostPort(at.Addr().String(), strconv.Itoa(int(v1alpha1.CanaryPort))), nil
}
