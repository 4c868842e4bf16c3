package plan

import (
	"maps"
	"net/netip"
	"slices"

	"worknode/proxy/state"
)

// Model is what we know the kernel's table of one family to hold. A Diff does not change it; Commit does, once the
// kernel has taken the transaction.
type Model struct {
	services map[state.Name][]*Port
	refs     map[Key]int // of elements in shared sets
	nodes    []netip.Addr
	rules    Rules
	ruleset  map[Chain]uint64 // hash of each chain of the ruleset
	sized    map[Chain]bool   // sized chains that exist
	totals   Totals
	stale    map[Chain]bool // emptied chains of affinity, and maps of that name, to be removed next time
}

// NewModel returns the model of a table that has sets and nothing else.
func NewModel() *Model {
	return &Model{services: map[state.Name][]*Port{}, refs: map[Key]int{}, ruleset: map[Chain]uint64{}, sized: map[Chain]bool{}, stale: map[Chain]bool{}}
}

// Want is what a table is to be besides the Services.
type Want struct {
	Rules   Rules
	NodeIPs []netip.Addr // on which node ports answer, of the family, sorted
}

// Delta is one transaction, in this order: make Maps, write Chains, Add, Replace (old value, new value), Del, then remove
// chains and maps. Within each list of elements, they are grouped by set, in the order in which the sets must change.
type Delta struct {
	Maps    []string
	Chains  []Write
	Add     []Elem
	Replace []Elem // with their new values
	Del     []Elem

	DropChains []Chain
	DropMaps   []string

	// Sweep is for after the transaction: clients in maps whose endpoint is gone. Rules may record one until then.
	Sweep []Sweep

	// What Commit records.
	fresh    bool // the model is made anew
	services map[state.Name][]*Port
	refs     map[Key]int
	want     Want
	stale    map[Chain]bool
	sized    map[Chain]bool // sized chains that a fresh model starts with
}

// Write is a chain to be made, or to be written anew if it is there.
type Write struct {
	ChainRules
	Exists bool
}

// Sweep says that clients in a map may only be at the endpoints of Live.
type Sweep struct {
	Map  string
	Live []netip.AddrPort
}

// Empty tells whether the kernel has all of it already.
func (d *Delta) Empty() bool {
	return d.Size() == 0 && len(d.Maps) == 0 && len(d.Chains) == 0 && len(d.DropChains) == 0 && len(d.DropMaps) == 0
}

// Size is the number of elements the transaction touches.
func (d *Delta) Size() int { return len(d.Add) + len(d.Replace) + len(d.Del) }

// First describes one of the changes, for a log.
func (d *Delta) First() string {
	for _, list := range [][]Elem{d.Del, d.Replace, d.Add} {
		if len(list) > 0 {
			return list[0].String()
		}
	}
	if len(d.Chains) > 0 {
		return "chain " + string(d.Chains[0].Name)
	}
	return ""
}

// Changed is a Service whose ports may differ from what the model has; no ports if it is gone.
type Changed struct {
	Service state.Name
	Ports   []*Port
}

