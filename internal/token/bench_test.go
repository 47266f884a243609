package token

import (
	"fmt"
	"testing"
	"time"
)

func benchToken(b *testing.B, hosts int) (*Verifier, string) {
	b.Helper()
	key := testKey(b, 1)
	o := MintOptions{
		Now: epoch, TTL: 4 * time.Hour, ContainerID: "sandbox_session_abc123", Organization: "user_123",
		EgressPolicy: "team-a/agents", ContainerBinding: true,
	}
	for i := range hosts {
		o.AllowedHosts = append(o.AllowedHosts, fmt.Sprintf("host-%02d.example.com", i))
	}
	return NewVerifier(testKeySet(b, key), WithClock(func() time.Time { return epoch })), mustMint(b, key, o)
}

// Design limit: 1 µs for a hit.
func BenchmarkVerifyCacheHit(b *testing.B) {
	for _, hosts := range []int{2, 45} {
		v, raw := benchToken(b, hosts)
		b.Run(fmt.Sprintf("%dB", len(raw)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyCacheHitParallel(b *testing.B) {
	v, raw := benchToken(b, 2)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Verify(raw); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkVerifyUncached(b *testing.B) {
	v, raw := benchToken(b, 2)
	v = NewVerifier(v.keys.Load(), WithClock(v.now), WithCacheSize(0))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// A wrong signature that comes again must not cost a second elliptic curve operation.
func BenchmarkVerifyNegativeCacheHit(b *testing.B) {
	v, raw := benchToken(b, 2)
	bad := flip(raw, len(raw)-40)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(bad); err == nil {
			b.Fatal("accepted")
		}
	}
}

// What a flood of tokens that are no tokens costs.
func BenchmarkVerifyRefusesDots(b *testing.B) {
	v, _ := benchToken(b, 2)
	dots := make([]byte, 1<<20)
	for i := range dots {
		dots[i] = '.'
	}
	raw := string(dots)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(raw); err == nil {
			b.Fatal("accepted")
		}
	}
}
