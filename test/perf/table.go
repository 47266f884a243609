package main

import (
	"fmt"
	"slices"
	"strings"
)

// metric is one row of the result.
type metric struct {
	name, unit string
	workload   string
	value      func(s sample) float64
	// added: what the target adds to no proxy at all.
	added bool
	// target for the ratio to Squid; atLeast or at most.
	goal    float64
	atLeast bool
}

var metrics = []metric{
	{name: "tunnels per second, 16 clients", workload: "tunnels, 16 clients", value: rate, goal: 1.5, atLeast: true},
	{name: "tunnels per second, 256 clients", workload: "tunnels, 256 clients", value: rate, goal: 1.5, atLeast: true},
	{name: "throughput, 1 stream", unit: "MiB/s", workload: "throughput, 1 stream", value: throughput, goal: 1.5, atLeast: true},
	{name: "throughput, 64 streams", unit: "MiB/s", workload: "throughput, 64 streams", value: throughput, goal: 1.5, atLeast: true},
	{name: "CPU seconds per GiB, 1 stream", unit: "s", workload: "throughput, 1 stream", value: perGiB, goal: 0.6},
	{name: "CPU seconds per GiB, 64 streams", unit: "s", workload: "throughput, 64 streams", value: perGiB, goal: 0.6},
	{name: "plain requests per second, 64 clients", workload: "plain requests, 64 clients", value: rate, goal: 1.2, atLeast: true},
	{name: "plain request, added p50", unit: "µs", workload: "latency of a plain request", value: p50, added: true},
	{name: "plain request, added p99", unit: "µs", workload: "latency of a plain request", value: p99, added: true},
	{name: "CONNECT, added p50", unit: "µs", workload: "latency of a CONNECT", value: p50, added: true},
	{name: "CONNECT, added p99", unit: "µs", workload: "latency of a CONNECT", value: p99, added: true, goal: 1},
	{name: "memory per idle tunnel", unit: "KiB", workload: idleWorkload, value: func(s sample) float64 { return s.idleBytes / 1024 }, goal: 0.7},
	{name: "CPU per tunnel, 16 clients", unit: "µs", workload: "tunnels, 16 clients", value: perOperation},
	{name: "of that in the kernel", unit: "µs", workload: "tunnels, 16 clients", value: systemPerOperation},
	{name: "CPU per plain request, 64 clients", unit: "µs", workload: "plain requests, 64 clients", value: perOperation},
	{name: "processor busy, tunnels, 16 clients", unit: "%", workload: "tunnels, 16 clients", value: busy},
	{name: "processor busy, 64 streams", unit: "%", workload: "throughput, 64 streams", value: busy},
	{name: "processor busy, plain requests", unit: "%", workload: "plain requests, 64 clients", value: busy},
}

func rate(s sample) float64         { return float64(s.out.Operations) / s.out.Wall }
func throughput(s sample) float64   { return float64(s.out.Bytes) / s.out.Wall / (1 << 20) }
func perGiB(s sample) float64       { return s.out.CPU / (float64(s.out.Bytes) / (1 << 30)) }
func perOperation(s sample) float64 { return s.out.CPU * 1e6 / float64(max(1, s.out.Operations)) }
func systemPerOperation(s sample) float64 {
	return s.out.System * 1e6 / float64(max(1, s.out.Operations))
}
func p50(s sample) float64  { return s.out.P50 * 1e6 }
func p99(s sample) float64  { return s.out.P99 * 1e6 }
func busy(s sample) float64 { return 100 * s.out.CPU / s.out.Wall }

// row is a metric with the medians of its values and of its per-run ratios.
type row struct {
	metric
	direct, ours, squid float64
	hasDirect           bool
	ratio               float64
	// low and high are the smallest and the largest ratio of a run.
	low, high float64
}

type table []row

// tabulate takes medians. A ratio compares values of the same run only.
func tabulate(samples []sample) table {
	byRun := map[string]map[target]map[int]sample{}
	for _, s := range samples {
		if byRun[s.workload] == nil {
			byRun[s.workload] = map[target]map[int]sample{}
		}
		if byRun[s.workload][s.target] == nil {
			byRun[s.workload][s.target] = map[int]sample{}
		}
		byRun[s.workload][s.target][s.run] = s
	}
	var t table
	for _, m := range metrics {
		if at := byRun[m.workload]; at != nil {
			t = append(t, m.row(at))
		}
	}
	return t
}

