package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
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

// family is one family's table and what we know it to hold. model is nil before the first sync.
type family struct {
	fam   state.Family
	model *plan.Model
}

// loop is the proxy's one actor: it owns the store and the models, and nobody else writes the tables. A change is
// applied as soon as it arrives. While a transaction is in flight changes queue up, and the next one takes them all;
// there is no other delay, unless a user wants one.
type loop struct {
	settings state.Settings
	hooks    state.Hooks
	tables   *act.Tables
	families []*family
	cleaner  *cleaner

	events    chan api.Event
	local     chan addr.Local
	foreign   chan struct{} // somebody else changed a table
	configure chan state.Settings
	asks      chan func()

	store    *state.Store
	dirty    map[state.Name]bool
	triggers []time.Time // of the dirty endpoints
	synced   bool        // the API has told all
	located  bool        // the kernel has told our addresses
	here     addr.Local
	node     state.Node
	cidrs    []netip.Prefix
	moved    bool   // rules, or addresses of this node, may be others
	looking  string // why the next sync looks at the kernel first; empty: it trusts the models
	retry    time.Duration
	last     time.Time // of the last transaction
	lastErr  string
	troubles troubles
	health   healthPorts
	nodeIPs  []netip.Addr // as last told to the hook
	first    bool         // a first sync has succeeded
}

func newLoop(s state.Settings, hooks state.Hooks, tables *act.Tables) *loop {
	l := &loop{
		settings: s, hooks: hooks, tables: tables,
		events: make(chan api.Event, queueLen), local: make(chan addr.Local), foreign: make(chan struct{}, 1),
		configure: make(chan state.Settings), asks: make(chan func()),
		store: state.NewStore(), dirty: map[state.Name]bool{}, looking: lookStart, moved: true,
		troubles: troubles{}, health: healthPorts{at: map[state.Name]state.HealthPort{}},
	}
	for _, fam := range []state.Family{state.V4, state.V6} {
		if len(s.Families) == 0 && tables.Serves(fam) || slices.Contains(s.Families, fam) {
			l.families = append(l.families, &family{fam: fam})
		}
	}
	l.cleaner = newCleaner(hooks.Cleaned)
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
	node := l.settings.NodeName
	return func(d kube.Delta) {
		if e, ok := api.Translate(d, node, time.Now()); ok {
			select {
			case l.events <- e:
			case <-ctx.Done():
			}
		}
	}
}

// Configure gives the loop other settings, which must name the same node and families. It applies the difference.
func (l *loop) Configure(ctx context.Context, s state.Settings) {
	select {
	case l.configure <- s:
	case <-ctx.Done():
	}
}

// run is the actor. It returns when ctx ends and leaves the tables as they are.
func (l *loop) run(ctx context.Context) {
	// Most of the heap is what the cluster is, and changes in it are small: collecting twice as often as is usual costs
	// next to nothing and saves a quarter of the memory.
	debug.SetGCPercent(50)
	check := time.NewTicker(l.checkPeriod())
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
		case s := <-l.configure:
			s.NodeName, s.Families = l.settings.NodeName, l.settings.Families
			l.settings, l.moved = s, true
			check.Reset(l.checkPeriod())
		case ask := <-l.asks:
			ask()
			continue
		case <-again.C:
		case <-check.C:
			l.looking = lookCheck
		case <-l.foreign:
			l.looking = lookCheck
		}
		for l.due(again) {
			if err := l.sync(); err != nil {
				l.failed(err)
				again.Reset(l.retry)
				break
			}
		}
	}
}

func (l *loop) checkPeriod() time.Duration {
	if l.settings.FullSync > 0 {
		return l.settings.FullSync
	}
	return checkDefault
}

// due takes what has queued up and tells whether to sync now; if it is too early for that, it sets the timer.
func (l *loop) due(again *time.Timer) bool {
	l.drain()
	if !l.synced || !l.located || !l.work() {
		return false
	}
	if early := l.settings.MinSync - time.Since(l.last); l.settings.MinSync > 0 && early > 0 {
		again.Reset(early)
		return false
	}
	return true
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
		l.received("Service", e.PutService.Name, e.Seen)
		touched = l.store.PutService(e.PutService)
	case e.DeleteService != nil:
		l.received("Service", *e.DeleteService, e.Seen)
		touched = l.store.DeleteService(*e.DeleteService)
	case e.PutSlice != nil:
		l.received("EndpointSlice", e.PutSlice.Name, e.Seen)
		touched = l.store.PutSlice(e.PutSlice)
	case e.DeleteSlice != nil:
		l.received("EndpointSlice", *e.DeleteSlice, e.Seen)
		touched = l.store.DeleteSlice(*e.DeleteSlice)
	case e.Node != nil:
		l.received("Node", state.Name{Name: l.settings.NodeName}, e.Seen)
		l.meet(*e.Node)
	case e.CIDRs != nil:
		l.received("ServiceCIDR", state.Name{}, e.Seen)
		l.cidrs, l.moved = *e.CIDRs, true
	case e.Synced:
		l.synced = true
	}
	for _, name := range touched {
		l.dirty[name] = true
		l.troubles.unbar(l.hooks, name) // it is another one now: try it
	}
	if e.Trouble != nil {
		l.troubles.say(l.hooks, *e.Trouble)
	}
	// Before the first sync the triggers are as old as the cluster and say nothing about us.
	if !e.Trigger.IsZero() && l.first && len(touched) > 0 && len(l.triggers) < queueLen {
		l.triggers = append(l.triggers, e.Trigger)
	}
}

func (l *loop) received(kind string, name state.Name, at time.Time) {
	if l.hooks.Received != nil {
		l.hooks.Received(state.Received{Kind: kind, Object: name, At: at})
	}
}

// meet takes over what the API says of this node. What Services are compiled with makes all of them dirty, which costs a
// compilation, but no more elements than really change.
func (l *loop) meet(n state.Node) {
	if n.Zone != l.node.Zone || !slices.Equal(n.IPs, l.node.IPs) {
		l.store.Services(func(name state.Name) { l.dirty[name] = true })
	}
	l.node, l.moved = n, true
	if l.hooks.Node != nil {
		l.hooks.Node(n)
	}
}

// want is what a family's table is to be besides the Services.
func (l *loop) want(fam state.Family) plan.Want {
	w := plan.Want{Rules: plan.RulesOf(&l.settings, &l.node, l.cidrs, fam)}
	for _, a := range addr.Choose(l.here, l.settings.NodePorts, l.node.IPs) {
		if state.Of(a) == fam {
			w.NodeIPs = append(w.NodeIPs, a)
		}
	}
	return w
}

func (l *loop) failed(err error) {
	l.looking = lookError // the models are not trusted until then, but know which flows to clean
	l.retry = min(max(2*l.retry, retryFirst), retryMost)
	if l.hooks.Failed != nil {
		l.hooks.Failed(err)
	}
	if text := err.Error(); text != l.lastErr {
		l.lastErr = text
		slog.Error("service table not updated, retrying; the old rules stay in force", "err", err, "services", len(l.dirty))
	}
}

// ask runs fn on the actor's goroutine and waits for it: fn may look at everything, and must be quick.
func (l *loop) ask(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	select {
	case l.asks <- func() { fn(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}
