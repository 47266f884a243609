package apply

import (
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func uid(o client.Object) *types.UID {
	u := o.GetUID()
	return &u
}
