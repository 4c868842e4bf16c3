package monitor

import (
	"sync"
	"time"
)

// A gate lets many do things at once, or nobody: whoever is inside finishes, whoever comes later waits. Between the
// two lies the moment in which the monitor may become another build (upgrade.go).
type gate struct {
	mu     sync.Mutex
	inside int
	shut   bool
	opened chan struct{} // closed when the gate opens again; nil while it is open
	empty  chan struct{} // closed when the last one has left a shut gate
}

// enter waits until the gate is open.
func (g *gate) enter() {
	g.mu.Lock()
	for g.shut {
		opened := g.opened
		g.mu.Unlock()
		<-opened
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
}

// again counts one more for somebody who is inside already and hands work to another goroutine; it never waits.
func (g *gate) again() {
	g.mu.Lock()
	g.inside++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.shut && g.inside == 0 {
		close(g.empty)
	}
}

// close shuts the gate and returns true when nobody is inside. After limit it gives up and opens again.
func (g *gate) close(limit time.Duration) bool {
	g.mu.Lock()
	g.shut, g.opened, g.empty = true, make(chan struct{}), make(chan struct{})
	if g.inside == 0 {
		g.mu.Unlock()
		return true
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return true
	case <-time.After(limit):
		g.open()
		return false
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		g.shut = false
		close(g.opened)
	}
}
