// Package node starts and stops a single-node Kubernetes cluster. Everything
// of it runs in one network namespace without an uplink, next to a second one
// that plays the internet, and in a mount namespace of its own, so that its
// end takes its interfaces, rules and mounts along.
package node

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"time"
)

// Fixed parameters of the cluster. The addresses cannot collide with the
// host's, because the namespace has no connection to it.
const (
	NodeName = "sandbox-node"
	// NodeIP is the node's only address, InternetIP the other end of its only
	// cable.
	NodeIP     = "10.88.0.1"
	InternetIP = "10.88.0.2"

	PodCIDR     = "10.244.0.0/16"
	ServiceCIDR = "10.96.0.0/12"
	// DNSIP is the ClusterIP of Service kube-system/kube-dns, APIServerIP that
	// of default/kubernetes.
	DNSIP       = "10.96.0.10"
	APIServerIP = "10.96.0.1"

	// PauseImage and CoreDNSImage are made from the binaries that build made.
	PauseImage   = "sandbox-egress.test/pause:1"
	CoreDNSImage = "sandbox-egress.test/coredns:1"

	// DefaultStateDir holds sockets, logs, credentials and process identities;
	// DefaultDataDir what is large. Both go with Down.
	DefaultStateDir = "/run/sandbox-egress-cluster"
	DefaultDataDir  = "/var/lib/sandbox-egress-cluster"

	apiServerURL = "https://" + NodeIP + ":6443"
	queueNumber  = "100"
	// marker is set in the environment of every process of the cluster, to the
	// state directory; Down finds by it what a crash left without a record.
	marker = "SANDBOX_EGRESS_CLUSTER"
)

// Config of a cluster. The zero value is the default cluster.
type Config struct {
	StateDir, DataDir string
	// Root is the repository root, whose modules are built; "" finds it from
	// the working directory.
	Root string
	// Cache is the build cache; "" means build.DefaultCache.
	Cache string
	// NoInstall forbids installing missing Debian packages by apt-get.
	NoInstall bool
	// Log receives progress, one line each.
	Log func(line string)
	// Timeout bounds each wait for a component, 2 minutes by default.
	Timeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.Log == nil {
		c.Log = func(string) {}
	}
	return c
}

// cgroup is the name of the cluster's cgroup in every hierarchy.
func (c Config) cgroup() string {
	const name = "sandbox-egress-cluster"
	if c.StateDir == DefaultStateDir {
		return name
	}
	sum := sha256.Sum256([]byte(c.StateDir))
	return name + "-" + hex.EncodeToString(sum[:4])
}

// state and data join paths below the two directories.
func (c *Cluster) state(elem ...string) string {
	return filepath.Join(append([]string{c.config.StateDir}, elem...)...)
}

func (c *Cluster) data(elem ...string) string {
	return filepath.Join(append([]string{c.config.DataDir}, elem...)...)
}
