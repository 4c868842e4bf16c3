package plan

import (
	"net/netip"
)

// Commit records that the kernel has taken the transaction, which must stem from this model (or from Full).
func (m *Model) Commit(d *Delta) {
	if d.fresh {
		*m = *NewModel()
	}
	for name, ports := range d.services {
		m.totals.add(m.services[name], -1)
		m.totals.add(ports, 1)
		if len(ports) == 0 {
			delete(m.services, name)
		} else {
			m.services[name] = ports
		}
	}
	for k, n := range d.refs {
		if n > 0 {
			m.refs[k] = n
		} else {
			delete(m.refs, k)
		}
	}
	for c := range d.sized {
		m.sized[c] = true
	}
	m.nodes = d.want.NodeIPs
	if m.rules = d.want.Rules; d.fresh {
		for _, c := range m.rules.ruleset() {
			m.ruleset[c.Name] = c.hash
		}
	}
	for _, w := range d.Chains {
		if _, _, sized := w.Name.Sized(); sized {
			m.sized[w.Name] = true
		} else if !IsSticky(string(w.Name)) {
			m.ruleset[w.Name] = w.Hash()
		}
	}
	for _, c := range d.DropChains {
		delete(m.sized, c)
		delete(m.stale, c)
	}
	for c, is := range d.stale {
		if is {
			m.stale[c] = true
		} else {
			delete(m.stale, c)
		}
	}
}

// Totals are counts over all ports of a model.
type Totals struct {
	Endpoints int // a backend of two ports counts twice
	// Ports whose policy wants endpoints on this node where there are only others: their traffic is dropped.
	NoLocalInternal, NoLocalExternal int
}

func (t *Totals) add(ports []*Port, sign int) {
	for _, p := range ports {
		t.Endpoints += sign * max(len(p.All), len(p.Local))
		if !p.Any || len(p.Local) > 0 {
			continue
		}
		if p.InternalLocal {
			t.NoLocalInternal += sign
		}
		if p.ExternalLocal && p.external() {
			t.NoLocalExternal += sign
		}
	}
}

// Totals counts what the model has.
func (m *Model) Totals() Totals { return m.totals }

// arrange puts the wanted endpoints (no duplicates) into the slots so that the fewest change: those that have a slot
// keep it, new ones take the slots of those that go, then new slots at the end; what is still free is filled from
// the end. The result has no gaps.
func arrange(have, want []netip.AddrPort) []netip.AddrPort {
	if len(have) == 0 {
		return want
	}
	wanted := make(map[netip.AddrPort]bool, len(want))
	for _, w := range want {
		wanted[w] = true
	}
	out := make([]netip.AddrPort, 0, max(len(have), len(want)))
	var free []int
	for i, h := range have {
		if out = append(out, h); wanted[h] {
			delete(wanted, h) // placed; a second slot of the same endpoint is free
		} else {
			free = append(free, i)
		}
	}
	for _, w := range want {
		if !wanted[w] {
			continue
		}
		if len(free) > 0 {
			out[free[0]], free = w, free[1:]
		} else {
			out = append(out, w)
		}
	}
	for len(free) > 0 { // fill the lowest hole from the end, where the end is not itself a hole
		last := len(out) - 1
		if free[len(free)-1] == last {
			free = free[:len(free)-1]
		} else {
			out[free[0]] = out[last]
			free = free[1:]
		}
		out = out[:last]
	}
	return out
}