// Diff returns what must happen so that the changed Services are as given and the rest is as wanted. Two Services between
// which a front moves must both be among the changed.
// Endpoints keep their slots where they can: an endpoint that goes is replaced by a new one or else by the last.
func (m *Model) Diff(changed []Changed, want Want) Delta {
	d := Delta{services: make(map[state.Name][]*Port, len(changed)), want: want}
	var e edits
	for _, c := range changed {
		had := m.services[c.Service]
		touched := len(had) != len(c.Ports)
		for _, p := range had {
			now := find(c.Ports, p.Key)
			if now != nil && same(p, now) {
				continue
			}
			touched = true
			e.drop(p)
			if now == nil {
				d.stick(p, nil)
			}
		}
		kept := make([]*Port, len(c.Ports))
		for i, now := range c.Ports {
			was := find(had, now.Key)
			if was != nil && same(was, now) {
				kept[i] = was // with its slots
				continue
			}
			touched = true
			if was != nil && now.Sticky == 0 { // chains of affinity are written as a whole: theirs stay sorted
				now.All, now.Local = arrange(was.All, now.All), arrange(was.Local, now.Local)
			}
			d.stick(was, now)
			e.want(now)
			kept[i] = now
		}
		if touched {
			d.services[c.Service] = kept
		}
	}
	if !slices.Equal(want.NodeIPs, m.nodes) {
		for _, a := range m.nodes {
			e.of(Key{Set: NodeIPs, Addr: a}).had = true
		}
		for _, a := range want.NodeIPs {
			e.of(Key{Set: NodeIPs, Addr: a}).has = true
		}
	}
	for i := range e.list {
		x := &e.list[i]
		if x.key.Set.shared() {
			before := m.refs[x.key]
			x.had, x.has = before > 0, before+x.count > 0
			if d.refs == nil {
				d.refs = map[Key]int{}
			}
			d.refs[x.key] = before + x.count
		}
	}
	if len(m.ruleset) == 0 || !want.Rules.Equal(m.rules) {
		d.writeRuleset(m.ruleset)
	}
	d.fill(e.list, m.sized)
	d.unstick(m.stale)
	return d
}

func find(ports []*Port, k PortKey) *Port {
	for _, p := range ports {
		if p.Key == k {
			return p
		}
	}
	return nil
}

// Have is what a look at the kernel found.
type Have struct {
	Elems  map[Key]Value
	Chains map[Chain]uint64 // by hash; zero if it was not left as we wrote it
	Maps   []string         // of clients
}

