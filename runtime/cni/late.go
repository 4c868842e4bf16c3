package cni

import (
	"context"
	"log/slog"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	firstPause   = time.Second
	lastPause    = 5 * time.Minute
	gateEvery    = 50 * time.Millisecond
	gatePatience = time.Minute
	gcLimit      = 20 * time.Second // in which no pod of this network starts or stops
)

// late is a DEL that nobody asks for any more and that has not succeeded yet.
type late struct {
	next  time.Time
	pause time.Duration
}

func (n *Network) later(sandbox string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.late[sandbox] == nil {
		n.late[sandbox] = &late{time.Now().Add(firstPause), firstPause}
	}
	poke(n.due)
}

func (n *Network) forgetLate(sandbox string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.late, sandbox)
}

// Reconcile ends the attachments of all sandboxes but the live ones, in the background: they may be many after a reboot,
// and a plugin may hang. Then it has the plugins of each network collect what nobody knows of (GC, spec 1.1). Call it
// once, between Open and the first Add.
func (n *Network) Reconcile(live map[string]bool) error {
	all, err := n.recorded()
	if err != nil {
		return err
	}
	n.mu.Lock()
	for _, id := range all {
		if !live[id] {
			n.late[id] = &late{time.Now(), firstPause}
		}
	}
	n.gcDue = true
	n.mu.Unlock()
	poke(n.due)
	return nil
}

// repeatLate runs late DELs when they are due, one after another. At rest it waits and costs nothing.
func (n *Network) repeatLate(ctx context.Context) {
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.due:
		case <-timer.C:
		}
		for {
			id, wait := n.nextLate(time.Now())
			if id == "" {
				n.collect(ctx)
				if wait > 0 {
					timer.Reset(wait)
				}
				break
			}
			n.endLate(ctx, id)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// nextLate is a sandbox that is due, or else how long until one is; zero if there is none.
func (n *Network) nextLate(now time.Time) (id string, wait time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, l := range n.late {
		left := l.next.Sub(now)
		if left <= 0 {
			return id, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return "", wait
}

func (n *Network) endLate(ctx context.Context, id string) {
	rec, err := n.read(id)
	if rec == nil && err == nil {
		n.forgetLate(id)
		return
	}
	if err == nil {
		n.waitForAdd(ctx, id)
		n.gate.RLock()
		limited, stop := context.WithTimeout(ctx, n.conf.DelLimit)
		err = n.del(limited, rec)
		stop()
		n.gate.RUnlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.late[id]
	switch {
	case err == nil:
		delete(n.late, id)
		slog.Info("attachment of a dead sandbox ended", "sandbox", id)
	case l != nil && ctx.Err() == nil:
		if l.pause == firstPause {
			slog.Warn("attachment of a dead sandbox not ended, trying again", "sandbox", id, "error", err)
		}
		l.next = time.Now().Add(l.pause)
		l.pause = min(2*l.pause, lastPause)
	}
}

// modern tells whether a configuration's version has STATUS and GC.
func modern(v string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, "1.1.0")
	return err == nil && ok
}

// alone takes the gate in a moment when nobody is in it. A queue for it would hold up everybody behind one slow plugin.
func (n *Network) alone(ctx context.Context) bool {
	tick := time.NewTicker(gateEvery)
	defer tick.Stop()
	for until := time.Now().Add(gatePatience); time.Now().Before(until); {
		if n.gate.TryLock() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// collect runs the GC of the configuration in force if it is due. It holds everybody off: an attachment made meanwhile would not be
// in its list. So it is short, and not repeated when it fails; the next start is.
func (n *Network) collect(ctx context.Context) {
	n.mu.Lock()
	c, due := n.current, n.gcDue
	n.gcDue = n.gcDue && c == nil // without a configuration it waits for one
	n.mu.Unlock()
	if !due || c == nil || !modern(c.list.CNIVersion) || c.list.DisableGC {
		return
	}
	if !n.alone(ctx) {
		slog.Warn("GC of the network's plugins left out: pods started and stopped without a pause", "network", c.list.Name)
		return
	}
	defer n.gate.Unlock()
	all, err := n.recorded()
	if err != nil {
		slog.Warn("GC of the network's plugins left out", "error", err)
		return
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	n.mu.Lock()
	for _, id := range all {
		if n.late[id] == nil {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: Interface})
		}
	}
	n.mu.Unlock()
	limited, stop := context.WithTimeout(ctx, min(n.conf.DelLimit, gcLimit))
	defer stop()
	if err := n.lib.GCNetworkList(limited, c.list, args); err != nil && ctx.Err() == nil {
		slog.Warn("GC of the network's plugins", "network", c.list.Name, "error", err)
	}
}
