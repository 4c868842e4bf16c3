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

// fronts are what UDP flows may lead to, by where they were sent to.
type fronts = map[netip.AddrPort][]netip.AddrPort

// cleaner ends UDP flows beside the actor, as a dump of a large connection table takes long. Of several requests for
// one front only the newest counts; what failed is asked for again.
type cleaner struct {
	cleaned func(state.Cleaned)
	wake    chan struct{}

	mu      sync.Mutex
	pending map[state.Family]fronts
	coming  map[state.Family]fronts // what the transaction on its way will make of fronts; see announce
}

func newCleaner(cleaned func(state.Cleaned)) *cleaner {
	return &cleaner{cleaned: cleaned, wake: make(chan struct{}, 1), pending: map[state.Family]fronts{}, coming: map[state.Family]fronts{}}
}

// announce tells what queue will ask for once a transaction is committed. A cleaning that is at work knows only of
// earlier ones: it must not cut the flows that this one brings about.
func (c *cleaner) announce(fam state.Family, flows []plan.Flows, nodes []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coming[fam] = fronts{}
	gather(c.coming[fam], flows, nodes)
}

// gather lists flows by front; a node port's front is one on each of nodes.
func gather(at fronts, flows []plan.Flows, nodes []netip.Addr) {
	for _, f := range flows {
		if f.Front.Addr.IsValid() {
			at[netip.AddrPortFrom(f.Front.Addr, f.Front.Port)] = f.Serving
			continue
		}
		for _, a := range nodes {
			at[netip.AddrPortFrom(a, f.Front.Port)] = f.Serving
		}
	}
}

// stale tells which flows a cleaning of at is to cut: those that lead nowhere by all that is known by now.
func (c *cleaner) stale(fam state.Family, at fronts) func(to, answers netip.AddrPort) bool {
	return func(to, answers netip.AddrPort) bool {
		good, ours := at[to]
		if !ours || slices.Contains(good, answers) {
			return false
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return !slices.Contains(c.pending[fam][to], answers) && !slices.Contains(c.coming[fam][to], answers)
	}
}

// queue asks for the flows of fronts to be cleaned.
func (c *cleaner) queue(fam state.Family, flows []plan.Flows, nodes []netip.Addr) {
	if len(flows) == 0 {
		return
	}
	c.mu.Lock()
	at := c.pending[fam]
	if at == nil {
		at = fronts{}
		c.pending[fam] = at
	}
	gather(at, flows, nodes)
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		work := c.pending
		c.pending = map[state.Family]fronts{}
		c.mu.Unlock()
		for fam, at := range work {
			if c.clean(ctx, conn, fam, at) != nil {
				c.again(fam, at)
			}
		}
	}
}

func (c *cleaner) clean(ctx context.Context, conn *nft.Conn, fam state.Family, at fronts) error {
	began := time.Now()
	n, err := conntrack.Clean(conn, fam, at, c.stale(fam, at))
	took := time.Since(began)
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

// again puts back what failed, but for fronts of which there is news.
func (c *cleaner) again(fam state.Family, at fronts) {
	c.mu.Lock()
	if c.pending[fam] == nil {
		c.pending[fam] = fronts{}
	}
	for front, serving := range at {
		if _, newer := c.pending[fam][front]; !newer {
			c.pending[fam][front] = serving
		}
	}
	c.mu.Unlock()
	c.kick()
}
