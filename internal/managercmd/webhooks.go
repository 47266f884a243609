package managercmd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/sandbox-egress/sandbox-egress/controllers/apply"
	"github.com/sandbox-egress/sandbox-egress/internal/injector"
	"github.com/sandbox-egress/sandbox-egress/internal/webhook"
)

// errNotServing is what readiness says until the webhook answers.
var errNotServing = errors.New("the admission webhook does not serve yet: its certificate is not there; see the log for cert-rotation")

// addWebhooks registers the admission handlers once the certificate is there: the webhook
// server reads it when it starts, and GetWebhookServer starts it.
func addWebhooks(mgr manager.Manager, o Options) error {
	var checker atomic.Pointer[healthz.Checker]
	start := func() error {
		err := webhook.Setup(mgr, webhook.Config{
			Injector:     injector.Config{Image: o.Image, ImagePullPolicy: corev1.PullPolicy(o.ImagePullPolicy)},
			Metrics:      o.Registerer,
			OperatorUser: "system:serviceaccount:" + o.Namespace + ":" + ServiceAccount,
		})
		if err != nil {
			return fmt.Errorf("set up the webhooks: %w", err)
		}
		check := mgr.GetWebhookServer().StartedChecker()
		checker.Store(&check)
		return nil
	}
	ready := func(req *http.Request) error {
		check := checker.Load()
		if check == nil {
			return errNotServing
		}
		return (*check)(req)
	}
	if err := mgr.AddReadyzCheck("webhook", ready); err != nil {
		return fmt.Errorf("add the webhook readiness check: %w", err)
	}
	if o.CertSource == CertSourceFiles {
		return start()
	}
	secret := types.NamespacedName{Namespace: o.Namespace, Name: WebhookCertSecret}
	if err := mgr.Add(&certFiles{reader: mgr.GetAPIReader(), secret: secret, dir: o.CertDir}); err != nil {
		return fmt.Errorf("add the certificate files: %w", err)
	}
	certsReady := make(chan struct{})
	err := rotator.AddRotator(mgr, &rotator.CertRotator{
		SecretKey:      secret,
		CertDir:        o.CertDir,
		CAName:         "sandbox-egress-ca",
		CAOrganization: "sandbox-egress",
		DNSName:        WebhookService + "." + o.Namespace + ".svc",
		IsReady:        certsReady,
		FieldOwner:     apply.FieldOwner,
		Webhooks: []rotator.WebhookInfo{
			{Name: MutatingConfig, Type: rotator.Mutating},
			{Name: ValidatingConfig, Type: rotator.Validating},
		},
		// A standby serves the webhook too, so it needs the certificate as much.
		RequireLeaderElection: false,
	})
	if err != nil {
		return fmt.Errorf("add the certificate rotation: %w", err)
	}
	return mgr.Add(everyReplica(func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-certsReady:
			return start()
		}
	}))
}

// everyReplica is a runnable that does not wait for leadership.
type everyReplica func(context.Context) error

func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }

func (everyReplica) NeedLeaderElection() bool { return false }
