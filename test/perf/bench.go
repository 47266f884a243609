package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
	"github.com/sandbox-egress/sandbox-egress/test/perf/peer"
)

// Documentation addresses (RFC 5737) and names.
const (
	clientIP   = "192.0.2.2"
	proxyIP    = "192.0.2.1"
	uplinkIP   = "203.0.113.1"
	originIP   = "203.0.113.10"
	dnsIP      = "203.0.113.53"
	directFrom = "198.51.100.2"
	directIP   = "198.51.100.10"
	originHost = "origin.example"

	oursPort  = 8443
	squidPort = 3128
	pprofAddr = "127.0.0.1:6060"

	// The proxy that is measured has one processor to itself; load generator and origin
	// share the other. Both ends cost much less than a proxy does.
	proxyCPU, loadCPU = 0, 1

	openFiles = 16384
	// priority keeps other work on the machine out of the measurement, for all alike.
	priority = -15
	// settle is how long a proxy may give memory back before it is looked at.
	settle = 3 * time.Second
)

// target is what the load goes to.
type target string

const (
	direct target = "direct"
	ours   target = "egress-proxy"
	squid  target = "Squid"
)

var targets = []target{direct, ours, squid}

type workload struct {
	name    string
	mode    peer.Mode
	clients int
}

var workloads = []workload{
	{"tunnels, 16 clients", peer.Tunnels, 16},
	{"tunnels, 256 clients", peer.Tunnels, 256},
	{"throughput, 1 stream", peer.Streams, 1},
	{"throughput, 64 streams", peer.Streams, 64},
	{"plain requests, 64 clients", peer.Plain, 64},
	{"latency of a plain request", peer.Plain, 1},
	{"latency of a CONNECT", peer.Tunnels, 1},
}

// minLine is less than the shortest line of either log.
const minLine = 40

const idleWorkload = "idle tunnels"

// sample is one workload of one run against one target.
type sample struct {
	workload string
	target   target
	run      int
	out      peer.Outcome
	// idleBytes is the resident memory per idle tunnel.
	idleBytes float64
}

type bench struct {
	config
	scratch                 string
	lab                     *lab.Lab
	client, middle, outside *lab.Namespace
	stopDNS                 func()
	originProcess           *lab.Process
	oursProcess, squidProc  *lab.Process
	binary                  string
	issuer                  *lab.Issuer
	credentials             string
	squidVersion            string
}

