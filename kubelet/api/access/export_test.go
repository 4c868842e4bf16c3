package access

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"worknode/kube"
)

// With returns c with another API server and clock.
func (c Config) With(create func(context.Context, kube.Resource, runtime.Object) error, now func() time.Time) Config {
	c.create, c.now = create, now
	return c
}

// Remembered is how many tokens are known.
func (a *Access) Remembered() int { return len(a.tokens.got) }
