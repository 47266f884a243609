package managercmd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	// certEager is how often the Secret is read until there is a certificate, certLazy after:
	// it is renewed 90 days before its end, so there is no hurry.
	certEager = 500 * time.Millisecond
	certLazy  = time.Minute
)

// certFiles copies the webhook's certificate from its Secret to the directory that it is
// served from. Mounting the Secret would do the same, but the kubelet takes up to 90 s to
// show a change of it, in which the operator is not ready and no sandbox can start.
type certFiles struct {
	reader client.Reader
	secret types.NamespacedName
	dir    string

	written [2][]byte
}

// Start implements manager.Runnable.
func (c *certFiles) Start(ctx context.Context) error {
	for {
		wait := certEager
		done, err := c.sync(ctx)
		if err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "the webhook's certificate could not be brought up to date")
		}
		if done {
			wait = certLazy
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: a standby serves the
// webhook too.
func (*certFiles) NeedLeaderElection() bool { return false }

// sync reports whether the files are those of the Secret.
func (c *certFiles) sync(ctx context.Context) (bool, error) {
	var s corev1.Secret
	if err := c.reader.Get(ctx, c.secret, &s); apierrors.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("read Secret %s: %w", c.secret, err)
	}
	key, cert := s.Data[corev1.TLSPrivateKeyKey], s.Data[corev1.TLSCertKey]
	if len(key) == 0 || len(cert) == 0 {
		return false, nil
	}
	if bytes.Equal(c.written[0], key) && bytes.Equal(c.written[1], cert) {
		return true, nil
	}
	// The certificate last: its appearance is what everybody waits for, and whoever reads a
	// pair that does not fit together keeps the old one until the next change.
	for _, f := range []struct {
		name string
		data []byte
	}{{corev1.TLSPrivateKeyKey, key}, {corev1.TLSCertKey, cert}} {
		if err := replaceFile(filepath.Join(c.dir, f.name), f.data); err != nil {
			return false, err
		}
	}
	c.written = [2][]byte{key, cert}
	return true, nil
}

// replaceFile writes a file so that a reader sees the old content or the new, never a part.
func replaceFile(path string, data []byte) error {
	const private = 0o600
	next := path + ".next"
	if err := os.WriteFile(next, data, private); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	return nil
}
