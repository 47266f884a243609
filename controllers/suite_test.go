package controllers_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
)

func TestControllers(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(15 * time.Second)
	SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	RunSpecs(t, "controllers")
}

var env *managertest.Env

var _ = BeforeSuite(func() {
	ctrl.SetLogger(logr.Discard())
	var err error
	env, err = managertest.Start(nil)
	Expect(err).NotTo(HaveOccurred())
})

var _ = AfterSuite(func() {
	if env != nil {
		Expect(env.Stop()).To(Succeed())
	}
})

// managed gives each spec of an Ordered container the manager that start makes before the
// first of them, and stops it after the last.
func managed(start func(context.Context) *managertest.Manager) {
	BeforeAll(func(ctx SpecContext) {
		m := start(ctx)
		// After every AfterAll: those still need the manager.
		DeferCleanup(func() { Expect(m.Stop()).To(Succeed()) })
	})
}
