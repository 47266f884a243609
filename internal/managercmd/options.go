// Package managercmd holds the operator's flags and builds its manager, so that tests start
// the same thing that cmd/manager runs.
package managercmd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/sandbox-egress/sandbox-egress/controllers/pod"
)

const (
	// SigningKeySecret is the Secret with the signing keys, in the operator's namespace.
	SigningKeySecret = "sandbox-egress-signing-key" //nolint:gosec // the name of an object
	// WebhookCertSecret is where the webhook's certificate is kept and mounted from.
	WebhookCertSecret = "sandbox-egress-webhook-cert" //nolint:gosec // the name of an object
	// WebhookService is the host name of the webhook within its namespace.
	WebhookService = "sandbox-egress-webhook"
	// MutatingConfig is the name of the mutating webhook configuration.
	MutatingConfig = "sandbox-egress-mutating"
	// ValidatingConfig is that of the validating one.
	ValidatingConfig = "sandbox-egress-validating"
	// ServiceAccount is the operator's; the admission policies know it by name.
	ServiceAccount = "sandbox-egress-manager"

	leaderElectionID = "sandbox-egress-manager"
	defaultNamespace = "sandbox-egress-system"

	// maxTokenTTL is the upper bound of spec.token.ttl.
	maxTokenTTL = 24 * time.Hour
)

// Values of --cert-source.
const (
	CertSourceSelf  = "self"
	CertSourceFiles = "files"
)

// Options are the operator's settings. Build them with NewOptions.
type Options struct {
	Namespace         string
	Image             string
	ImagePullPolicy   string
	LeaderElect       bool
	MetricsAddress    string
	HealthAddress     string
	WebhookPort       int
	CertSource        string
	CertDir           string
	DNSNamespace      string
	NodeLocalDNS      []string
	MetricsNamespaces []string
	DrainTimeout      time.Duration
	KeyRotation       time.Duration
	KeyPropagation    time.Duration
	PodConcurrency    int
	LogLevel          string

	// The rest is for tests and has no flag.

	// Clock defaults to the real one, Jitter to pod.RandomJitter.
	Clock  clock.PassiveClock
	Jitter pod.Jitter
	// NewClient wraps the manager's client, for faults between it and the API server.
	NewClient client.NewClientFunc
	// Registerer takes the operator's own metrics; controller-runtime's registry by default.
	Registerer prometheus.Registerer
	// WebhookHost limits the webhook server to one address; all of them when empty.
	WebhookHost string
	// WithoutWebhooks runs the controllers alone. It has no flag: without its webhooks the
	// operator gives no sandbox an identity.
	WithoutWebhooks bool
}

// NewOptions returns the defaults.
func NewOptions() Options {
	return Options{
		Namespace:      envOr("POD_NAMESPACE", defaultNamespace),
		Image:          os.Getenv("SANDBOX_EGRESS_IMAGE"),
		LeaderElect:    true,
		MetricsAddress: ":8443",
		HealthAddress:  ":8081",
		WebhookPort:    9443,
		CertSource:     CertSourceSelf,
		CertDir:        "/certs",
		DNSNamespace:   "kube-system",
		DrainTimeout:   30 * time.Second,
		KeyRotation:    30 * 24 * time.Hour,
		KeyPropagation: 10 * time.Minute,
		PodConcurrency: 8,
		LogLevel:       "info",
		Clock:          clock.RealClock{},
		Jitter:         pod.RandomJitter,
		Registerer:     crmetrics.Registry,
	}
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// AddFlags binds the options to fs.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Namespace, "namespace", o.Namespace, "Namespace of the operator, for its Lease, signing keys and webhook certificate. Default: $POD_NAMESPACE.")
	fs.StringVar(&o.Image, "image", o.Image, "Image of the egress proxy, the relay and the start gate. Default: $SANDBOX_EGRESS_IMAGE.")
	fs.StringVar(&o.ImagePullPolicy, "image-pull-policy", o.ImagePullPolicy, "Pull policy for --image: Always, IfNotPresent or Never. Empty leaves it to Kubernetes.")
	fs.BoolVar(&o.LeaderElect, "leader-elect", o.LeaderElect, "Let only one replica run the controllers. Needed with more than one replica.")
	fs.StringVar(&o.MetricsAddress, "metrics-bind-address", o.MetricsAddress, "Address of the metrics endpoint (HTTPS; callers need get on the non-resource URL /metrics). 0 turns it off.")
	fs.StringVar(&o.HealthAddress, "health-probe-bind-address", o.HealthAddress, "Address of /healthz and /readyz.")
	fs.IntVar(&o.WebhookPort, "webhook-port", o.WebhookPort, "Port of the admission webhooks.")
	fs.StringVar(&o.CertSource, "cert-source", o.CertSource, "Where the webhook's certificate comes from: self (made and rotated by the operator) or files (put into --cert-dir by cert-manager or by hand).")
	fs.StringVar(&o.CertDir, "cert-dir", o.CertDir, "Directory with tls.crt and tls.key; with --cert-source=self the operator writes them, so it must be writable.")
	fs.StringVar(&o.DNSNamespace, "dns-namespace", o.DNSNamespace, "Namespace of the cluster's DNS servers, which sandboxes may ask.")
	fs.StringSliceVar(&o.NodeLocalDNS, "node-local-dns", o.NodeLocalDNS, "Addresses of a node-local DNS cache, as CIDRs, for example 169.254.20.10/32.")
	fs.StringSliceVar(&o.MetricsNamespaces, "metrics-namespaces", o.MetricsNamespaces, "Namespaces that may scrape the proxies' metrics.")
	fs.DurationVar(&o.DrainTimeout, "proxy-drain-timeout", o.DrainTimeout, "How long a proxy that is going away lets open tunnels finish.")
	fs.DurationVar(&o.KeyRotation, "key-rotation-interval", o.KeyRotation, "How long a signing key signs.")
	fs.DurationVar(&o.KeyPropagation, "key-propagation", o.KeyPropagation, "How long a signing key is published before it signs.")
	fs.IntVar(&o.PodConcurrency, "pod-concurrency", o.PodConcurrency, "Sandboxes that are looked after at the same time.")
	fs.StringVar(&o.LogLevel, "log-level", o.LogLevel, "debug, info, warn or error.")
}

