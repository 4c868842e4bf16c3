// Package task runs goroutines that have a name and an owner who waits for them.
// It is not a scheduler: bounds on how many run at once belong to the caller.
package task

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sort"
	"sync"
	"time"
)

// Group owns goroutines. When its context ends they are asked to stop; Wait returns when all have.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	next  uint64
	alive map[uint64]Running
}

// Running describes one live goroutine of a Group.
type Running struct {
	Name  string
	Since time.Time
}

// New returns a Group whose goroutines end with ctx.
func New(ctx context.Context) *Group {
	ctx, cancel := context.WithCancel(ctx)
	return &Group{ctx: ctx, cancel: cancel, alive: map[uint64]Running{}}
}

// Context is the one that every goroutine of the group receives.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs fn under a name. A panic in fn is logged with its stack and ends only fn:
// one pod's mistake must not take the node's other pods along.
func (g *Group) Go(name string, fn func(ctx context.Context)) {
	g.mu.Lock()
	id := g.next
	g.next++
	g.alive[id] = Running{name, time.Now()}
	g.mu.Unlock()
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() {
			g.mu.Lock()
			delete(g.alive, id)
			g.mu.Unlock()
			if p := recover(); p != nil {
				slog.Error("task panicked", "task", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
		}()
		fn(g.ctx)
	}()
}

// List returns the live goroutines, oldest first.
func (g *Group) List() []Running {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Running, 0, len(g.alive))
	for _, r := range g.alive {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}

// Stop asks every goroutine to end and waits until all have.
func (g *Group) Stop() { g.cancel(); g.wg.Wait() }

// Wait returns when no goroutine of the group is left.
func (g *Group) Wait() { g.wg.Wait() }
