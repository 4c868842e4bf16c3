package plan

import (
	"net/netip"
	"slices"
)

// fill sorts the edits into the transaction's phases and finds the chains it needs.
func (d *Delta) fill(list []edit, chains map[Chain]bool) {
	need := map[Chain]bool{}
	for i := range list {
		x := &list[i]
		switch {
		case x.had && !x.has:
			d.Del = append(d.Del, Elem{x.key, x.old})
			continue
		case !x.had && x.has:
			d.Add = append(d.Add, Elem{x.key, x.new})
		case x.had && x.has && x.old != x.new:
			d.Replace = append(d.Replace, Elem{x.key, x.new})
		default:
			continue
		}
		if c := x.new.Chain; c.Kind.Sized() && !chains[c] && !need[c] {
			need[c] = true
			d.Chains = append(d.Chains, c)
		}
	}
	rising := func(a, b Elem) int { return int(a.Key.Set) - int(b.Key.Set) }
	slices.SortStableFunc(d.Add, rising)
	slices.SortStableFunc(d.Replace, rising)
	slices.SortStableFunc(d.Del, func(a, b Elem) int { return rising(b, a) })
}

// Commit records that the kernel has taken the transaction, which must stem from this model (or from Full).
func (m *Model) Commit(d Delta) {
	if d.fresh {
		*m = *NewModel()
	}
	for k, p := range d.ports {
		if p == nil {
			delete(m.ports, k)
			m.bySvc[k.Service] = slices.DeleteFunc(m.bySvc[k.Service], func(x PortKey) bool { return x == k })
			if len(m.bySvc[k.Service]) == 0 {
				delete(m.bySvc, k.Service)
			}
			continue
		}
		if _, had := m.ports[k]; !had {
			m.bySvc[k.Service] = append(m.bySvc[k.Service], k)
		}
		m.ports[k] = *p
	}
	for k, n := range d.refs {
		if n > 0 {
			m.refs[k] = n
		} else {
			delete(m.refs, k)
		}
	}
	for c := range d.kept {
		m.chains[c] = true
	}
	for _, c := range d.Chains {
		m.chains[c] = true
	}
	if d.setIP {
		m.nodes = d.nodes
	}
}

// Elems returns all that the table holds according to the model.
func (m *Model) Elems() map[Key]Value {
	out := make(map[Key]Value, 8*len(m.ports))
	for _, p := range m.ports {
		p.elems(func(k Key, v Value) { out[k] = v })
	}
	for _, a := range m.nodes {
		out[Key{Set: NodeIPs, Addr: a}] = Value{}
	}
	return out
}

// Chains returns the sized chains that exist.
func (m *Model) Chains() map[Chain]bool { return m.chains }

// Ports is the number of ports in the model.
func (m *Model) Ports() int { return len(m.ports) }

// Port returns a port as the kernel has it.
func (m *Model) Port(k PortKey) (Port, bool) { p, ok := m.ports[k]; return p, ok }

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

func same(a, b *Port) bool {
	return a.ClusterIP == b.ClusterIP && a.Port == b.Port && a.NodePort == b.NodePort &&
		sameSet(a.Endpoints, b.Endpoints) && slices.Equal(a.Local, b.Local) && slices.Equal(a.Serving, b.Serving)
}

// sameSet compares endpoints in slot order with sorted ones.
func sameSet(slotted, sorted []netip.AddrPort) bool {
	if len(slotted) != len(sorted) {
		return false
	}
	for _, s := range slotted {
		if _, ok := slices.BinarySearchFunc(sorted, s, netip.AddrPort.Compare); !ok {
			return false
		}
	}
	return true
}
