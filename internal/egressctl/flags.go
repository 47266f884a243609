package egressctl

import (
	"errors"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/allowlist"
)

// flagNames says in flags what allowlist says in fields.
var flagNames = strings.NewReplacer("allowedHosts[", "--allow[", "deniedHosts[", "--deny[", "presets[", "--preset[")

// flagError names the flags instead of the fields of the policy.
func flagError(err error) error {
	var fields allowlist.FieldErrors
	if !errors.As(err, &fields) {
		return err
	}
	out := make(allowlist.FieldErrors, len(fields))
	for i, f := range fields {
		moved := *f
		moved.Field = flagNames.Replace(f.Field)
		out[i] = &moved
	}
	return out
}
