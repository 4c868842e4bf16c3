package access

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"worknode/fault"
)

const (
	mostAnswers = 4096 // remembered at once; a flood of invented tokens must not fill the memory
	mostAsking  = 16   // reviews in flight; more callers wait
)

// cache remembers answers of type T until they expire. Callers with the same question at the same time share one.
type cache[T any] struct {
	flights singleflight.Group
	slots   chan struct{}

	mu  sync.Mutex
	got map[string]answer[T]
}

type answer[T any] struct {
	value T
	err   error
	until time.Time
}

func newCache[T any]() *cache[T] {
	return &cache[T]{slots: make(chan struct{}, mostAsking), got: map[string]answer[T]{}}
}

// get answers from memory or asks. ask tells how long its answer holds, errors too; zero: it is not remembered. It runs
// with a time of its own, as others may wait for the same answer.
func (c *cache[T]) get(ctx context.Context, key string, now func() time.Time, ask func(context.Context) (T, time.Duration, error)) (T, error) {
	c.mu.Lock()
	a, known := c.got[key]
	c.mu.Unlock()
	if known && now().Before(a.until) {
		return a.value, a.err
	}
	flight := c.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askWithin)
		defer cancel()
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return *new(T), fault.New(fault.Temporary, "too many reviews are waiting for the API server")
		}
		defer func() { <-c.slots }()
		value, holds, err := ask(ctx)
		if holds > 0 {
			c.keep(key, answer[T]{value, err, now().Add(holds)}, now())
		}
		return value, err
	})
	select {
	case r := <-flight:
		return r.Val.(T), r.Err
	case <-ctx.Done():
		return *new(T), fault.As(fault.Temporary, ctx.Err())
	}
}

// keep stores an answer. A full cache first loses what has expired, then whatever comes first.
func (c *cache[T]) keep(key string, a answer[T], now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) >= mostAnswers {
		for k, old := range c.got {
			if !now.Before(old.until) {
				delete(c.got, k)
			}
		}
	}
	for k := range c.got {
		if len(c.got) < mostAnswers {
			break
		}
		delete(c.got, k)
	}
	c.got[key] = a
}
