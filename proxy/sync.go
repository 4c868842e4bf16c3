package proxy

import (
	"fmt"
	"log/slog"
	"time"

	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// claim looks at the tables once before anything is known, so that a start which cannot succeed fails at once, and
// so that an orphaned table is ours while the API is read. It keeps working as it is meanwhile.
func (l *loop) claim() error {
	for _, f := range l.families {
		if _, err := f.table.Look(); err != nil {
			return err
		}
	}
	return nil
}

// sync brings the kernel up to the store: one transaction a family.
func (l *loop) sync() error {
	began := time.Now()
	l.metrics.Pending.Store(int64(len(l.dirty)))
	defer func() { l.metrics.Sync.Observe(time.Since(began)) }()
	for _, f := range l.families {
		var err error
		if l.looking != "" || f.model == nil {
			err = l.full(f)
		} else {
			err = l.change(f)
		}
		if err != nil {
			f.model = nil
			return err
		}
	}
	l.metrics.Pending.Store(0)
	return nil
}

// change applies what is dirty.
func (l *loop) change(f *family) error {
	changed := make([]plan.Changed, 0, len(l.dirty))
	for name := range l.dirty {
		changed = append(changed, plan.Changed{Service: name, Ports: l.compile(name, f.fam)})
	}
	d := f.model.Diff(changed, l.nodePortAddrs(f.fam))
	if !d.Empty() {
		if err := f.table.Apply(&d); err != nil {
			return err
		}
		l.count(&d)
	}
	l.commit(f, &d)
	return nil
}

// full compares the whole table in the kernel with all that is wanted: at the start, after an error, now and then.
func (l *loop) full(f *family) error {
	seen, err := f.table.Look()
	if err != nil {
		return err
	}
	var want []plan.Port
	l.store.Services(func(name state.Name) { want = append(want, l.compile(name, f.fam)...) })
	d := plan.Full(seen.Elems, seen.Chains, want, l.nodePortAddrs(f.fam))
	switch {
	case !seen.Usable:
		d = plan.Full(nil, nil, want, l.nodePortAddrs(f.fam))
		if err := f.table.Replace(seen.Exists, &d); err != nil {
			return err
		}
		l.metrics.Replaced.Add(1)
		if seen.Exists || l.looking == lookCheck {
			slog.Warn("service table was not ours or not whole, replaced it", "why", seen.Why, "elements", d.Size())
		} else {
			slog.Info("service table made", "elements", d.Size())
		}
		l.count(&d)
	case !d.Empty():
		if err := f.table.Apply(&d); err != nil {
			return err
		}
		l.count(&d)
		if l.looking == lookCheck {
			slog.Warn("service table had drifted, repaired it", "elements", d.Size())
		}
	}
	if l.looking == lookCheck {
		l.metrics.Drift.Add(uint64(l.drift(f, &d)))
	} else if l.looking == lookStart && seen.Usable {
		slog.Info("service table adopted", "elements", len(seen.Elems), "changed", d.Size())
	}
	if f.model == nil {
		f.model = plan.NewModel()
	}
	l.commit(f, &d)
	return nil
}

// drift is how many elements of d are not owed to changes that arrived together with the check.
func (l *loop) drift(f *family, d *plan.Delta) int {
	if len(l.dirty) > 0 || l.moved {
		return 0
	}
	return d.Size()
}

// compile turns one Service of the store into ports.
func (l *loop) compile(name state.Name, fam state.Family) []plan.Port {
	svc, slices := l.store.Service(name)
	return plan.Compile(svc, slices, fam, func(f state.Front) bool { return l.store.Owns(name, f) })
}

// commit records a delta that the kernel has taken, and has the UDP flows cleaned that it orphans.
func (l *loop) commit(f *family, d *plan.Delta) {
	flows := f.model.Flows(d)
	f.model.Commit(*d)
	if len(flows) > 0 {
		l.cleaner.queue(f.fam, flows, l.nodePortAddrs(f.fam))
	}
}

func (l *loop) count(d *plan.Delta) {
	l.metrics.Transactions.Add(1)
	l.metrics.Elements.Add(uint64(d.Size()))
	slog.Debug("service table changed", "add", len(d.Add), "replace", len(d.Replace), "delete", len(d.Del), "chains", fmt.Sprint(d.Chains))
}
