package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
)

// Annotations of an identity Secret. With them every decision about a token is made from
// the Secret's metadata; the operator never reads a token back.
const (
	annotationIssuedAt        = v1alpha1.Group + "/issued-at"
	annotationExpiresAt       = v1alpha1.Group + "/expires-at"
	annotationRenewAt         = v1alpha1.Group + "/renew-at"
	annotationPreviousExpires = v1alpha1.Group + "/previous-expires-at"
	annotationKeyID           = v1alpha1.Group + "/key-id"
	annotationFingerprint     = v1alpha1.Group + "/fingerprint"
)

const (
	defaultTTL = 4 * time.Hour
	// pendingSlack is how long a pod may stay pending before its long Env token is minted
	// again: activeDeadlineSeconds counts from the start of the pod, not from the mint.
	pendingSlack = 10 * time.Minute
)

// identity is everything that a sandbox's token and proxy URL are made from. Its
// fingerprint decides whether a Secret is up to date. The allowed hosts are not in it: the
// live policy decides, so a change of hosts needs no new token.
type identity struct {
	ContainerID  string
	Policy       string
	Organization string
	HIPAA        bool
	Binding      bool
	Centralized  bool
	ProxyAddress string
	TTL          time.Duration
}

func newIdentity(p *v1alpha1.SandboxEgress, containerID, proxyAddress string) identity {
	ttl := defaultTTL
	if p.Spec.Token.TTL != nil {
		ttl = p.Spec.Token.TTL.Duration
	}
	return identity{
		ContainerID:  containerID,
		Policy:       p.Namespace + "/" + p.Name,
		Organization: p.Spec.Token.Organization,
		HIPAA:        p.Spec.Token.HIPAARegulated,
		Binding:      p.Spec.Token.ContainerBinding != v1alpha1.BindingDisabled,
		Centralized:  p.Spec.Proxy.Upstream != nil,
		ProxyAddress: proxyAddress,
		TTL:          ttl,
	}
}

func (i identity) fingerprint() string {
	raw, err := json.Marshal(i)
	if err != nil {
		// A struct of strings, bools and an integer always marshals.
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:12])
}

// proxyURL is what Env delivery puts into HTTP_PROXY.
func (i identity) proxyURL(token string) string {
	u := url.URL{Scheme: "http", User: url.UserPassword("container_"+i.ContainerID, "jwt_"+token), Host: i.ProxyAddress}
	return u.String()
}

// serviceAddress is "clusterIP:8443" of the proxy's Service; "" while it has no address.
func serviceAddress(svc *corev1.Service) string {
	ip := svc.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone {
		return ""
	}
	return net.JoinHostPort(ip, "8443")
}

// lifetime says when a token minted now expires and when it is to be renewed; a zero renew
// means never. random is in [0, 1).
//
// A token is renewed at two thirds of its life, less up to a tenth of it: sandboxes that
// started together must not all renew together. An Env token cannot be renewed in a running
// process, so with a deadline above ttl it lasts as long as the pod can.
func lifetime(now time.Time, ttl time.Duration, pod *corev1.Pod, random float64) (expires, renew time.Time) {
	if deadline, ok := longEnv(pod, ttl); ok {
		if start := pod.Status.StartTime; start != nil {
			if end := start.Add(deadline).Add(pendingSlack); end.After(now.Add(ttl)) {
				return end, time.Time{}
			}
		} else {
			return now.Add(deadline).Add(pendingSlack), now.Add(pendingSlack / 2)
		}
	}
	early := time.Duration(random * float64(ttl) / 10)
	return now.Add(ttl), now.Add(ttl*2/3 - early)
}

// longEnv returns the pod's active deadline when it is an Env sandbox whose deadline is
// above ttl.
func longEnv(pod *corev1.Pod, ttl time.Duration) (time.Duration, bool) {
	s := pod.Spec.ActiveDeadlineSeconds
	if s == nil || pod.Annotations[v1alpha1.InjectedAnnotation] != string(v1alpha1.DeliveryEnv) {
		return 0, false
	}
	// The API bounds it to 32 bits, which cannot overflow a Duration.
	deadline := time.Duration(*s) * time.Second
	return deadline, deadline > ttl
}

// mintReason says why a new token is needed; "" when the Secret is fine.
type mintReason string

const (
	mintNew      mintReason = "new"
	mintRotation mintReason = "rotation"
	mintChanged  mintReason = "changed"
	mintKeyGone  mintReason = "key_gone"
	mintDrift    mintReason = "drift"
)

// check decides from the metadata of the identity Secret. knownKey tells whether a kid
// still verifies.
func check(meta *metav1.PartialObjectMetadata, want identity, pod *corev1.Pod, now time.Time, knownKey func(kid string) bool) mintReason {
	if meta == nil {
		return mintNew
	}
	a := meta.Annotations
	expires, err := time.Parse(time.RFC3339, a[annotationExpiresAt])
	switch {
	case err != nil || !ownsData(meta):
		return mintDrift
	case a[annotationFingerprint] != want.fingerprint():
		return mintChanged
	case !knownKey(a[annotationKeyID]):
		return mintKeyGone
	}
	if deadline, ok := longEnv(pod, want.TTL); ok && pod.Status.StartTime != nil {
		if !expires.Before(pod.Status.StartTime.Add(deadline)) {
			return ""
		}
	}
	if renew := a[annotationRenewAt]; renew != "" {
		at, err := time.Parse(time.RFC3339, renew)
		if err != nil {
			return mintDrift
		}
		if !now.Before(at) {
			return mintRotation
		}
	}
	return ""
}

// ownsData reports whether both entries of the Secret are still as the operator applied
// them. Whoever changes or removes one takes it out of the operator's managed fields, so
// this is seen without reading the data.
func ownsData(meta *metav1.PartialObjectMetadata) bool {
	for _, f := range meta.ManagedFields {
		if f.Manager != apply.FieldOwner || f.Operation != metav1.ManagedFieldsOperationApply || f.FieldsV1 == nil {
			continue
		}
		var fields struct {
			Data map[string]json.RawMessage `json:"f:data"`
		}
		if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &fields); err != nil {
			return false
		}
		_, tokenOK := fields.Data["f:"+v1alpha1.SecretKeyToken]
		_, urlOK := fields.Data["f:"+v1alpha1.SecretKeyProxyURL]
		return tokenOK && urlOK
	}
	return false
}

// nextLook is when the Secret has to be looked at again without any event; zero for never.
func nextLook(meta *metav1.PartialObjectMetadata) time.Time {
	at, err := time.Parse(time.RFC3339, meta.Annotations[annotationRenewAt])
	if err != nil {
		return time.Time{}
	}
	return at
}

// Jitter returns a number in [0, 1).
type Jitter func() float64

// RandomJitter is the default.
func RandomJitter() float64 { return rand.Float64() } //nolint:gosec // spreads load; nothing secret depends on it
