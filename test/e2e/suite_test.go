// Package e2e tests Sandbox Egress, installed through its chart, with real pods in a
// single-node cluster. It needs root. KEEP=1 leaves the cluster up and uses it again.
package e2e

import (
	"context"
	"os"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

// The cluster's directories are not those of the demo, which may be up for somebody.
const (
	stateDir = "/run/sandbox-egress-e2e"
	dataDir  = "/var/lib/sandbox-egress-e2e"
)

// p is the platform that all specs share.
var p *platform.Platform

func TestE2E(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the end-to-end tests start a cluster and need root")
	}
	RegisterFailHandler(Fail)
	ctrl.SetLogger(GinkgoLogr)
	SetDefaultEventuallyTimeout(time.Minute)
	SetDefaultEventuallyPollingInterval(500 * time.Millisecond)
	SetDefaultConsistentlyDuration(3 * time.Second)
	SetDefaultConsistentlyPollingInterval(500 * time.Millisecond)
	EnforceDefaultTimeoutsWhenUsingContexts()
	RunSpecs(t, "e2e")
}

var keep = os.Getenv("KEEP") != ""

var _ = BeforeSuite(func(ctx SpecContext) {
	begin := time.Now()
	var err error
	p, err = platform.Start(ctx, platform.Options{
		StateDir: stateDir, DataDir: dataDir, Reuse: keep,
		Log: func(line string) { GinkgoWriter.Println(line) },
	})
	Expect(err).NotTo(HaveOccurred())
	GinkgoWriter.Printf("the cluster was up after %.0f s\n", time.Since(begin).Seconds())
	DeferCleanup(func(ctx SpecContext) {
		if keep {
			GinkgoWriter.Println(p.Usage(ctx))
			Expect(p.Detach()).To(Succeed())
			return
		}
		Expect(p.Stop(ctx)).To(Succeed())
	}, NodeTimeout(2*time.Minute))
	begin = time.Now()
	if err := p.Install(ctx, p.Chart()); err != nil {
		diagnose()
		Fail(err.Error())
	}
	GinkgoWriter.Printf("the chart was installed after %.0f s\n", time.Since(begin).Seconds())
}, NodeTimeout(25*time.Minute))

// Ordered, so that the order is the one written here: expiry needs minutes to pass, in which
// the others run, and the last ones take the operator away.
var _ = Describe("Sandbox Egress", Ordered, ContinueOnFailure, func() {
	JustAfterEach(func() {
		if CurrentSpecReport().Failed() {
			diagnose()
		}
	})
	expirySpecsBegin()
	accessSpecs()
	isolationSpecs()
	identitySpecs()
	liveSpecs()
	observeSpecs()
	relaySpecs()
	sandboxAPISpecs()
	outageSpecs()
	proxyOutageSpecs()
	gateSpecs()
	namespaceSpecs()
	expirySpecsEnd()
	releaseSpecs()
})

func diagnose() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The current spec plays in the last two at most.
	p.Diagnose(ctx, GinkgoWriter, namespaces[max(0, len(namespaces)-2):]...)
}