// parsed are the options in the form that the parts want them.
type parsed struct {
	nodeLocalDNS []netip.Prefix
	level        slog.Level
}

// Validate reports everything that is wrong, each with the flag that it is about.
func (o *Options) Validate() error {
	_, err := o.parse()
	return err
}

func (o *Options) parse() (parsed, error) {
	var p parsed
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: "+format, append([]any{flag}, args...)...))
	}
	if o.Image == "" {
		bad("image", "is missing: name the image that holds egress-proxy and egress-relay")
	}
	switch corev1.PullPolicy(o.ImagePullPolicy) {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		bad("image-pull-policy", "%q must be Always, IfNotPresent or Never", o.ImagePullPolicy)
	}
	for flag, name := range map[string]string{"namespace": o.Namespace, "dns-namespace": o.DNSNamespace} {
		if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
			bad(flag, "%q is not a namespace name: %s", name, msgs[0])
		}
	}
	for _, name := range o.MetricsNamespaces {
		if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
			bad("metrics-namespaces", "%q is not a namespace name: %s", name, msgs[0])
		}
	}
	for _, text := range o.NodeLocalDNS {
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			bad("node-local-dns", "%q is not a CIDR such as 169.254.20.10/32", text)
		case !prefix.IsSingleIP():
			bad("node-local-dns", "%q must be one address (/32 or /128): sandboxes may send to all of it", text)
		default:
			p.nodeLocalDNS = append(p.nodeLocalDNS, prefix)
		}
	}
	if o.CertSource != CertSourceSelf && o.CertSource != CertSourceFiles {
		bad("cert-source", "%q must be self or files", o.CertSource)
	}
	if o.CertDir == "" && !o.WithoutWebhooks {
		bad("cert-dir", "is missing")
	}
	if o.WebhookPort < 1 || o.WebhookPort > 65535 {
		bad("webhook-port", "%d must be between 1 and 65535", o.WebhookPort)
	}
	if o.DrainTimeout < 0 || o.DrainTimeout > time.Hour {
		bad("proxy-drain-timeout", "%s must be between 0s and 1h", o.DrainTimeout)
	}
	if o.KeyPropagation < 0 || o.KeyRotation <= o.KeyPropagation {
		bad("key-rotation-interval", "%s must be longer than --key-propagation %s, which must not be negative", o.KeyRotation, o.KeyPropagation)
	}
	if o.PodConcurrency < 1 || o.PodConcurrency > 256 {
		bad("pod-concurrency", "%d must be between 1 and 256", o.PodConcurrency)
	}
	if err := p.level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		bad("log-level", "%q must be debug, info, warn or error", o.LogLevel)
	}
	return p, errors.Join(errs...)
}

// Level is the log level.
func (o *Options) Level() slog.Level {
	p, _ := o.parse()
	return p.level
}