func (m metric) row(at map[target]map[int]sample) row {
	r := row{metric: m}
	var directs, ourses, squids, ratios []float64
	for run, o := range at[ours] {
		mine, theirs := m.value(o), m.value(at[squid][run])
		if d, ok := at[direct][run]; ok {
			base := m.value(d)
			directs = append(directs, base)
			if m.added {
				mine, theirs = mine-base, theirs-base
			}
		}
		ourses, squids = append(ourses, mine), append(squids, theirs)
		ratios = append(ratios, mine/theirs)
	}
	r.ours, r.squid, r.ratio = median(ourses), median(squids), median(ratios)
	r.low, r.high = slices.Min(ratios), slices.Max(ratios)
	// No proxy, no processor time of a proxy.
	if r.hasDirect = len(directs) > 0 && median(directs) > 0; r.hasDirect {
		r.direct = median(directs)
	}
	return r
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

func (r row) met() bool {
	if r.atLeast {
		return r.ratio >= r.goal
	}
	return r.ratio <= r.goal
}

func (r row) goalText() string {
	switch {
	case r.goal == 0:
		return ""
	case r.atLeast:
		return fmt.Sprintf("≥ %.1f", r.goal)
	}
	return fmt.Sprintf("≤ %.1f", r.goal)
}

func (r row) verdict() string {
	switch {
	case r.goal == 0:
		return ""
	case r.met():
		return "met"
	}
	return "missed"
}

func (r row) cells() []string {
	base := ""
	if r.hasDirect {
		base = number(r.direct, r.unit)
	}
	return []string{
		r.name, base, number(r.ours, r.unit), number(r.squid, r.unit),
		fmt.Sprintf("%.2f", r.ratio), fmt.Sprintf("%.2f to %.2f", r.low, r.high), r.goalText(), r.verdict(),
	}
}

func number(v float64, unit string) string {
	format := "%.0f"
	switch {
	case v < 10:
		format = "%.2f"
	case v < 100:
		format = "%.1f"
	}
	return strings.TrimSpace(fmt.Sprintf(format, v) + " " + unit)
}

var header = []string{"", "direct", string(ours), string(squid), "ratio", "of the runs", "target", ""}

// text is the table for a terminal.
func (t table) text() string {
	lines := [][]string{header}
	for _, r := range t {
		lines = append(lines, r.cells())
	}
	width := make([]int, len(header))
	for _, l := range lines {
		for i, c := range l {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		for i, c := range l {
			b.WriteString(c + strings.Repeat(" ", width[i]-len([]rune(c))+2))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// document is docs/performance.md.
func (t table) document(c config, m machine, squidVersion string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance

Generated by `+"`make bench` (`go run ./test/perf`)"+`; do not edit. The egress-proxy beside Squid %[1]s
(Debian's package) and beside no proxy at all, in one run, with the same payloads. A ratio is the
egress-proxy's value divided by Squid's of the same run; the table has medians over %[2]d runs.

Machine: %[3]s.

| `, squidVersion, c.runs, m)
	b.WriteString(strings.Join(header, " | ") + " |\n|" + strings.Repeat(" --- |", len(header)) + "\n")
	for _, r := range t {
		b.WriteString("| " + strings.Join(r.cells(), " | ") + " |\n")
	}
	b.WriteString(t.bound())
	fmt.Fprintf(&b, `
## How it is measured

- Load generator, proxies and origin are in three network namespaces joined by veth pairs.
- The measured proxy has processor %[1]d to itself, load generator and origin share processor %[2]d. Both
  proxies run all the time; the one that is not measured is idle. "Processor busy" says how much of
  its processor the proxy used: well below 100 %%, the load generator is the bound and the ratio is
  understated.
- The egress-proxy runs as it ships (GOMAXPROCS is 1, from its processor set), standalone, with
  everything on: ES256 token on every request and every CONNECT (first seen, then cached), binding to
  the source address, server name check of every tunnel, address guard, limits (out of reach), two
  audit records per request as JSON on standard output, which is a file.
- Squid runs as one process (`+"`-N`"+`), with a dstdomain allowlist, no cache, no authentication, and its
  access log (one line per request) through the stdio module with buffering, its cheapest.
- A tunnel is: connect, CONNECT, 200, a real ClientHello, the origin's first flight of 1,200 bytes,
  close. A plain request is a keep-alive GET with a 1 KiB body; the one to the egress-proxy carries
  the token, about 900 bytes more. Streams are tunnels after the handshake; the origin sends from
  memory with sendfile(2), the load generator drops in the kernel.
- Latency is measured with one client. That of a CONNECT is the time from connect(2) to the origin's
  first flight. "Added" is the percentile through the proxy less that of the direct way.
- Processor time is the whole process's, system time included. Memory is the growth of the resident
  set with %[3]d open tunnels, %[4]s after the last was opened.
- Each workload of a run meets all three one after the other, in an order that changes per run, for
  %[5]s after %[6]s of warm-up.
`, proxyCPU, loadCPU, c.idleTunnels, settle, c.duration, c.warmUp)
	return b.String()
}

// bound says what a missed number of tunnels per second comes from.
func (t table) bound() string {
	missed := false
	var total, system row
	for _, r := range t {
		switch {
		case r.goal > 0 && !r.met() && strings.HasPrefix(r.name, "tunnels per second"):
			missed = true
		case r.name == "CPU per tunnel, 16 clients":
			total = r
		case r.name == "of that in the kernel":
			system = r
		}
	}
	if !missed || system.ours == 0 {
		return ""
	}
	return fmt.Sprintf(`
What bounds tunnels per second: a tunnel sets up and takes down two TCP connections, and half-closes
them in turn. Of the egress-proxy's %.0f µs per tunnel the kernel takes %.0f µs (of Squid's %.0f µs, %.0f µs).
If token, policy, server name check, audit log and copying cost nothing at all, the ratio would be %.2f.
`, total.ours, system.ours, total.squid, system.squid, total.squid/system.ours)
}
