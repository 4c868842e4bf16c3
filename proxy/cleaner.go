package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"worknode/kernel/nft"
	"worknode/proxy/conntrack"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// cleanRetry is how long the cleaner waits after a failure: a full or busy connection table needs time.
const cleanRetry = 2 * time.Second

// lateAnswer is how long an answer may take that was asked for before its flow was cut.
const lateAnswer = 250 * time.Millisecond

// cleaner ends UDP flows beside the actor, as a dump of a large connection table takes long; what failed is done again.
//
// A flow may be judged only by what is true when it is ended: one that has begun while we looked goes to an endpoint that
// we may not have known then. So the actor announces what flows may lead to before its transaction, and asks for the
// cleaning after it; and each flow is judged again just before its end.
type cleaner struct {
	cleaned func(state.Cleaned)
	wake    chan struct{}

	mu    sync.Mutex
	turn  uint64 // of the last announcement
	due   uint64 // of the last one that is committed
	known map[target]serving

	late map[state.Family]conntrack.Late // run's alone: cut flows to look after
}

// target is where a client sends to.
type target struct {
	fam state.Family
	at  netip.AddrPort
}

// serving is what flows to a target may lead to, and when we were told.
type serving struct {
	to    []netip.AddrPort
	since uint64
}

func newCleaner(cleaned func(state.Cleaned)) *cleaner {
	return &cleaner{cleaned: cleaned, wake: make(chan struct{}, 1), known: map[target]serving{}, late: map[state.Family]conntrack.Late{}}
}

// announce tells what flows may lead to once a transaction is committed; a node port's front is one on each of nodes.
func (c *cleaner) announce(fam state.Family, flows []plan.Flows, nodes []netip.Addr) {
	if len(flows) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	for _, f := range flows {
		on := nodes
		if f.Front.Addr.IsValid() {
			on = []netip.Addr{f.Front.Addr}
		}
		for _, a := range on {
			c.known[target{fam, netip.AddrPortFrom(a, f.Front.Port)}] = serving{f.Serving, c.turn}
		}
	}
}

// committed asks for the cleaning of what was announced. What was cleaned before the kernel had the new rules does not
// count: until then flows began by the old ones.
func (c *cleaner) committed() {
	c.mu.Lock()
	c.due = c.turn
	c.mu.Unlock()
	c.kick()
}

func (c *cleaner) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cleaner) run(ctx context.Context, conn *nft.Conn) {
	finish := time.NewTimer(0)
	finish.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-finish.C:
			if waiting = c.finish(conn); waiting {
				finish.Reset(lateAnswer)
			}
			continue
		case <-c.wake:
		}
		for _, fam := range []state.Family{state.V4, state.V6} {
			to, turn := c.targets(fam)
			if len(to) == 0 {
				continue
			}
			if c.clean(ctx, conn, fam, to) == nil {
				c.forget(fam, to, turn)
			} else {
				c.kick()
			}
		}
		if len(c.late) > 0 && !waiting {
			waiting = true
			finish.Reset(lateAnswer)
		}
	}
}

// finish looks after the flows that were cut a while ago, and tells whether there is something left to look after: a busy
// client may have asked again at the wrong moment, which is ever less likely.
func (c *cleaner) finish(conn *nft.Conn) (left bool) {
	for fam, late := range c.late {
		again, err := conntrack.Finish(conn, fam, late)
		if err != nil {
			slog.Warn("UDP flows that late answers have begun are not cut", "err", err)
		}
		if c.late[fam] = again; len(again) == 0 {
			delete(c.late, fam)
		}
	}
	return len(c.late) > 0
}

// targets returns what is to be cleaned, and which turn will be clean then.
func (c *cleaner) targets(fam state.Family) (to []netip.AddrPort, turn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.known {
		if t.fam == fam {
			to = append(to, t.at)
		}
	}
	return to, c.due
}

// forget drops what is clean, but that of which there is news.
func (c *cleaner) forget(fam state.Family, to []netip.AddrPort, turn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, at := range to {
		if t := (target{fam, at}); c.known[t].since <= turn {
			delete(c.known, t)
		}
	}
}

// stale tells whether a flow leads where it no longer should, as of now.
func (c *cleaner) stale(fam state.Family, to, answers netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ours := c.known[target{fam, to}]
	return ours && !slices.Contains(s.to, answers)
}

func (c *cleaner) clean(ctx context.Context, conn *nft.Conn, fam state.Family, to []netip.AddrPort) error {
	began := time.Now()
	n, late, err := conntrack.Clean(conn, fam, to, func(to, answers netip.AddrPort) bool { return c.stale(fam, to, answers) })
	took := time.Since(began)
	if len(late) > 0 {
		c.late[fam] = append(c.late[fam], late...)
	}
	if c.cleaned != nil {
		c.cleaned(state.Cleaned{Family: fam, Deleted: n, Took: took, Err: err})
	}
	if err != nil {
		slog.Warn("UDP flows not cleaned, trying again; those to removed endpoints live on until then", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(cleanRetry):
		}
	} else if n > 0 {
		slog.Debug("UDP flows cut", "flows", n, "took", took)
	}
	return err
}
