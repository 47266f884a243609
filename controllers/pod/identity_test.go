package pod

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func sandbox(delivery string, deadline time.Duration, started time.Time) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.InjectedAnnotation: delivery}}}
	if deadline > 0 {
		p.Spec.ActiveDeadlineSeconds = new(int64(deadline / time.Second))
	}
	if !started.IsZero() {
		p.Status.StartTime = &metav1.Time{Time: started}
	}
	return p
}

func TestLifetime(t *testing.T) {
	const ttl = 3 * time.Hour
	for name, tc := range map[string]struct {
		pod              *corev1.Pod
		random           float64
		expires, renewal time.Duration // after now; renewal 0 = never
	}{
		"two thirds of the ttl":                                {sandbox("Env", 0, time.Time{}), 0, ttl, 2 * time.Hour},
		"less up to a tenth of it":                             {sandbox("Env", 0, time.Time{}), 0.5, ttl, 2*time.Hour - 9*time.Minute},
		"a deadline below the ttl changes nothing":             {sandbox("Env", time.Hour, now), 0, ttl, 2 * time.Hour},
		"under Relay neither does a longer one":                {sandbox("Relay", 8*time.Hour, now), 0, ttl, 2 * time.Hour},
		"a pending Env pod gets its whole deadline":            {sandbox("Env", 8*time.Hour, time.Time{}), 0, 8*time.Hour + pendingSlack, pendingSlack / 2},
		"a started one gets it from its start":                 {sandbox("Env", 8*time.Hour, now.Add(-time.Hour)), 0, 7*time.Hour + pendingSlack, 0},
		"near its end the ttl is enough":                       {sandbox("Env", 8*time.Hour, now.Add(-7*time.Hour)), 0, ttl, 2 * time.Hour},
		"the longest deadline the API takes overflows nothing": {sandbox("Env", (1<<31-1)*time.Second, now), 0, (1<<31-1)*time.Second + pendingSlack, 0},
	} {
		t.Run(name, func(t *testing.T) {
			expires, renew := lifetime(now, ttl, tc.pod, tc.random)
			if got := expires.Sub(now); got != tc.expires {
				t.Errorf("expires after %s, want %s", got, tc.expires)
			}
			switch {
			case tc.renewal == 0 && !renew.IsZero():
				t.Errorf("renewed at %s, want never", renew)
			case tc.renewal != 0 && renew.Sub(now) != tc.renewal:
				t.Errorf("renewed after %s, want %s", renew.Sub(now), tc.renewal)
			}
		})
	}
}

func secretOf(i identity, change func(*metav1.PartialObjectMetadata)) *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Annotations: map[string]string{
			annotationIssuedAt: now.Format(time.RFC3339), annotationExpiresAt: now.Add(time.Hour).Format(time.RFC3339),
			annotationRenewAt: now.Add(40 * time.Minute).Format(time.RFC3339), annotationKeyID: "k1", annotationFingerprint: i.fingerprint(),
		},
		ManagedFields: []metav1.ManagedFieldsEntry{{
			Manager: apply.FieldOwner, Operation: metav1.ManagedFieldsOperationApply,
			FieldsV1: metav1.NewFieldsV1(`{"f:data":{"f:token":{},"f:proxy-url":{}}}`),
		}},
	}}
	if change != nil {
		change(m)
	}
	return m
}