func newBench(ctx context.Context, scratch string, c config) (*bench, error) {
	b := &bench{config: c, scratch: scratch}
	if err := b.build(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) build(ctx context.Context) (err error) {
	if b.lab, err = lab.New(ctx); err != nil {
		return err
	}
	if b.squidVersion, err = installSquid(ctx); err != nil {
		return err
	}
	if b.binary, err = lab.BuildProxy(ctx, b.scratch); err != nil {
		return err
	}
	if b.issuer, err = lab.NewIssuer(b.scratch); err != nil {
		return err
	}
	tok, err := b.issuer.Token("bench", originHost)
	if err != nil {
		return err
	}
	b.credentials = "Basic " + base64.StdEncoding.EncodeToString([]byte("container_bench:jwt_"+tok))
	if err := b.wire(ctx); err != nil {
		return err
	}
	return b.startOrigin(ctx)
}

func (b *bench) wire(ctx context.Context) (err error) {
	// Short tunnels would run out of ports: a port in TIME_WAIT can be used again after a
	// second.
	sysctls := map[string]string{"net.ipv4.ip_local_port_range": "1024 65535", "net.ipv4.tcp_tw_reuse": "1"}
	for _, n := range []struct {
		name string
		at   **lab.Namespace
	}{{"client", &b.client}, {"proxy", &b.middle}, {"origin", &b.outside}} {
		if *n.at, err = b.lab.Namespace(ctx, n.name, sysctls); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		a   *lab.Namespace
		toA []string
		b   *lab.Namespace
		toB []string
	}{
		{b.client, []string{clientIP}, b.middle, []string{proxyIP}},
		{b.middle, []string{uplinkIP}, b.outside, []string{originIP, dnsIP}},
		{b.client, []string{directFrom}, b.outside, []string{directIP}},
	} {
		if err := b.lab.Link(ctx, l.a, prefixes(l.toA), l.b, prefixes(l.toB)); err != nil {
			return err
		}
	}
	resolv, err := lab.ResolvConf(b.scratch, netip.MustParseAddr(dnsIP))
	if err != nil {
		return err
	}
	b.middle.Bind(resolv, "/etc/resolv.conf")
	b.stopDNS, err = b.outside.ServeDNS(ctx, dnsIP+":53", map[string]netip.Addr{originHost: netip.MustParseAddr(originIP)})
	return err
}

func prefixes(addresses []string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addresses {
		out = append(out, netip.PrefixFrom(netip.MustParseAddr(a), 24))
	}
	return out
}

func (b *bench) startProxies(ctx context.Context, run int) (err error) {
	args := []string{
		b.binary, fmt.Sprintf("--listen=%s:%d", proxyIP, oursPort), "--admin-listen=", "--jwks-file=" + b.issuer.JWKS,
		"--private-network=203.0.113.0/24", "--drain-delay=0s", "--drain-timeout=1s",
		// The limits are on, and out of reach.
		"--limit-connections=1000000", "--limit-requests-per-second=10000000", "--max-connections-per-source=60000",
	}
	if b.profile != "" {
		args = append(args, "--pprof-listen="+pprofAddr)
	}
	options := lab.Options{CPU: proxyCPU, Files: openFiles, Nice: priority, Env: []string{"PATH=" + os.Getenv("PATH")}}
	if b.oursProcess, err = b.middle.Start(ctx, fmt.Sprintf("egress-proxy-%d", run), b.scratch, options, args...); err != nil {
		return err
	}
	if b.squidProc, err = b.startSquid(ctx, run, options); err != nil {
		return err
	}
	return errors.Join(
		b.oursProcess.Ready(ctx, b.client, b.address(ours).String()),
		b.squidProc.Ready(ctx, b.client, b.address(squid).String()))
}

func (b *bench) stopProxies() error {
	var errs []error
	for _, p := range []**lab.Process{&b.oursProcess, &b.squidProc} {
		if *p == nil {
			continue
		}
		if ended, err := (*p).Ended(); ended {
			errs = append(errs, fmt.Errorf("a proxy ended during the run: %w", err))
		} else {
			errs = append(errs, (*p).Stop(5*time.Second))
		}
		*p = nil
	}
	return errors.Join(errs...)
}

func (b *bench) close() error {
	errs := []error{b.stopProxies()}
	if b.originProcess != nil {
		errs = append(errs, b.originProcess.Stop(time.Second))
	}
	if b.stopDNS != nil {
		b.stopDNS()
	}
	if b.lab != nil {
		errs = append(errs, b.lab.Close())
	}
	return errors.Join(errs...)
}

func (b *bench) address(t target) netip.AddrPort {
	switch t {
	case ours:
		return netip.AddrPortFrom(netip.MustParseAddr(proxyIP), oursPort)
	case squid:
		return netip.AddrPortFrom(netip.MustParseAddr(proxyIP), squidPort)
	}
	return netip.AddrPort{}
}

// describe makes the load of a workload against a target.
func (b *bench) describe(w workload, t target) peer.Load {
	l := peer.Load{
		Mode: w.mode, Clients: w.clients, Proxy: b.address(t), Host: originHost,
		DirectTunnels: netip.MustParseAddrPort(directIP + ":443"), DirectPlain: netip.MustParseAddrPort(directIP + ":80"),
		WarmUp: b.warmUp, Duration: b.duration,
	}
	switch t {
	case ours:
		l.Credentials, l.Watch = b.credentials, b.oursProcess.PID
	case squid:
		l.Watch = b.squidProc.PID
	}
	return l
}

// measure does all runs. In every run each workload meets all targets one after the other,
// in another order each time, so that what else the machine does hits them alike.
func (b *bench) measure(ctx context.Context) ([]sample, error) {
	var samples []sample
	for run := range b.runs {
		if err := b.startProxies(ctx, run); err != nil {
			return nil, err
		}
		more, err := b.once(ctx, run)
		samples = append(samples, more...)
		if err == nil {
			err = b.checkLogs(more)
		}
		if err := errors.Join(err, b.stopProxies()); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

func (b *bench) once(ctx context.Context, run int) ([]sample, error) {
	var samples []sample
	order := append(slices.Clone(targets[run%len(targets):]), targets[:run%len(targets)]...)
	// Idle tunnels first, while the proxies are fresh.
	if strings.Contains(idleWorkload, b.only) {
		for _, t := range order {
			if t == direct {
				continue
			}
			s, err := b.idle(ctx, t)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", idleWorkload, t, err)
			}
			s.run = run
			fmt.Printf("run %d  %-28s %-13s %.1f KiB each\n", run+1, idleWorkload, t, s.idleBytes/1024)
			samples = append(samples, s)
		}
	}
	for _, w := range workloads {
		if !strings.Contains(w.name, b.only) {
			continue
		}
		for _, t := range order {
			finish := b.startProfile(ctx, w, t, run)
			out, err := b.load(ctx, b.describe(w, t))
			if err := errors.Join(err, finish()); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", w.name, t, err)
			}
			if out.Errors > 0 {
				return nil, fmt.Errorf("%s, %s: %d errors, the first: %s", w.name, t, out.Errors, out.FirstError)
			}
			s := sample{workload: w.name, target: t, run: run, out: out}
			fmt.Printf("run %d  %-28s %-13s %s\n", run+1, w.name, t, s.summary())
			samples = append(samples, s)
		}
	}
	return samples, nil
}

func (s sample) summary() string {
	o := s.out
	return fmt.Sprintf("%9.0f/s  %8.0f MiB/s  p50 %6.0f µs  p99 %7.0f µs  proxy %3.0f %%  load %3.0f %%",
		float64(o.Operations)/o.Wall, float64(o.Bytes)/o.Wall/(1<<20), o.P50*1e6, o.P99*1e6, 100*o.CPU/o.Wall, 100*o.LoadCPU/o.Wall)
}

// idle opens tunnels that then say nothing, and takes the growth of the resident memory.
func (b *bench) idle(ctx context.Context, t target) (sample, error) {
	s := sample{workload: idleWorkload, target: t}
	pid := b.oursProcess.PID
	if t == squid {
		pid = b.squidProc.PID
	}
	before, err := resident(pid)
	if err != nil {
		return s, err
	}
	l := b.describe(workload{mode: peer.Idle, clients: b.idleTunnels}, t)
	err = b.hold(ctx, l, func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		after, err := resident(pid)
		s.idleBytes = float64(after-before) / float64(b.idleTunnels)
		return err
	})
	return s, err
}

