package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"worknode/kube"
	"worknode/proxy/act"
	"worknode/proxy/addr"
	"worknode/proxy/api"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

const (
	queueLen     = 1024 // events; a full queue holds up the watch, which the API server buffers
	retryFirst   = 50 * time.Millisecond
	retryMost    = 30 * time.Second
	checkDefault = 10 * time.Minute
)

// family is one family's table and what we know it to hold. model is nil when we do not know: look first.
type family struct {
	fam   state.Family
	table *act.Table
	model *plan.Model
}

// loop is the proxy's one actor: it owns the store and the models, and nobody else writes the tables. A change is
// applied as soon as it arrives. While a transaction is in flight changes queue up, and the next one takes them all;
// there is no other delay.
type loop struct {
	node     string
	ranges   []netip.Prefix
	check    time.Duration
	families []*family
	events   chan api.Event
	local    chan addr.Local
	foreign  chan struct{} // somebody else changed a table
	health   *api.Health
	metrics  api.Metrics
	cleaner  *cleaner

	store    *state.Store
	dirty    map[state.Name]bool
	triggers []time.Time // of the dirty endpoints
	synced   bool        // the API has told all
	located  bool        // the kernel has told our addresses
	here     addr.Local
	nodeIPs  []netip.Addr // of the Node object
	moved    bool         // addresses changed
	looking  string       // why the next sync looks at the kernel first; empty: it trusts the models
	retry    time.Duration
	lastErr  string
	rivals   int
}

func newLoop(o Options, ranges []netip.Prefix, health *api.Health) *loop {
	l := &loop{
		node: o.NodeName, ranges: ranges, check: o.CheckPeriod, health: health,
		events: make(chan api.Event, queueLen), local: make(chan addr.Local), foreign: make(chan struct{}, 1),
		store: state.NewStore(), dirty: map[state.Name]bool{}, looking: lookStart,
	}
	if l.check <= 0 {
		l.check = checkDefault
	}
	l.cleaner = newCleaner(&l.metrics)
	return l
}

// Reasons to look at the kernel.
const (
	lookStart = "start"
	lookCheck = "check"
	lookError = "error"
)

// delta returns the receiver for a feed: it translates on the feed's goroutine, so that the actor never parses.
func (l *loop) delta(ctx context.Context) func(kube.Delta) {
	return func(d kube.Delta) {
		if e, ok := api.Translate(d, l.node, time.Now()); ok {
			select {
			case l.events <- e:
			case <-ctx.Done():
			}
		}
	}
}

// run is the actor. It returns when ctx ends and leaves the tables as they are.
func (l *loop) run(ctx context.Context) {
	check := time.NewTicker(l.check)
	defer check.Stop()
	again := time.NewTimer(0)
	again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-l.events:
			l.take(e)
		case here := <-l.local:
			l.here, l.located, l.moved = here, true, true
		case <-again.C:
		case <-check.C:
			l.looking = lookCheck
		case <-l.foreign:
			l.looking = lookCheck
		}
		l.drain()
		if !l.synced || !l.located || !l.work() {
			continue
		}
		if err := l.sync(); err != nil {
			l.failed(err)
			again.Reset(l.retry)
		} else {
			l.succeeded()
			again.Stop()
		}
	}
}

// work tells whether there is anything to do.
func (l *loop) work() bool { return len(l.dirty) > 0 || l.moved || l.looking != "" }

// drain takes what has queued up while the last transaction was in flight.
func (l *loop) drain() {
	for range queueLen {
		select {
		case e := <-l.events:
			l.take(e)
		default:
			return
		}
	}
}

// take records one event.
func (l *loop) take(e api.Event) {
	var touched []state.Name
	switch {
	case e.PutService != nil:
		l.metrics.ServiceChanges.Add(1)
		touched = l.store.PutService(e.PutService)
	case e.DeleteService != nil:
		l.metrics.ServiceChanges.Add(1)
		touched = l.store.DeleteService(*e.DeleteService)
	case e.PutSlice != nil:
		l.metrics.EndpointChanges.Add(1)
		touched = l.store.PutSlice(e.PutSlice)
	case e.DeleteSlice != nil:
		l.metrics.EndpointChanges.Add(1)
		touched = l.store.DeleteSlice(*e.DeleteSlice)
	case e.Node != nil:
		l.nodeIPs, l.moved = e.Node.IPs, true
		l.health.SetEligible(e.Node.Eligible)
	case e.Synced:
		l.synced = true
	}
	if len(touched) > 0 {
		l.health.Queued(e.Seen)
	}
	for _, name := range touched {
		l.dirty[name] = true
	}
	// Before the first sync the triggers are as old as the cluster and say nothing about us.
	if !e.Trigger.IsZero() && l.synced && len(l.triggers) < queueLen {
		l.triggers = append(l.triggers, e.Trigger)
	}
}

// nodePortAddrs returns where node ports of a family answer now.
func (l *loop) nodePortAddrs(fam state.Family) []netip.Addr {
	var out []netip.Addr
	for _, a := range addr.Choose(l.here, l.ranges, l.nodeIPs) {
		if state.Of(a) == fam {
			out = append(out, a)
		}
	}
	return out
}

func (l *loop) failed(err error) {
	l.metrics.SyncFailures.Add(1)
	l.looking = lookError
	l.retry = min(max(2*l.retry, retryFirst), retryMost)
	if text := err.Error(); text != l.lastErr {
		l.lastErr = text
		slog.Error("service table not updated, retrying; the old rules stay in force", "err", err, "services", len(l.dirty))
	}
}

func (l *loop) succeeded() {
	now := time.Now()
	if l.lastErr != "" {
		slog.Info("service table is up to date again")
	}
	l.lastErr, l.retry, l.looking, l.moved = "", 0, "", false
	clear(l.dirty)
	for _, t := range l.triggers {
		l.metrics.Program.Observe(max(0, now.Sub(t)))
	}
	l.triggers = l.triggers[:0]
	l.health.Done(now)
	l.metrics.LastSync.Store(now.UnixNano())
	services, slices := l.store.Len()
	l.metrics.Services.Store(int64(services))
	l.metrics.Slices.Store(int64(slices))
	if n := len(l.store.Contested()); n != l.rivals {
		l.rivals = n
		for f, names := range l.store.Contested() {
			slog.Warn("several Services claim one address and port; the first by name has it", "front", f, "services", names)
		}
	}
}
