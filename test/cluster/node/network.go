package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/host"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/namespaces"
)

// policyChain receives every packet that leaves a pod or goes to one.
const policyChain = "NETPOL"

// makeNetwork joins the two network namespaces by a cable and gives them their
// addresses, routes and filter rules.
func (c *Cluster) makeNetwork(ctx context.Context, cluster, world namespaces.Of) error {
	err := cluster.Do(func() error {
		steps := [][]string{
			{"ip", "link", "set", "lo", "up"},
			{"ip", "link", "add", "uplink", "type", "veth", "peer", "name", "node", "netns", strconv.Itoa(world.PID)},
			{"ip", "address", "add", NodeIP + "/30", "dev", "uplink"},
			{"ip", "link", "set", "uplink", "up"},
			{"ip", "route", "add", "default", "via", InternetIP},
			// Without it a packet to an address that no pod has would leave for the
			// internet. Service addresses must have a route, though: the node's own
			// packets are routed before kube-proxy's rules translate them.
			{"ip", "route", "add", "unreachable", PodCIDR},
		}
		if err := runAll(ctx, steps); err != nil {
			return err
		}
		sysctls := map[string]string{
			"net/ipv4/ip_forward": "1",
			// A pod with CAP_NET_RAW must not pass for another one.
			"net/ipv4/conf/all/rp_filter":     "1",
			"net/ipv4/conf/default/rp_filter": "1",
			// A connection that conntrack has forgotten stays cut: its packets are
			// not taken for a new one, in whichever direction they go.
			"net/netfilter/nf_conntrack_tcp_loose": "0",
			"net/ipv6/conf/all/disable_ipv6":       "1",
			"net/ipv6/conf/default/disable_ipv6":   "1",
		}
		if err := setSysctls(sysctls); err != nil {
			return err
		}
		return makeFilter(ctx)
	})
	if err != nil {
		return fmt.Errorf("network of the cluster: %w", err)
	}

	err = world.Do(func() error {
		steps := [][]string{
			{"ip", "link", "set", "lo", "up"},
			{"ip", "address", "add", InternetIP + "/30", "dev", "node"},
			{"ip", "link", "set", "node", "up"},
			// No address translation on the way: a server sees who called.
			{"ip", "route", "add", PodCIDR, "via", NodeIP},
		}
		for _, address := range append(internet.Hosts(), internet.Resolvers()...) {
			steps = append(steps, []string{"ip", "address", "add", address + "/32", "dev", "lo"})
		}
		return runAll(ctx, steps)
	})
	if err != nil {
		return fmt.Errorf("network of the internet: %w", err)
	}
	return nil
}

// makeFilter hands new connections from and to pods to the enforcer. The
// mangle table is after kube-proxy's address translation, so that Services
// appear as their pods, and before its filter rules, which accept some packets
// for good. Packets for the node itself come through INPUT.
func makeFilter(ctx context.Context) error {
	steps := [][]string{
		{"iptables", "-w", "-t", "mangle", "-N", policyChain},
		{"iptables", "-w", "-t", "mangle", "-A", "FORWARD", "-j", policyChain},
		{"iptables", "-w", "-t", "mangle", "-A", "INPUT", "-s", PodCIDR, "-j", policyChain},
		// The cluster is IPv4 only, and so is the enforcer.
		{"ip6tables", "-w", "-t", "mangle", "-A", "FORWARD", "-j", "DROP"},
		{"ip6tables", "-w", "-t", "mangle", "-A", "INPUT", "!", "-i", "lo", "-j", "DROP"},
	}
	if err := runAll(ctx, steps); err != nil {
		return err
	}
	if err := runAll(ctx, enforce); err != nil {
		return fmt.Errorf("this kernel cannot hand packets to a program (xt_NFQUEUE and xt_conntrack are needed): %w", err)
	}
	return nil
}

// enforce has no --queue-bypass: without an enforcer the packets are dropped.
var enforce = [][]string{
	{"iptables", "-w", "-t", "mangle", "-F", policyChain},
	{"iptables", "-w", "-t", "mangle", "-A", policyChain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"},
	{"iptables", "-w", "-t", "mangle", "-A", policyChain, "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", queueNumber},
}

var doNotEnforce = [][]string{{"iptables", "-w", "-t", "mangle", "-F", policyChain}}

// SetEnforcement switches the enforcement of NetworkPolicies on or off, as a
// cluster whose network plug-in ignores them. Connections that were made while
// it was off are checked when it comes back.
func (c *Cluster) SetEnforcement(ctx context.Context, on bool) error {
	ns, err := c.namespaces(clusterHolder)
	if err != nil {
		return err
	}
	steps := doNotEnforce
	if on {
		steps = enforce
	}
	if err := ns.Do(func() error { return runAll(ctx, steps) }); err != nil {
		return fmt.Errorf("enforcement: %w", err)
	}
	if !on {
		return nil
	}
	id, err := c.process(Enforcer)
	if err != nil {
		return err
	}
	return id.Signal(recheck)
}

// Enforcement says whether NetworkPolicies are enforced.
func (c *Cluster) Enforcement(ctx context.Context) (bool, error) {
	ns, err := c.namespaces(clusterHolder)
	if err != nil {
		return false, err
	}
	var out []byte
	err = ns.Do(func() (err error) {
		out, err = command(ctx, "iptables", "-w", "-t", "mangle", "-S", policyChain)
		return err
	})
	return strings.Contains(string(out), "NFQUEUE"), err
}

func setSysctls(values map[string]string) error {
	for name, value := range values {
		path := filepath.Join("/proc/sys", name)
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			// Without IPv6 in the kernel there is nothing to switch off.
			if os.IsNotExist(err) && strings.HasPrefix(name, "net/ipv6/") {
				continue
			}
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil
}

func runAll(ctx context.Context, commands [][]string) error {
	for _, args := range commands {
		if _, err := command(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := host.LookPath(name)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return out, nil
}
