package signingkey_test

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/sandbox-egress/sandbox-egress/controllers/signingkey"
	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

var (
	where    = types.NamespacedName{Namespace: "op", Name: "keys"}
	rotation = token.RingPolicy{Interval: 30 * 24 * time.Hour, Propagation: 10 * time.Minute, MaxTokenTTL: 24 * time.Hour}
)

func keeper(c client.Client, clk *clocktesting.FakePassiveClock) *signingkey.Keeper {
	return &signingkey.Keeper{Client: c, Reader: c, Secret: where, Clock: clk, Policy: rotation}
}

func stored(t *testing.T, c client.Client) *token.Ring {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), where, &s); err != nil {
		t.Fatal(err)
	}
	r, err := token.ParseRing(s.Data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustSync(t *testing.T, k *signingkey.Keeper) time.Time {
	t.Helper()
	next, err := k.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestSyncMakesOneKeyAndKeepsIt(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	clk := clocktesting.NewFakePassiveClock(time.Now())
	k := keeper(c, clk)
	if k.Ring() != nil {
		t.Fatal("a ring before the first Sync")
	}
	next := mustSync(t, k)
	if want := clk.Now().Add(rotation.Interval - rotation.Propagation); next.Sub(want).Abs() > time.Second {
		t.Errorf("next = %s, want %s", next, want)
	}
	first := k.Ring().Active().KID
	mustSync(t, k)
	if again := keeper(c, clk); mustSync(t, again) != next || again.Ring().Active().KID != first {
		t.Error("another process made another key")
	}
}

func TestADamagedSecretIsNotOverwrittenByAProcessWithoutTheRing(t *testing.T) {
	damaged := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: where.Namespace, Name: where.Name}, Data: map[string][]byte{"active.pem": []byte("half a key")}}
	c := fake.NewClientBuilder().WithObjects(damaged).Build()
	k := keeper(c, clocktesting.NewFakePassiveClock(time.Now()))
	if _, err := k.Sync(t.Context()); !errors.Is(err, signingkey.ErrUnreadable) {
		t.Fatalf("err = %v, want ErrUnreadable", err)
	}
	var s corev1.Secret
	if err := c.Get(t.Context(), where, &s); err != nil {
		t.Fatal(err)
	}
	if string(s.Data["active.pem"]) != "half a key" || k.Ring() != nil {
		t.Error("the damaged key was replaced")
	}
}

// TestAKeySignsOnlyOnceItIsSaved fails every write of a whole rotation in turn.
func TestAKeySignsOnlyOnceItIsSaved(t *testing.T) {
	for failing := range 4 {
		c := fake.NewClientBuilder().Build()
		n := 0
		boom := errors.New("boom")
		fail := func() error {
			n++
			if n-1 == failing {
				return boom
			}
			return nil
		}
		faulty := interceptor.NewClient(c, interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				return errors.Join(fail(), ifOK(n-1 != failing, func() error { return c.Create(ctx, o, opts...) }))
			},
			Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
				return errors.Join(fail(), ifOK(n-1 != failing, func() error { return c.Update(ctx, o, opts...) }))
			},
		})
		clk := clocktesting.NewFakePassiveClock(time.Now())
		k := keeper(faulty, clk)
		for range 4 {
			for range 2 {
				if _, err := k.Sync(t.Context()); err != nil && !errors.Is(err, boom) {
					t.Fatal(err)
				}
				if k.Ring() != nil && k.Ring().Active().KID != stored(t, c).Active().KID {
					t.Fatalf("write %d failed: the key in force is not the saved one", failing)
				}
			}
			clk.SetTime(clk.Now().Add(rotation.Interval - rotation.Propagation).Add(rotation.Propagation / 2))
		}
		if n <= failing {
			t.Fatalf("write %d never came", failing)
		}
	}
}

func ifOK(ok bool, f func() error) error {
	if !ok {
		return nil
	}
	return f()
}

func TestTwoKeepersThatRotateAtTheSameTimeAgree(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	clk := clocktesting.NewFakePassiveClock(time.Now())
	a, b := keeper(c, clk), keeper(c, clk)
	mustSync(t, a)
	mustSync(t, b)
	clk.SetTime(clk.Now().Add(rotation.Interval - rotation.Propagation))
	mustSync(t, a)
	mustSync(t, b)
	clk.SetTime(clk.Now().Add(rotation.Propagation))
	// b acts on what it read before a saved.
	raced := interceptor.NewClient(c, interceptor.Funcs{Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
		if _, err := a.Sync(ctx); err != nil {
			return err
		}
		return c.Update(ctx, o, opts...)
	}})
	b.Client = raced
	if _, err := b.Sync(t.Context()); err == nil {
		t.Fatal("the slower of two writers did not notice")
	}
	b.Client = c
	mustSync(t, b)
	if a.Ring().Active().KID != b.Ring().Active().KID || b.Ring().Active().KID != stored(t, c).Active().KID {
		t.Error("two managers sign with different keys")
	}
}

func TestRetainKeepsTheKeyOfALongToken(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	clk := clocktesting.NewFakePassiveClock(time.Now())
	k := keeper(c, clk)
	if err := k.Retain(t.Context(), "x", clk.Now()); err == nil {
		t.Error("Retain before the keys are loaded")
	}
	mustSync(t, k)
	kid := k.Ring().Active().KID
	exp := clk.Now().Add(90 * 24 * time.Hour)
	if err := k.Retain(t.Context(), kid, exp); err != nil {
		t.Fatal(err)
	}
	version := func() string {
		var s corev1.Secret
		if err := c.Get(t.Context(), where, &s); err != nil {
			t.Fatal(err)
		}
		return s.ResourceVersion
	}
	saved := version()
	if err := k.Retain(t.Context(), kid, exp.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if version() != saved {
		t.Error("a token that ends earlier cost a write")
	}
	for clk.Now().Before(exp) {
		if k.Ring().KeySet().Lookup(kid) == nil {
			t.Fatalf("the key is gone %s before its token ends", exp.Sub(clk.Now()))
		}
		clk.SetTime(clk.Now().Add(5 * 24 * time.Hour))
		mustSync(t, k)
		mustSync(t, k)
	}
	clk.SetTime(exp.Add(3 * 24 * time.Hour))
	mustSync(t, k)
	if k.Ring().KeySet().Lookup(kid) != nil {
		t.Error("the key is still published after its last token")
	}
}

func TestChangedIsCalledWhenTheKeysChange(t *testing.T) {
	clk := clocktesting.NewFakePassiveClock(time.Now())
	k := keeper(fake.NewClientBuilder().Build(), clk)
	calls := 0
	k.Changed = func() { calls++ }
	mustSync(t, k)
	mustSync(t, k)
	if calls != 1 {
		t.Fatalf("%d calls, want 1", calls)
	}
	clk.SetTime(clk.Now().Add(rotation.Interval))
	mustSync(t, k)
	if calls != 2 {
		t.Fatalf("%d calls after a rotation, want 2", calls)
	}
}