func TestCheckSaysWhyATokenIsNeeded(t *testing.T) {
	want := identity{ContainerID: "c", Policy: "ns/p", TTL: time.Hour, ProxyAddress: "10.0.0.1:8443"}
	moved := want
	moved.ProxyAddress = "10.0.0.2:8443"
	for name, tc := range map[string]struct {
		meta   *metav1.PartialObjectMetadata
		want   identity
		after  time.Duration
		known  bool
		reason mintReason
	}{
		"no Secret":                         {nil, want, 0, true, mintNew},
		"fine":                              {secretOf(want, nil), want, 39 * time.Minute, true, ""},
		"due":                               {secretOf(want, nil), want, 40 * time.Minute, true, mintRotation},
		"the proxy has another address":     {secretOf(want, nil), moved, 0, true, mintChanged},
		"its key is not published any more": {secretOf(want, nil), want, 0, false, mintKeyGone},
		"someone changed the token": {secretOf(want, func(m *metav1.PartialObjectMetadata) {
			m.ManagedFields[0].FieldsV1 = metav1.NewFieldsV1(`{"f:data":{"f:proxy-url":{}}}`)
		}), want, 0, true, mintDrift},
		"someone took the managed fields":    {secretOf(want, func(m *metav1.PartialObjectMetadata) { m.ManagedFields = nil }), want, 0, true, mintDrift},
		"someone removed the expiry":         {secretOf(want, func(m *metav1.PartialObjectMetadata) { delete(m.Annotations, annotationExpiresAt) }), want, 0, true, mintDrift},
		"someone broke the time of renewal":  {secretOf(want, func(m *metav1.PartialObjectMetadata) { m.Annotations[annotationRenewAt] = "soon" }), want, 0, true, mintDrift},
		"someone put the time of renewal on": {secretOf(want, func(m *metav1.PartialObjectMetadata) { m.Annotations[annotationFingerprint] = "" }), want, 0, true, mintChanged},
	} {
		t.Run(name, func(t *testing.T) {
			got := check(tc.meta, tc.want, sandbox("Env", 0, time.Time{}), now.Add(tc.after), func(string) bool { return tc.known })
			if got != tc.reason {
				t.Errorf("check = %q, want %q", got, tc.reason)
			}
		})
	}
}

func TestFingerprintCoversEveryField(t *testing.T) {
	base := identity{}
	seen := map[string]string{base.fingerprint(): "base"}
	for name, i := range map[string]identity{
		"container": {ContainerID: "x"}, "policy": {Policy: "x"}, "organization": {Organization: "x"}, "hipaa": {HIPAA: true},
		"binding": {Binding: true}, "centralized": {Centralized: true}, "address": {ProxyAddress: "x"}, "ttl": {TTL: 1},
	} {
		f := i.fingerprint()
		if other, dup := seen[f]; dup {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[f] = name
	}
}

func TestEnvExpiryIsThatOfTheTokenTheContainerStartedWith(t *testing.T) {
	meta := secretOf(identity{}, func(m *metav1.PartialObjectMetadata) {
		m.Annotations[annotationPreviousExpires] = now.Add(10 * time.Minute).Format(time.RFC3339)
	})
	started := func(pod *corev1.Pod, at ...time.Time) *corev1.Pod {
		for _, a := range at {
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(a)}}})
		}
		return pod
	}
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		want time.Time
	}{
		"started before the renewal":           {started(sandbox("Env", 0, now), now.Add(-time.Hour)), now.Add(10 * time.Minute)},
		"started after it":                     {started(sandbox("Env", 0, now), now), now.Add(time.Hour)},
		"the oldest of several decides":        {started(sandbox("Env", 0, now), now, now.Add(-time.Hour)), now.Add(10 * time.Minute)},
		"Relay renews by itself":               {started(sandbox("Relay", 0, now), now), time.Time{}},
		"nothing runs":                         {sandbox("Env", 0, now), time.Time{}},
		"the pod's own deadline ends it first": {started(sandbox("Env", 30*time.Minute, now), now), time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := envExpiry(tc.pod, meta); !got.Equal(tc.want) {
				t.Errorf("envExpiry = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestProxyURL(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1:8443":      "http://container_c-1:jwt_a.b-_c@10.0.0.1:8443",
		"[2001:db8::1]:8443": "http://container_c-1:jwt_a.b-_c@[2001:db8::1]:8443",
	} {
		if got := (identity{ContainerID: "c-1", ProxyAddress: address}).proxyURL("a.b-_c"); got != want {
			t.Errorf("proxyURL = %s, want %s", got, want)
		}
	}
}
