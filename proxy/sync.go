package proxy

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"worknode/proxy/act"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// batchElems is about how many elements one transaction has at most, after the first load: other users of nftables wait
// while it is in flight, and five milliseconds are what we think they should.
const batchElems = 1500

// claim looks at the tables once before anything is known, so that a start which cannot succeed fails at once, and
// so that an orphaned table is ours while the API is read. It keeps working as it is meanwhile.
func (l *loop) claim() error {
	for _, f := range l.families {
		if _, err := l.tables.Look(f.fam, l.want(f.fam).Rules.Known()); err != nil {
			return err
		}
	}
	return nil
}

// pass is one transaction on its way.
type pass struct {
	state.Commit
	names   []state.Name // the Services in it; all of them if Full
	changes []act.Change
	deltas  []plan.Delta // one a family
	seen    []act.Seen   // one a family, if Full
}

// sync makes one transaction of both families: of all that is dirty, or of a part that is not too long.
func (l *loop) sync() error {
	p := &pass{Commit: state.Commit{Began: time.Now()}}
	full := l.looking != ""
	for _, f := range l.families {
		full = full || f.model == nil
	}
	var err error
	if full {
		err = l.prepareFull(p)
	} else {
		l.prepare(p)
	}
	if err == nil {
		err = l.apply(p)
	}
	if err != nil {
		l.suspect(p, err)
		return err
	}
	l.commit(p)
	return nil
}

// prepare compiles what is dirty.
func (l *loop) prepare(p *pass) {
	changed := make([][]plan.Changed, len(l.families))
	size := 0
	take := func(name state.Name) {
		p.names = append(p.names, name)
		in := l.input(name)
		for i, f := range l.families {
			c := plan.Changed{Service: name, Ports: l.compile(in, name, f.fam)}
			for _, port := range c.Ports {
				size += 3 + len(port.All) + len(port.Local)
			}
			changed[i] = append(changed[i], c)
		}
	}
	moved := l.store.Moved() // these belong together: what one gives up another takes
	for name := range moved {
		if l.dirty[name] {
			take(name)
		}
	}
	for name := range l.dirty {
		if size >= batchElems {
			break
		}
		if !moved[name] {
			take(name)
		}
	}
	for i, f := range l.families {
		p.add(f.fam, f.model.Diff(changed[i], l.want(f.fam)))
	}
}

// prepareFull compares the tables in the kernel with all that is wanted: at the start, after an error, now and then.
func (l *loop) prepareFull(p *pass) error {
	p.Full = true
	for _, f := range l.families {
		want := l.want(f.fam)
		seen, err := l.tables.Look(f.fam, want.Rules.Known())
		if err != nil {
			return err
		}
		p.seen = append(p.seen, seen)
		if !seen.Usable {
			seen.Have = plan.Have{}
		}
		p.add(f.fam, plan.Full(seen.Have, l.compileAll(f.fam, nil), want))
		if !seen.Usable {
			last := &p.changes[len(p.changes)-1]
			last.Make, last.Exists = true, seen.Exists
			p.Replaced++
		}
	}
	return nil
}

func (p *pass) add(fam state.Family, d plan.Delta) {
	p.deltas = append(p.deltas, d)
	p.changes = append(p.changes, act.Change{Family: fam})
}

// apply has the kernel take the pass.
func (l *loop) apply(p *pass) (err error) {
	var do []act.Change
	for i := range p.changes {
		p.changes[i].Delta = &p.deltas[i]
		if d := &p.deltas[i]; !d.Empty() || p.changes[i].Make {
			p.Elements += d.Size()
			do = append(do, p.changes[i])
		}
	}
	if len(do) == 0 {
		l.announce(p) // a look at the kernel is a look at its flows, too
		return nil
	}
	p.Transactions = 1
	l.announce(p)
	p.Bytes, err = l.tables.Apply(do...)
	return err
}

// announce tells the cleaner what UDP flows may lead to when the pass is committed.
func (l *loop) announce(p *pass) {
	if l.settings.KeepUDPFlows {
		return
	}
	for i, f := range l.families {
		model := f.model
		if model == nil {
			model = plan.NewModel()
		}
		l.cleaner.announce(f.fam, model.Flows(&p.deltas[i]), l.want(f.fam).NodeIPs)
	}
}

