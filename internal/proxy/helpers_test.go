package proxy

import "github.com/sandbox-egress/sandbox-egress/internal/token"

func claimsFor(container string) *token.Claims {
	c := &token.Claims{ContainerID: container, EnforceContainerBinding: true}
	return c
}
