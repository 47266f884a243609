package injector

import (
	"encoding/base32"
	"fmt"
	"io"
	"regexp"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
)

// idEncoding is RFC 4648 base32 in lower case: an id ends up in object names, which are
// DNS labels.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var (
	idForm         = regexp.MustCompile(`^[a-z2-7]{20}$`)
	identitySecret = regexp.MustCompile(`^egress-[a-z2-7]{20}$`)
)

// NewID returns 20 characters of [a-z2-7]: 100 random bits, so that ids collide neither by
// accident nor by guessing. It is drawn at admission because a pod with generateName has
// no name and no UID yet.
func NewID(random io.Reader) (string, error) {
	var b [13]byte // 104 bits; the last character is cut
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("draw a sandbox id: %w", err)
	}
	return idEncoding.EncodeToString(b[:])[:20], nil
}

// ValidID reports whether id has the form that NewID gives.
func ValidID(id string) bool { return idForm.MatchString(id) }

// ContainerID is the container_id claim of an injected pod: what the user asked for, else
// the id. Empty when the pod has neither.
func ContainerID(pod *corev1.Pod) string {
	if cid := pod.Annotations[v1alpha1.ContainerIDAnnotation]; cid != "" {
		return cid
	}
	return pod.Annotations[v1alpha1.IDKey]
}
