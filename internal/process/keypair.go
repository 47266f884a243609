package process

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// keyPairPeriod bounds how often the files are read: certificates that are
// renewed in place are picked up after it.
const keyPairPeriod = time.Minute

// keyPair is a certificate and its key in two files.
type keyPair struct {
	cert, key string
	clock     clock.PassiveClock

	mu     sync.Mutex
	loaded time.Time
	last   *tls.Certificate
}

// get is tls.Config.GetCertificate. A pair that cannot be read keeps the last one
// in use: a renewal that writes the two files one after the other passes through
// a state in which they do not match.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && k.clock.Since(k.loaded) < keyPairPeriod {
		return k.last, nil
	}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		if k.last == nil {
			return nil, fmt.Errorf("--tls-cert-file, --tls-key-file: %w", err)
		}
		return k.last, nil
	}
	k.last, k.loaded = &pair, k.clock.Now()
	return k.last, nil
}
