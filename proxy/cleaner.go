package proxy

import (
	"context"
	"log/slog"
	"net/netip"
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
}

func newCleaner(cleaned func(state.Cleaned)) *cleaner {
	return &cleaner{cleaned: cleaned, wake: make(chan struct{}, 1), pending: map[state.Family]fronts{}}
}

// queue asks for the flows of fronts to be cleaned; a node port's front is one on each of nodes.
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
	for _, f := range flows {
		if f.Front.Addr.IsValid() {
			at[netip.AddrPortFrom(f.Front.Addr, f.Front.Port)] = f.Serving
			continue
		}
		for _, a := range nodes {
			at[netip.AddrPortFrom(a, f.Front.Port)] = f.Serving
		}
	}
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
	n, err := conntrack.Clean(conn, fam, at)
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