// checkLogs makes sure that both proxies logged what they did, as they were told to.
func (b *bench) checkLogs(samples []sample) error {
	for t, file := range map[target]string{ours: b.oursProcess.Log, squid: b.squidLog()} {
		var operations int64
		for _, s := range samples {
			if s.target == t {
				operations += s.out.Operations
			}
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		if info.Size() < operations*minLine {
			return fmt.Errorf("the log of %s has %d bytes after %d operations: it was not written", t, info.Size(), operations)
		}
		if err := os.Truncate(file, 0); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) squidLog() string { return filepath.Join(b.scratch, "squid", "access.log") }

// startProfile takes a processor profile of the egress-proxy during a workload.
func (b *bench) startProfile(ctx context.Context, w workload, t target, run int) (finish func() error) {
	if b.profile == "" || t != ours || run > 0 {
		return func() error { return nil }
	}
	name := strings.NewReplacer(" ", "-", ",", "").Replace(w.name) + ".pprof"
	seconds := max(1, int((b.warmUp + b.duration).Seconds()))
	cmd := b.middle.Command(ctx, lab.Options{CPU: loadCPU, Env: os.Environ()},
		"curl", "-sS", "-f", "-o", filepath.Join(b.profile, name), fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", pprofAddr, seconds))
	if err := cmd.Start(); err != nil {
		return func() error { return err }
	}
	return func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("the profile: %w", err)
		}
		return nil
	}
}

func installSquid(ctx context.Context) (version string, err error) {
	if _, err := exec.LookPath("squid"); err != nil {
		fmt.Println("installing squid")
		for _, args := range [][]string{{"-qq", "update"}, {"-qq", "-y", "--no-install-recommends", "install", "squid"}} {
			cmd := exec.CommandContext(ctx, "apt-get", args...)
			// invoke-rc.d(8) starts no service in runlevel 1.
			cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("apt-get: %w: %s", err, out)
			}
		}
	}
	out, err := exec.CommandContext(ctx, "squid", "-v").Output()
	if err != nil {
		return "", fmt.Errorf("squid -v: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	_, version, _ = strings.Cut(line, "Version ")
	return strings.TrimSpace(version), nil
}