// Full returns what must happen so that a table, which holds exactly have, holds exactly what is wanted. It needs no
// earlier model: this is how a start adopts the table of its predecessor, and how drift is repaired.
func Full(have Have, services []Changed, want Want) Delta {
	d := Delta{fresh: true, services: make(map[state.Name][]*Port, len(services)), refs: map[Key]int{}, want: want, sized: map[Chain]bool{}}
	e := edits{at: make(map[Key]int, len(have.Elems)), list: make([]edit, 0, len(have.Elems))}
	for k, v := range have.Elems {
		x := e.of(k)
		x.old, x.had = v, true
	}
	keep := map[Chain]bool{}    // chains that are wanted
	keepMap := map[Chain]bool{} // maps of clients that are wanted
	for _, c := range services {
		if len(c.Ports) == 0 {
			continue
		}
		d.services[c.Service] = c.Ports
		for _, p := range c.Ports {
			if p.Sticky == 0 {
				p.All = arrange(slots(have.Elems, p, Endpoints, NodeEndpoints), p.All)
				p.Local = arrange(slots(have.Elems, p, EndpointsLocal, NodeEndpointsLocal), p.Local)
			}
			e.want(p)
			all, local := p.sticky()
			for _, s := range []*Sticky{all, local} {
				if s != nil {
					keepMap[s.Name] = true
					d.adopt(s, &have, keep)
				}
			}
		}
	}
	for _, a := range want.NodeIPs {
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
	d.writeRuleset(have.Chains)
	d.adoptSized(&have, e.list)
	d.fill(e.list, d.sized)
	d.discard(&have, keep, keepMap)
	return d
}

// adoptSized keeps the sized chains of the table that are as we would write them, mends others, and removes those that
// nothing leads to any more, but the small ones, which come back all the time.
func (d *Delta) adoptSized(have *Have, list []edit) {
	used := map[Chain]bool{}
	for i := range list {
		if x := &list[i]; x.key.Set.Verdicts() {
			used[x.new.Chain], used[x.old.Chain] = true, true // the old one still counts when the chain goes
		}
	}
	for c, h := range have.Chains {
		rules, ok := sizedRules(c)
		if !ok {
			continue
		}
		if _, n, _ := c.Sized(); n > 32 && !used[c] {
			d.DropChains = append(d.DropChains, c)
			continue
		}
		if d.sized[c] = true; h != rules.Hash() {
			d.Chains = append(d.Chains, Write{rules, true})
		}
	}
}

// slots reads the order in which a table has a port's endpoints.
func slots(have map[Key]Value, p *Port, front, node Set) (out []netip.AddrPort) {
	k := Key{Set: front, Addr: p.ClusterIP, Proto: p.Key.Proto, Port: p.Port}
	if _, ok := have[k]; !ok && len(p.External) > 0 {
		k.Addr = p.External[0]
	}
	if _, ok := have[k]; !ok {
		k = Key{Set: node, Proto: p.Key.Proto, Port: p.NodePort}
	}
	for ; ; k.Slot++ {
		v, ok := have[k]
		if !ok || len(out) == maxEndpoints {
			return out
		}
		out = append(out, v.To)
	}
}

// writeRuleset has the chains of the ruleset written that are not as wanted.
func (d *Delta) writeRuleset(have map[Chain]uint64) {
	for _, c := range d.want.Rules.ruleset() {
		if h, exists := have[c.Name]; !exists || h != c.hash {
			d.Chains = append(d.Chains, Write{c.ChainRules, exists})
		}
	}
}

type hashed struct {
	ChainRules
	hash uint64
}

// ruleset is Ruleset with hashes.
func (r Rules) ruleset() []hashed {
	var out []hashed
	for _, c := range r.Ruleset() {
		out = append(out, hashed{c, c.Hash()})
	}
	return out
}

// Known tells whether a chain is one that we make.
func (r Rules) Known() map[Chain]bool {
	out := map[Chain]bool{}
	for _, c := range r.Ruleset() {
		out[c.Name] = true
	}
	return out
}

// Equal tells whether two sets of rules are the same.
func (r Rules) Equal(o Rules) bool {
	return r.Family == o.Family && r.MasqueradeAll == o.MasqueradeAll && r.MarkBit == o.MarkBit && slices.Equal(r.Pods, o.Pods) &&
		r.AnyNodeIP == o.AnyNodeIP && slices.Equal(r.ServiceCIDRs, o.ServiceCIDRs) && r.DropInvalid == o.DropInvalid
}

// Elems returns all that the table holds according to the model.
func (m *Model) Elems() map[Key]Value {
	out := make(map[Key]Value, 8*len(m.services))
	for _, ports := range m.services {
		for _, p := range ports {
			p.elems(func(k Key, v Value) { out[k] = v })
		}
	}
	for _, a := range m.nodes {
		out[Key{Set: NodeIPs, Addr: a}] = Value{}
	}
	return out
}

// Chains returns all chains of the table according to the model, with their hashes; stale ones have none.
func (m *Model) Chains() map[Chain]uint64 {
	out := maps.Clone(m.ruleset)
	for c := range m.sized {
		rules, _ := sizedRules(c)
		out[c] = rules.Hash()
	}
	for c := range m.stale {
		out[c] = 0
	}
	for _, ports := range m.services {
		for _, p := range ports {
			all, local := p.sticky()
			for _, s := range []*Sticky{all, local} {
				if s == nil {
					continue
				}
				for _, c := range s.chains() {
					out[c.Name] = c.Hash()
				}
			}
		}
	}
	return out
}

// Ports calls each with all ports as the kernel has them, in no order. They must not be changed.
func (m *Model) Ports(each func(*Port)) {
	for _, ports := range m.services {
		for _, p := range ports {
			each(p)
		}
	}
}

// Service returns the ports of one Service as the kernel has them. They must not be changed.
func (m *Model) Service(name state.Name) []*Port { return m.services[name] }

// NodeIPs returns where node ports answer.
func (m *Model) NodeIPs() []netip.Addr { return m.nodes }

// Rules returns what the rules are made from.
func (m *Model) Rules() Rules { return m.rules }
