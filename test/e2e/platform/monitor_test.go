package platform

import (
	"testing"
	"time"
)

func TestReportFindsTheLongestOutage(t *testing.T) {
	const lines = `{"k": "allowed", "t": 9, "d": 0.1, "s": 0, "e": "before the time asked for"}
{"k": "allowed", "t": 10, "d": 0.1, "s": 200, "e": ""}
{"k": "denied", "t": 10.1, "d": 0.1, "s": 403, "e": ""}
{"k": "direct", "t": 10.2, "d": 1, "s": 0, "e": "timed out"}
{"k": "allowed", "t": 11, "d": 0.5, "s": 0, "e": "timed out"}
{"k": "direct", "t": 11.1, "d": 0.1, "s": 1, "e": ""}
{"k": "allowed", "t": 12, "d": 0.5, "s": 503, "e": ""}
{"k": "allowed", "t": 13, "d": 0.25, "s": 200, "e": ""}
{"k": "allowed", "t": 14, "d": 0.5, "s": 0, "e": "timed out"}
{"k": "allowed", "t": 14.5, "d": 0.5, "s": 200, "e": ""}
`
	r, err := summarise(lines, time.Unix(10, 0))
	if err != nil {
		t.Fatal(err)
	}
	if r.AllowedOK != 3 || r.AllowedFailed != 3 || r.Denied[403] != 1 || r.DirectOpen != 1 || r.DirectBlocked != 1 {
		t.Errorf("counts: %s", r)
	}
	if r.Outage != 2250*time.Millisecond || len(r.Outages) != 2 {
		t.Errorf("outages: %s", r)
	}
	if !r.Last.Equal(time.Unix(14, 5e8)) {
		t.Errorf("last attempt at %s", r.Last)
	}
}

func TestReportCountsAnOutageThatGoesOn(t *testing.T) {
	const lines = `{"k": "allowed", "t": 10, "d": 0.5, "s": 0, "e": "x"}
{"k": "allowed", "t": 20, "d": 0.5, "s": 0, "e": "x"}
`
	r, err := summarise(lines, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Outage < 10*time.Second {
		t.Errorf("outage %s, want 10 s or more", r.Outage)
	}
}

func TestReportDoesNotCountTheMonitorsOwnStalls(t *testing.T) {
	const lines = `{"k": "allowed", "t": 10, "d": 1, "s": 0, "e": "x"}
{"k": "stall", "t": 9, "d": 3, "s": 0, "e": ""}
{"k": "allowed", "t": 11, "d": 2, "s": 200, "e": ""}
`
	r, err := summarise(lines, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Outage != time.Second || r.Stalled != 3*time.Second {
		t.Errorf("outage %s, want 1 s of 10..13, without 9..12: %s", r.Outage, r)
	}
}

func TestReportRefusesWhatIsNoRecord(t *testing.T) {
	if r, err := summarise("Traceback (most recent call last):\n", time.Time{}); err == nil {
		t.Errorf("got %s", r)
	}
}
