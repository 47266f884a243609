package managercmd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandbox-egress/sandbox-egress/internal/managercmd"
)

func valid() managercmd.Options {
	o := managercmd.NewOptions()
	o.Image = "example.test/sandbox-egress:1"
	return o
}

func TestTheDefaultsAreValidOnceThereIsAnImage(t *testing.T) {
	o := valid()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesTheFlag(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*managercmd.Options)
		want   string
	}{
		"no image":                    {func(o *managercmd.Options) { o.Image = "" }, "--image: is missing"},
		"pull policy":                 {func(o *managercmd.Options) { o.ImagePullPolicy = "Sometimes" }, `--image-pull-policy: "Sometimes"`},
		"namespace":                   {func(o *managercmd.Options) { o.Namespace = "Not_A_Name" }, `--namespace: "Not_A_Name"`},
		"DNS namespace":               {func(o *managercmd.Options) { o.DNSNamespace = "" }, "--dns-namespace"},
		"metrics namespace":           {func(o *managercmd.Options) { o.MetricsNamespaces = []string{"a", "b/c"} }, `--metrics-namespaces: "b/c"`},
		"node-local DNS is no CIDR":   {func(o *managercmd.Options) { o.NodeLocalDNS = []string{"169.254.20.10"} }, "--node-local-dns"},
		"node-local DNS is a network": {func(o *managercmd.Options) { o.NodeLocalDNS = []string{"169.254.0.0/16"} }, "must be one address"},
		"cert source":                 {func(o *managercmd.Options) { o.CertSource = "magic" }, `--cert-source: "magic"`},
		"cert dir":                    {func(o *managercmd.Options) { o.CertDir = "" }, "--cert-dir: is missing"},
		"webhook port":                {func(o *managercmd.Options) { o.WebhookPort = 0 }, "--webhook-port: 0"},
		"drain timeout":               {func(o *managercmd.Options) { o.DrainTimeout = -time.Second }, "--proxy-drain-timeout: -1s"},
		"rotation before propagation": {func(o *managercmd.Options) { o.KeyRotation = time.Minute }, "--key-rotation-interval: 1m0s"},
		"concurrency":                 {func(o *managercmd.Options) { o.PodConcurrency = 0 }, "--pod-concurrency: 0"},
		"log level":                   {func(o *managercmd.Options) { o.LogLevel = "loud" }, `--log-level: "loud"`},
	} {
		t.Run(name, func(t *testing.T) {
			o := valid()
			tc.change(&o)
			err := o.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Validate = %v, want it to say %q", err, tc.want)
			}
		})
	}
}

func TestValidateReportsEverythingAtOnce(t *testing.T) {
	o := valid()
	o.Image, o.LogLevel = "", "loud"
	err := o.Validate()
	if err == nil || !strings.Contains(err.Error(), "--image") || !strings.Contains(err.Error(), "--log-level") {
		t.Errorf("Validate = %v", err)
	}
}

func TestFlagsSetWhatTheyName(t *testing.T) {
	o := valid()
	fs := pflag.NewFlagSet("manager", pflag.ContinueOnError)
	o.AddFlags(fs)
	err := fs.Parse([]string{"--image=x", "--leader-elect=false", "--node-local-dns=169.254.20.10/32,fd00::10/128", "--metrics-namespaces=a,b", "--key-rotation-interval=24h", "--cert-source=files"})
	if err != nil {
		t.Fatal(err)
	}
	if o.Image != "x" || o.LeaderElect || len(o.NodeLocalDNS) != 2 || len(o.MetricsNamespaces) != 2 || o.KeyRotation != 24*time.Hour || o.CertSource != "files" {
		t.Errorf("%+v", o)
	}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}
