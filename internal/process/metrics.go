package process

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

// Metrics are the counters of one server, in a registry of their own. Labels are
// bounded: no ids, paths or commands.
type Metrics struct {
	registry *prometheus.Registry
	started  *prometheus.CounterVec
	finished *prometheus.CounterVec
	running  prometheus.Gauge
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	lost     prometheus.Counter
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	stdout   prometheus.Counter
	stderr   prometheus.Counter
}

// NewMetrics registers everything once.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_api_processes_started_total", Help: "Processes started, by kind (execute, process)."}, []string{"kind"}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_api_processes_finished_total",
			Help: "Processes that ended, by kind and outcome (ok, failed, signaled, timeout, oom, killed)."}, []string{"kind", "outcome"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sandbox_api_processes_running", Help: "Process trees that hold a slot of --max-processes."}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sandbox_api_process_duration_seconds", Help: "How long processes ran, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}, []string{"kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_api_output_bytes_total", Help: "Bytes that processes wrote, by stream."}, []string{"stream"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sandbox_api_stream_lost_bytes_total", Help: "Bytes that a stream's reader got a gap marker for."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_api_requests_total", Help: "HTTP requests, by route and status code."}, []string{"route", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_api_connections_refused_total", Help: "Connections refused by --restrict-localhost, by reason."}, []string{"reason"}),
	}
	m.stdout, m.stderr = m.bytes.WithLabelValues("stdout"), m.bytes.WithLabelValues("stderr")
	m.registry.MustRegister(m.started, m.finished, m.running, m.duration, m.bytes, m.lost, m.requests, m.refused,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) output(channel byte, n int) {
	if channel == frame.Stderr {
		m.stderr.Add(float64(n))
		return
	}
	m.stdout.Add(float64(n))
}

func (m *Metrics) ended(kind string, r *Result) {
	outcome := "ok"
	switch {
	case r.OOMKilled:
		outcome = "oom"
	case r.TimedOut:
		outcome = "timeout"
	case r.KillReason != "":
		outcome = "killed"
	case r.Signal != "":
		outcome = "signaled"
	case r.ExitCode != 0:
		outcome = "failed"
	}
	m.finished.WithLabelValues(kind, outcome).Inc()
	m.duration.WithLabelValues(kind).Observe(float64(r.DurationMS) / 1000)
}

func (m *Metrics) request(route string, code int) {
	m.requests.WithLabelValues(route, strconv.Itoa(code)).Inc()
}

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
