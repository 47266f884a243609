package kube

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

type denialClock struct{ t time.Time }

func (c *denialClock) now() time.Time { return c.t }

func testDenials() (*Denials, *denialClock, client.Client) {
	clk := &denialClock{time.Unix(1_800_000_000, 0)}
	c := fake.NewClientBuilder().Build()
	return newDenials(c, "proxy-1", slog.New(slog.DiscardHandler), clk.now), clk, c
}

func denial(uid, host string) *audit.Record {
	return &audit.Record{Decision: audit.Deny, Reason: "host_not_allowed", Namespace: "ns", Pod: "p-" + uid, PodUID: uid, Host: host, Port: 443}
}

func TestTheSameDenialIsOneEventAndThenACount(t *testing.T) {
	d, clk, _ := testDenials()
	for range 100 {
		d.Write(denial("u", "evil.example"))
	}
	if n := len(d.queue); n != 1 {
		t.Fatalf("%d Events for one destination, want 1", n)
	}
	<-d.queue
	clk.t = clk.t.Add(repeatAfter)
	d.Write(denial("u", "evil.example"))
	if e := <-d.queue; !strings.Contains(e.Note, "and 99 more") {
		t.Errorf("note %q does not count the repeats", e.Note)
	}
}

func TestOneSandboxCannotFloodAndDoesNotSilenceAnother(t *testing.T) {
	d, clk, _ := testDenials()
	for i := range 1000 {
		d.Write(denial("noisy", fmt.Sprintf("h%d.example", i)))
	}
	if n := len(d.queue); n != podBurst {
		t.Fatalf("%d Events at once from one pod, want %d", n, podBurst)
	}
	d.Write(denial("quiet", "a.example"))
	if n := len(d.queue); n != podBurst+1 {
		t.Fatal("another pod's denial was dropped")
	}
	clk.t = clk.t.Add(podInterval)
	d.Write(denial("noisy", "later.example"))
	d.Write(denial("noisy", "later2.example"))
	if n := len(d.queue); n != podBurst+2 {
		t.Errorf("%d Events after %s, want one more", n, podInterval)
	}
}

func TestAllSandboxesTogetherAreLimited(t *testing.T) {
	d, _, _ := testDenials()
	for i := range 1000 {
		d.Write(denial(fmt.Sprint("u", i), "a.example"))
	}
	if n := len(d.queue); n != totalBurst {
		t.Errorf("%d Events at once, want %d", n, totalBurst)
	}
}

func TestADenialWithoutAPodIsNoEvent(t *testing.T) {
	d, _, _ := testDenials()
	d.Write(&audit.Record{Decision: audit.Deny, Reason: "token_missing", Host: "a.example"})
	if len(d.queue) != 0 {
		t.Error("an Event about nobody")
	}
}

func TestWriteNeverBlocks(t *testing.T) {
	d, clk, _ := testDenials()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 4 * queued {
			clk.t = clk.t.Add(time.Second)
			d.Write(denial(fmt.Sprint("u", i), "a.example"))
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Write waits for the API server")
	}
}

func TestTheEventSaysWhatWasRefused(t *testing.T) {
	d, _, c := testDenials()
	r := denial("u", "evil.example")
	r.Detail = strings.Repeat("x", 5000)
	d.Write(r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	var list eventsv1.EventList
	for range 500 {
		if err := c.List(ctx, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(list.Items) != 1 {
		t.Fatal("no Event was written")
	}
	e := list.Items[0]
	if !strings.HasPrefix(e.Note, "host_not_allowed: evil.example:443: xxx") || len(e.Note) > 1024 || e.Regarding.Name != "p-u" || string(e.Regarding.UID) != "u" {
		t.Errorf("%+v", e)
	}
}
