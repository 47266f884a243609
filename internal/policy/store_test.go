package policy_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/sandbox-egress/sandbox-egress/internal/policy"
)

func TestPodLookup(t *testing.T) {
	a := &policy.Pod{Name: "a", ContainerID: "c1"}
	b := &policy.Pod{Name: "b", ContainerID: "c1"}
	done := &policy.Pod{Name: "done", ContainerID: "c1", Terminal: true}
	for name, tc := range map[string]struct {
		pods     []*policy.Pod
		wantName string
		wantErr  error
	}{
		"unknown id is an error":                       {wantErr: policy.ErrUnknownContainer},
		"single pod is found":                          {pods: []*policy.Pod{a}, wantName: "a"},
		"two live pods make the id ambiguous":          {pods: []*policy.Pod{a, b}, wantErr: policy.ErrAmbiguousContainer},
		"a finished pod yields to a live one":          {pods: []*policy.Pod{done, a}, wantName: "a"},
		"a finished pod after a live one does not win": {pods: []*policy.Pod{a, done}, wantName: "a"},
		"a finished pod alone is found as such":        {pods: []*policy.Pod{done}, wantName: "done"},
		"a finished pod does not end an ambiguity":     {pods: []*policy.Pod{a, b, done}, wantErr: policy.ErrAmbiguousContainer},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := policy.NewState(policy.Config{Pods: tc.pods}).Pod("c1")
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("err = %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr == nil && p.Name != tc.wantName {
				t.Fatalf("pod = %s, want %s", p.Name, tc.wantName)
			}
		})
	}
}

func TestPodHasIPComparesUnmapped(t *testing.T) {
	p := &policy.Pod{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")}}
	if !p.HasIP(netip.MustParseAddr("::ffff:10.0.0.7")) {
		t.Error("a v4-mapped form of the pod's address was not recognised")
	}
	if p.HasIP(netip.MustParseAddr("10.0.0.8")) {
		t.Error("another address was taken for the pod's")
	}
}

func TestEmptyStoreRefusesAndIsNotReady(t *testing.T) {
	var s policy.Store
	if s.Ready() {
		t.Error("store without a state is ready")
	}
	st := s.Load()
	if st.Default() != nil || !st.PodsKnown() || st.Keys() != nil {
		t.Error("the state before the first sync must know no keys, no default policy and no pods")
	}
}

func TestSubscribeCoalescesAndEndsWithItsContext(t *testing.T) {
	var s policy.Store
	ctx, cancel := context.WithCancel(t.Context())
	ch := s.Subscribe(ctx)
	for range 3 {
		s.Swap(policy.NewState(policy.Config{}))
	}
	<-ch
	select {
	case <-ch:
		t.Error("three swaps without a reader must leave one signal")
	default:
	}
	cancel()
	select {
	case _, open := <-ch:
		if open {
			t.Error("signal without a swap")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("channel was not closed after its context ended")
	}
	s.Swap(policy.NewState(policy.Config{})) // must not send on the closed channel
}
