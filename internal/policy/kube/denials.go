package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

const (
	// EventReasonDenied is the reason of the Events on a sandbox's pod.
	EventReasonDenied = "EgressDenied"
	controllerName    = "egress.sandbox.dev/egress-proxy"

	// repeatAfter is how long the same refusal is only counted. Events live for an hour.
	repeatAfter = 5 * time.Minute
	// A sandbox decides how many refusals it causes, so there is a limit for each, and one
	// for all of them together: Events are writes to etcd.
	podBurst       = 10
	podInterval    = 30 * time.Second
	totalBurst     = 50
	totalPerSecond = 5

	queued     = 256
	remembered = 8192
	// maxNote is the API's limit of 1024 characters, less room for the count.
	maxNote = 900
)

// Denials turns denials into Events on the pods. It implements audit.Sink.
type Denials struct {
	client   client.Client
	instance string
	log      *slog.Logger
	now      func() time.Time
	queue    chan eventsv1.Event

	mu    sync.Mutex
	seen  *lru.Cache // refusal -> *repeat
	pods  *lru.Cache // pod UID -> *rate.Limiter
	total *rate.Limiter
}

type refusal struct{ uid, reason, host string }

type repeat struct {
	since time.Time
	count int
}

// Denials makes the sink. Its Events are written by Run of it.
func (s *Source) Denials(instance string) (*Denials, error) {
	c, err := client.New(s.cfg, client.Options{Scheme: s.scheme, Mapper: s.mapper})
	if err != nil {
		return nil, fmt.Errorf("make a client for Events: %w", err)
	}
	return newDenials(c, instance, s.log, time.Now), nil
}

func newDenials(c client.Client, instance string, log *slog.Logger, now func() time.Time) *Denials {
	return &Denials{
		client: c, instance: instance, log: log, now: now,
		queue: make(chan eventsv1.Event, queued),
		seen:  lru.New(remembered), pods: lru.New(remembered),
		total: rate.NewLimiter(totalPerSecond, totalBurst),
	}
}

// Write implements audit.Sink. It never blocks: when too much is going on the Event is
// dropped, and the audit log still has the record.
func (d *Denials) Write(r *audit.Record) {
	if r.Pod == "" || r.Namespace == "" || r.PodUID == "" {
		return // nobody was authenticated, so there is no pod to tell
	}
	count, ok := d.admit(r)
	if !ok {
		return
	}
	select {
	case d.queue <- d.event(r, count):
	default:
	}
}

// admit says whether an Event is due, and how many like it were only counted before.
func (d *Denials) admit(r *audit.Record) (repeats int, ok bool) {
	now := d.now()
	key := refusal{r.PodUID, r.Reason, net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))}
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, hit := d.seen.Get(key); hit {
		rep := v.(*repeat)
		if now.Sub(rep.since) < repeatAfter {
			rep.count++
			return 0, false
		}
		repeats = rep.count
	}
	limiter, hit := d.pods.Get(r.PodUID)
	if !hit {
		limiter = rate.NewLimiter(rate.Every(podInterval), podBurst)
		d.pods.Add(r.PodUID, limiter)
	}
	if !limiter.(*rate.Limiter).AllowN(now, 1) || !d.total.AllowN(now, 1) {
		return 0, false
	}
	d.seen.Add(key, &repeat{since: now})
	return repeats, true
}

func (d *Denials) event(r *audit.Record, repeats int) eventsv1.Event {
	note := r.Reason
	if r.Host != "" {
		note = r.Reason + ": " + net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))
	}
	if r.Detail != "" {
		note += ": " + r.Detail
	}
	if len(note) > maxNote {
		note = note[:maxNote] + "…"
	}
	if repeats > 0 {
		note = fmt.Sprintf("%s (and %d more since the last Event)", note, repeats)
	}
	return eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: r.Namespace, GenerateName: "egress-denied-"},
		EventTime:           metav1.NewMicroTime(d.now()),
		ReportingController: controllerName,
		ReportingInstance:   d.instance,
		Type:                corev1.EventTypeWarning,
		Reason:              EventReasonDenied,
		Action:              "Refuse",
		Note:                note,
		Regarding: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: r.Namespace, Name: r.Pod, UID: types.UID(r.PodUID),
		},
	}
}

// Run writes the queued Events until ctx ends. What cannot be written is dropped.
func (d *Denials) Run(ctx context.Context) {
	const timeout = 5 * time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-d.queue:
			try, cancel := context.WithTimeout(ctx, timeout)
			if err := d.client.Create(try, &e); err != nil && ctx.Err() == nil {
				d.log.Warn("an Event about a denial was not written", "pod", e.Regarding.Name, "error", err)
			}
			cancel()
		}
	}
}
