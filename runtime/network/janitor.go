package network

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A pod's device goes with the pod's namespace. Deleting it by hand takes 17 ms of waiting (6.18, two cores) in which no
// other device can be made; the kernel clears any number of dead namespaces in one go, and has to anyway. So Del only
// notes that a sandbox leaves, and its address rests until the device is gone.
const (
	lookEvery = 300 * time.Millisecond
	patience  = time.Second // a device that is still there then has a namespace that somebody holds: delete it
)

// leaving are the sandboxes whose device is expected to go.
type leaving struct {
	mu    sync.Mutex
	since map[string]time.Time
	some  chan struct{} // capacity one: since may have entries
}

func newLeaving() *leaving {
	return &leaving{since: map[string]time.Time{}, some: make(chan struct{}, 1)}
}

func (l *leaving) add(sandbox string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.since[sandbox]; !ok {
		l.since[sandbox] = now
	}
	select {
	case l.some <- struct{}{}:
	default:
	}
}

func (l *leaving) has(sandbox string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.since[sandbox]
	return ok
}

// janitor frees the addresses of sandboxes that left. At rest it waits and costs nothing.
func (b *Bridge) janitor(ctx context.Context) {
	tick := time.NewTimer(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.leaving.some:
		}
		for more := true; more; more = b.farewell(time.Now()) {
			tick.Reset(lookEvery)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// farewell looks at each leaving sandbox once; more says that some are still leaving.
func (b *Bridge) farewell(now time.Time) (more bool) {
	there := map[string]bool{}
	devices, err := b.links.List()
	if err != nil {
		slog.Warn("devices of stopped sandboxes not seen, looking again", "bridge", b.name, "err", err)
		return true
	}
	for _, d := range devices {
		there[d.Name] = true
	}
	var late []string
	l := b.leaving
	l.mu.Lock()
	for sandbox, since := range l.since {
		switch {
		case !there[portName(sandbox)]:
			b.pool.give(sandbox)
			delete(l.since, sandbox)
		case now.Sub(since) >= patience:
			late = append(late, sandbox)
		}
	}
	more = len(l.since) > 0
	l.mu.Unlock()
	if len(late) > 0 {
		b.deleteLate(late)
	}
	return more
}

// deleteLate uses a socket of its own, so that Add never waits behind it.
func (b *Bridge) deleteLate(sandboxes []string) {
	for _, s := range sandboxes {
		if err := b.slow.Delete(portName(s)); err != nil {
			slog.Warn("device of a stopped sandbox not removed", "sandbox", s, "bridge", b.name, "err", err)
		}
	}
}
