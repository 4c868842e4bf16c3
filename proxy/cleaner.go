package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"worknode/kernel/nft"
	"worknode/proxy/api"
	"worknode/proxy/conntrack"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// cleaner ends UDP flows beside the actor, as a dump of a large connection table takes long. Of several requests for
// one front only the newest counts.
type cleaner struct {
	metrics *api.Metrics
	wake    chan struct{}

	mu      sync.Mutex
	pending map[state.Family]map[netip.AddrPort][]netip.AddrPort
}

func newCleaner(m *api.Metrics) *cleaner {
	return &cleaner{metrics: m, wake: make(chan struct{}, 1), pending: map[state.Family]map[netip.AddrPort][]netip.AddrPort{}}
}

// queue asks for the flows of fronts to be cleaned; a node port's front is one on each of nodes.
func (c *cleaner) queue(fam state.Family, flows []plan.Flows, nodes []netip.Addr) {
	c.mu.Lock()
	at := c.pending[fam]
	if at == nil {
		at = map[netip.AddrPort][]netip.AddrPort{}
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
		c.pending = map[state.Family]map[netip.AddrPort][]netip.AddrPort{}
		c.mu.Unlock()
		for fam, fronts := range work {
			began := time.Now()
			n, err := conntrack.Clean(conn, fam, fronts)
			c.metrics.FlowsDeleted.Add(uint64(n))
			if err != nil {
				c.metrics.FlowFailures.Add(1)
				slog.Warn("UDP flows not cleaned; those to removed endpoints live until they are idle", "err", err)
			} else if n > 0 {
				slog.Debug("UDP flows cut", "flows", n, "took", time.Since(began))
			}
		}
	}
}
