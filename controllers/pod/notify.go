package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/lru"
)

// Reasons of the Events on a sandbox's pod.
const (
	EventUninjected           = "EgressUninjected"
	EventOverlap              = "EgressPolicyOverlap"
	EventPolicyGone           = "EgressPolicyGone"
	EventInvalidID            = "EgressInvalidID"
	EventDuplicateID          = "EgressDuplicateID"
	EventDuplicateContainerID = "EgressDuplicateContainerID"
	EventInvalidContainerID   = "EgressInvalidContainerID"
	EventInvalidAllowedHosts  = "EgressInvalidAllowedHosts"
	EventQuarantined          = "EgressQuarantined"
	EventTokenExpiring        = "EgressTokenExpiring" //nolint:gosec // the name of an Event
	EventTokenExpired         = "EgressTokenExpired"  //nolint:gosec // the name of an Event
	EventIdentityFailed       = "EgressIdentityFailed"
)

// notifier emits an Event once per pod and subject. The Event API merges repeats, but each
// of them would still be a write for every reconcile of every pod.
type notifier struct {
	recorder events.EventRecorder
	said     *lru.Cache
}

func newNotifier(r events.EventRecorder) *notifier {
	const remembered = 20000
	return &notifier{recorder: r, said: lru.New(remembered)}
}

type subject struct{ uid, reason, about string }

// warn says note about pod, unless the same reason was given for the same about before.
func (n *notifier) warn(pod *corev1.Pod, reason, about, action, note string, args ...any) {
	s := subject{string(pod.UID), reason, about}
	if _, ok := n.said.Get(s); ok {
		return
	}
	n.said.Add(s, nil)
	n.recorder.Eventf(pod, nil, corev1.EventTypeWarning, reason, action, note, args...)
}

// forget lets a reason be given again, once its cause has gone away.
func (n *notifier) forget(pod *corev1.Pod, reason, about string) {
	n.said.Remove(subject{string(pod.UID), reason, about})
}
