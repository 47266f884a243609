package proxycmd

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
)

// reloader calls its targets when their files change and on SIGHUP. It watches directories,
// not files: Kubernetes swaps a symlink above the files of a mounted ConfigMap or Secret,
// and editors replace files.
type reloader struct {
	log   *slog.Logger
	total *prometheus.CounterVec
	ok    *prometheus.GaugeVec

	mu      sync.Mutex
	targets []*target
	watcher *fsnotify.Watcher
}

type target struct {
	name  string
	load  func() error
	files []string
	sum   [sha256.Size]byte
}

// settle is how long changes are gathered: a swap makes several events.
const settle = 100 * time.Millisecond

func newReloader(log *slog.Logger, reg prometheus.Registerer) (*reloader, error) {
	r := &reloader{
		log: log,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandbox_egress_config_reloads_total", Help: "Reloads of files, by what they configure and result.",
		}, []string{"config", "result"}),
		ok: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sandbox_egress_config_last_reload_successful", Help: "0 while a changed file is refused and the old content stays in force.",
		}, []string{"config"}),
	}
	for _, c := range []prometheus.Collector{r.total, r.ok} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	r.watcher = w
	return r, nil
}

// add has load called when one of the files changes; empty names are left out. load has
// been called for what they hold now.
func (r *reloader) add(name string, load func() error, files ...string) {
	t := &target{name: name, load: load}
	for _, f := range files {
		if f != "" {
			t.files = append(t.files, f)
		}
	}
	t.sum = contentSum(t.files)
	r.ok.WithLabelValues(name).Set(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = append(r.targets, t)
	for _, f := range t.files {
		if err := r.watcher.Add(filepath.Dir(f)); err != nil {
			r.log.Warn("cannot watch for changes; send SIGHUP after a change", "file", f, "error", err)
		}
	}
}

// run reacts to changes until ctx ends. A receive on hup reloads everything.
func (r *reloader) run(ctx context.Context, hup <-chan os.Signal) {
	defer func() { _ = r.watcher.Close() }()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.watcher.Events:
			timer.Reset(settle)
		case err := <-r.watcher.Errors:
			// Events were lost: look at the files themselves.
			r.log.Warn("watching files", "error", err)
			timer.Reset(settle)
		case <-timer.C:
			r.reload(false)
		case <-hup:
			r.log.Info("SIGHUP: reloading")
			r.reload(true)
		}
	}
}

func (r *reloader) reload(force bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.targets {
		sum := contentSum(t.files)
		if sum == t.sum && !force {
			continue
		}
		t.sum = sum
		if err := t.load(); err != nil {
			r.total.WithLabelValues(t.name, "refused").Inc()
			r.ok.WithLabelValues(t.name).Set(0)
			r.log.Error("changed configuration refused; the old one stays in force", "config", t.name, "error", err)
			continue
		}
		r.total.WithLabelValues(t.name, "applied").Inc()
		r.ok.WithLabelValues(t.name).Set(1)
		r.log.Info("configuration reloaded", "config", t.name)
	}
}

// contentSum is a hash over names and contents; a file that cannot be read counts as such.
func contentSum(files []string) [sha256.Size]byte {
	h := sha256.New()
	for _, f := range files {
		data, err := os.ReadFile(f)
		one := sha256.Sum256(data)
		h.Write([]byte(f))
		h.Write(one[:])
		if err != nil {
			h.Write([]byte(err.Error()))
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}
