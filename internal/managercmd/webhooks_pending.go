//go:build !webhookready

package managercmd

import (
	"errors"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

func addWebhooks(manager.Manager, Options) error { return errors.New("webhooks are not built in") }