// commit records what the kernel has taken.
func (l *loop) commit(p *pass) {
	p.Done = time.Now()
	if p.Full {
		for i, f := range l.families {
			l.report(f.fam, p, i)
		}
		l.looking = ""
	}
	for i, f := range l.families {
		d := &p.deltas[i]
		if f.model == nil {
			f.model = plan.NewModel()
		}
		f.model.Commit(d)
		if err := l.tables.Sweep(f.fam, d.Sweep); err != nil {
			// Those clients stay with an endpoint that is gone until their time is over, or the next look sweeps them.
			slog.Warn("clients of removed endpoints not forgotten", "err", err)
			l.looking = lookError
		}
	}
	l.cleaner.committed()
	if p.Full {
		l.store.Services(func(name state.Name) { p.names = append(p.names, name) })
		for name := range l.dirty {
			p.names = append(p.names, name)
		}
		clear(l.dirty)
	}
	for _, name := range p.names {
		delete(l.dirty, name)
	}
	l.moved = false
	p.Services = len(p.names)
	l.settle(p)
}

// settle tells those who listen, once the kernel has everything.
func (l *loop) settle(p *pass) {
	if l.lastErr != "" {
		slog.Info("service table is up to date again")
	}
	l.lastErr, l.retry = "", 0
	if p.Transactions > 0 {
		slog.Debug("service table changed", "services", len(p.names), "elements", p.Elements, "bytes", p.Bytes, "took", p.Done.Sub(p.Began))
	}
	l.health.update(l, p.names)
	l.troubles.update(l, p.names)
	l.tellNodeIPs()
	if len(l.dirty) == 0 {
		l.last = p.Done
		l.store.Settle()
		p.Triggers = slices.Clone(l.triggers)
		l.triggers = l.triggers[:0]
	}
	p.AllServices, p.AllSlices = l.store.Len()
	for _, f := range l.families {
		t := f.model.Totals()
		p.AllEndpoints += t.Endpoints
		p.NoLocal.Internal += t.NoLocalInternal
		p.NoLocal.External += t.NoLocalExternal
	}
	if l.hooks.Committed != nil && len(l.dirty) == 0 {
		l.hooks.Committed(p.Commit)
	}
	if !l.first {
		l.first = true
		l.supersede()
		debug.FreeOSMemory() // the first load takes several times of what is kept
	}
}

// report logs what a look at the kernel has found, and counts what was not as we had left it.
func (l *loop) report(fam state.Family, p *pass, i int) {
	d, seen := &p.deltas[i], &p.seen[i]
	switch {
	case !seen.Usable && (seen.Exists || l.looking == lookCheck):
		slog.Warn("service table was not ours or not whole, made it anew", "family", fam, "why", seen.Why, "elements", d.Size())
	case !seen.Usable:
		slog.Info("service table made", "family", fam, "elements", d.Size())
	case l.looking == lookStart:
		slog.Info("service table adopted", "family", fam, "elements", len(seen.Elems), "changed", d.Size())
	}
	if l.looking != lookCheck || len(l.dirty) > 0 || l.moved {
		return // changes that arrived together with the check are no drift
	}
	if n := d.Size() + len(d.Chains) + len(d.Maps); n > 0 {
		p.Drift += n
		if seen.Usable {
			slog.Warn("service table had drifted, repaired it", "family", fam, "elements", d.Size(), "chains", len(d.Chains), "first", d.First())
		}
	}
}

// input is one Service as the store has it.
func (l *loop) input(name state.Name) plan.Input {
	svc, slices := l.store.Service(name)
	return plan.Input{Service: svc, Slices: slices, Owns: func(f state.Front) bool { return l.store.Owns(name, f) }}
}

// compile turns one Service into ports. A Service that breaks our code is left out: it must not stop the others.
func (l *loop) compile(in plan.Input, name state.Name, fam state.Family) (ports []*plan.Port) {
	if l.troubles.barred(name) {
		return nil
	}
	defer func() {
		if bug := recover(); bug != nil {
			slog.Error("a Service breaks the proxy's code and is not served", "service", name, "panic", fmt.Sprint(bug), "stack", string(debug.Stack()))
			l.troubles.bar(l.hooks, name, fmt.Sprintf("the proxy's code breaks on it: %v", bug))
			ports = nil
		}
	}()
	return plan.Compile(in, fam, plan.Here{Node: l.settings.NodeName, Zone: l.node.Zone, IPs: l.node.IPs})
}

// compileAll compiles every Service, or those that only picks.
func (l *loop) compileAll(fam state.Family, only func(state.Name) bool) (out []plan.Changed) {
	services, _ := l.store.Len()
	out = make([]plan.Changed, 0, services)
	l.store.Services(func(name state.Name) {
		if only == nil || only(name) {
			out = append(out, plan.Changed{Service: name, Ports: l.compile(l.input(name), name, fam)})
		}
	})
	return out
}

// supersede removes kube-proxy's tables, once ours work: both at once would each translate what the other has missed.
func (l *loop) supersede() {
	for _, f := range l.families {
		removed, err := l.tables.Supersede(f.fam)
		if err != nil {
			slog.Warn("kube-proxy's table is still there", "family", f.fam, "err", err)
		} else if removed {
			slog.Info("kube-proxy's table removed, ours has taken over", "family", f.fam)
		}
	}
}
