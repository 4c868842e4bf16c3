package plan

import (
	"net/netip"
	"slices"

	"worknode/proxy/state"
)

// Model is what we know the kernel's table of one family to hold. A Diff does not change it; Commit does, once the
// kernel has taken the transaction.
type Model struct {
	ports  map[PortKey]Port
	bySvc  map[state.Name][]PortKey
	refs   map[Key]int // of elements in shared sets
	nodes  []netip.Addr
	chains map[Chain]bool // sized chains that exist
}

// NewModel returns the model of a table that has its static parts and nothing else.
func NewModel() *Model {
	return &Model{ports: map[PortKey]Port{}, bySvc: map[state.Name][]PortKey{}, refs: map[Key]int{}, chains: map[Chain]bool{}}
}

// Delta is one transaction: first make Chains, then Add, then Replace (old value, new value), then Del.
// Within each, elements are grouped by set, in the order in which the sets must change.
type Delta struct {
	Chains  []Chain
	Add     []Elem
	Replace []Elem // with their new values
	Del     []Elem

	// What Commit records.
	fresh bool // the model is made anew
	ports map[PortKey]*Port
	refs  map[Key]int
	nodes []netip.Addr
	setIP bool
	kept  map[Chain]bool // chains that a fresh model starts with
}

// Empty tells whether the kernel has all of it already.
func (d *Delta) Empty() bool {
	return len(d.Chains) == 0 && len(d.Add) == 0 && len(d.Replace) == 0 && len(d.Del) == 0
}

// Size is the number of elements the transaction touches.
func (d *Delta) Size() int { return len(d.Add) + len(d.Replace) + len(d.Del) }

// edits gathers what happens to each key, so that an element which one port gives up and another takes is one change.
type edits struct {
	at   map[Key]int
	list []edit
}

type edit struct {
	key      Key
	old, new Value
	had, has bool
	count    int // shared sets: references won or lost
}

func (e *edits) of(k Key) *edit {
	i, ok := e.at[k]
	if !ok {
		i = len(e.list)
		e.at[k] = i
		e.list = append(e.list, edit{key: k})
	}
	return &e.list[i]
}

func (e *edits) drop(p *Port) {
	p.elems(func(k Key, v Value) {
		if x := e.of(k); k.Set.shared() {
			x.count--
		} else {
			x.old, x.had = v, true
		}
	})
}

func (e *edits) want(p *Port) {
	p.elems(func(k Key, v Value) {
		if x := e.of(k); k.Set.shared() {
			x.count++
		} else {
			x.new, x.has = v, true
		}
	})
}

// Changed is a Service whose ports may differ from what the model has; no ports if it is gone.
type Changed struct {
	Service state.Name
	Ports   []Port
}

// Diff returns what must happen so that the changed Services are as given and node ports answer on nodes.
// Endpoints keep their slots where they can: an endpoint that goes is replaced by a new one or else by the last.
func (m *Model) Diff(changed []Changed, nodes []netip.Addr) Delta {
	d := Delta{ports: map[PortKey]*Port{}, refs: map[Key]int{}}
	e := edits{at: map[Key]int{}}
	for _, c := range changed {
		for _, k := range m.bySvc[c.Service] {
			d.ports[k] = nil
		}
		for i := range c.Ports {
			d.ports[c.Ports[i].Key] = &c.Ports[i]
		}
		for _, k := range m.bySvc[c.Service] {
			had := m.ports[k]
			now := d.ports[k]
			if now != nil && same(&had, now) {
				delete(d.ports, k)
				continue
			}
			e.drop(&had)
		}
		for i := range c.Ports {
			now, dirty := d.ports[c.Ports[i].Key]
			if !dirty {
				continue
			}
			had := m.ports[now.Key]
			now.Endpoints = arrange(had.Endpoints, now.Endpoints)
			e.want(now)
		}
	}
	if !slices.Equal(nodes, m.nodes) {
		d.nodes, d.setIP = slices.Clone(nodes), true
		for _, a := range m.nodes {
			e.of(Key{Set: NodeIPs, Addr: a}).had = true
		}
		for _, a := range nodes {
			e.of(Key{Set: NodeIPs, Addr: a}).has = true
		}
	}
	for i := range e.list {
		x := &e.list[i]
		if x.key.Set.shared() {
			before := m.refs[x.key]
			x.had, x.has = before > 0, before+x.count > 0
			d.refs[x.key] = before + x.count
		}
	}
	d.fill(e.list, m.chains)
	return d
}

// Full returns what must happen so that a table, which holds exactly have and chains, holds exactly what is wanted.
// It needs no earlier model: this is how a start adopts the table of its predecessor, and how drift is repaired.
func Full(have map[Key]Value, chains map[Chain]bool, want []Port, nodes []netip.Addr) Delta {
	d := Delta{fresh: true, ports: make(map[PortKey]*Port, len(want)), refs: map[Key]int{}, nodes: slices.Clone(nodes), setIP: true}
	e := edits{at: make(map[Key]int, len(have)), list: make([]edit, 0, len(have))}
	for k, v := range have {
		x := e.of(k)
		x.old, x.had = v, true
	}
	for i := range want {
		p := &want[i]
		p.Endpoints = arrange(slots(have, p), p.Endpoints)
		d.ports[p.Key] = p
		e.want(p)
	}
	for _, a := range nodes {
		e.of(Key{Set: NodeIPs, Addr: a}).has = true
	}
	for i := range e.list {
		x := &e.list[i]
		if x.key.Set.shared() {
			if x.has = x.count > 0; x.has {
				d.refs[x.key] = x.count
			}
		}
	}
	d.fill(e.list, chains)
	d.kept = chains
	return d
}

// slots reads the order in which a table has a port's endpoints.
func slots(have map[Key]Value, p *Port) (out []netip.AddrPort) {
	k := Key{Set: Endpoints, Addr: p.ClusterIP, Proto: p.Key.Proto, Port: p.Port}
	if !p.ClusterIP.IsValid() {
		k = Key{Set: NodeEndpoints, Proto: p.Key.Proto, Port: p.NodePort}
	}
	for ; ; k.Slot++ {
		v, ok := have[k]
		if !ok || len(out) == maxEndpoints {
			return out
		}
		out = append(out, v.To)
	}
}
