package kube_test

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sandbox-egress/sandbox-egress/internal/managercmd/managertest"
)

func TestKube(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(15 * time.Second)
	SetDefaultEventuallyPollingInterval(5 * time.Millisecond)
	RunSpecs(t, "internal/policy/kube")
}

var (
	env     *managertest.Env
	manager *managertest.Manager
)

var _ = BeforeSuite(func() {
	ctrl.SetLogger(logr.Discard())
	var err error
	env, err = managertest.Start(nil)
	Expect(err).NotTo(HaveOccurred())
	manager, err = env.StartManager(managertest.Options())
	Expect(err).NotTo(HaveOccurred())
})

var _ = AfterSuite(func() {
	if manager != nil {
		Expect(manager.Stop()).To(Succeed())
	}
	if env != nil {
		Expect(env.Stop()).To(Succeed())
	}
})
