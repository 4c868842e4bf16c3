package plan

import (
	"fmt"
	"net/netip"

	"worknode/proxy/state"
)

// Packet is the first packet of a connection, as it enters the node or as a process of the node sends it.
type Packet struct {
	Src, Dst netip.AddrPort
	Proto    state.Proto
	Device   string // it came by; empty for a packet of the node itself
	Invalid  bool   // connection tracking makes nothing of it
	// Here tells whether an address is one of this node's, loopback included.
	Here func(netip.Addr) bool
	// Client is whom session affinity has on record for the packet's source, in the map of that name.
	Client func(name string) (netip.AddrPort, bool)
}

// Fate is what becomes of a packet.
type Fate uint8

const (
	Passed  Fate = iota // no Service's: it goes where it was sent to
	Sent                // to one of the endpoints
	Refusal             // answered by a reset or "port unreachable"
	Dropped
)

// String names the fate in a word.
func (f Fate) String() string { return [...]string{"passed", "sent", "refused", "dropped"}[f] }

// Verdict is a packet's fate and the rules that decided it.
type Verdict struct {
	Fate     Fate
	Targets  []Target // Sent: each is as likely as the others
	Sticky   bool     // the choice is remembered for the client
	Recalled bool     // the endpoint is the one that was remembered
	Steps    []Step   // every rule and element that held, in order; the last of them decides
}

// Target is where a packet may be sent.
type Target struct {
	To         netip.AddrPort
	Masquerade bool // its source is hidden behind the node's address
}

// Step is a rule that held for the packet, with the element that a lookup has found.
type Step struct {
	Chain Chain
	Rule  string
	Elem  string
}

// String prints a step on one line.
func (s Step) String() string {
	if s.Elem != "" {
		return fmt.Sprintf("%s: %s: %s", s.Chain, s.Rule, s.Elem)
	}
	return fmt.Sprintf("%s: %s", s.Chain, s.Rule)
}

// View is a table as Trace follows packets through it: a model's elements and rules, looked at from one moment.
type View struct {
	elems  map[Key]Value
	allow  map[Key][]netip.Prefix
	chains map[Chain]ChainRules
	hooks  map[Hook]Chain
}

// NewView makes a view of a model. It copies what it needs, so that it may be used while the model goes on.
func NewView(m *Model) *View {
	v := &View{elems: m.Elems(), allow: map[Key][]netip.Prefix{}, chains: map[Chain]ChainRules{}, hooks: map[Hook]Chain{}}
	for k := range v.elems {
		if k.Set == Allowed {
			at := k
			at.From = netip.Prefix{}
			v.allow[at] = append(v.allow[at], k.From)
		}
	}
	for _, c := range m.rules.Ruleset() {
		v.chains[c.Name] = c
		if c.Hook != NoHook {
			v.hooks[c.Hook] = c.Name
		}
	}
	for c := range m.sized {
		v.chains[c], _ = sizedRules(c)
	}
	m.Ports(func(p *Port) {
		all, local := p.sticky()
		for _, s := range []*Sticky{all, local} {
			if s != nil {
				for _, c := range s.chains() {
					v.chains[c.Name] = c
				}
			}
		}
	})
	return v
}

// Trace follows the first packet of a connection through a table, by the rules that the kernel has.
func Trace(v *View, p Packet) Verdict {
	t := &tracer{v: v, p: p}
	hooks := []Hook{FirewallPrerouting, TranslatePrerouting}
	if p.Device == "" {
		hooks = []Hook{FirewallOutput, TranslateOutput}
	}
	if p.Invalid { // what is not tracked is not translated
		hooks = hooks[:1]
	}
	for _, h := range hooks {
		if t.hook(h); t.done {
			return t.out
		}
	}
	if t.out.Fate == Sent {
		t.deliver()
	} else {
		t.filter()
	}
	return t.out
}

// filter takes the packet through the hooks behind the routing decision. What the node sends to itself leaves by one and
// comes in by the others, still as a new connection.
func (t *tracer) filter() {
	hooks := []Hook{FilterForward}
	switch here := t.here(t.p.Dst.Addr()); {
	case t.p.Device == "" && here:
		hooks = []Hook{FilterOutput, FirewallPrerouting, FilterInput}
	case t.p.Device == "":
		hooks = []Hook{FilterOutput}
	case here:
		hooks = []Hook{FilterInput}
	}
	for _, h := range hooks {
		if t.hook(h); t.done {
			return
		}
	}
}

func (t *tracer) here(a netip.Addr) bool { return t.p.Here != nil && t.p.Here(a) }

// deliver follows the packet to each of its targets: on the way it may be refused after all, where an endpoint is itself
// a Service's address, and its source may be hidden. What a process of this node gets from outside passes no postrouting.
func (t *tracer) deliver() {
	var stopped Verdict
	var arrive []Target
	for _, target := range t.out.Targets {
		at := tracer{v: t.v, p: t.p, marked: t.marked, sent: true}
		at.p.Dst = target.To
		if at.filter(); at.done {
			stopped = at.out
			continue
		}
		if post, ok := t.v.hooks[TranslatePostrouting]; ok && (t.p.Device == "" || !t.here(target.To.Addr())) {
			at.chain(post, 0)
		}
		target.Masquerade = at.masquerade
		if len(arrive) == 0 {
			t.out.Steps = append(t.out.Steps, at.out.Steps...)
		}
		arrive = append(arrive, target)
	}
	if t.out.Targets = arrive; len(arrive) == 0 {
		t.out.Fate = stopped.Fate
		t.out.Steps = append(t.out.Steps, stopped.Steps...)
	}
}

// tracer is a packet on its way.
type tracer struct {
	v      *View
	p      Packet
	out    Verdict
	marked bool
	sent   bool // its destination was changed
	done   bool // nothing follows

	masquerade bool
}

func (t *tracer) hook(h Hook) {
	if c, ok := t.v.hooks[h]; ok {
		t.chain(c, 0)
	}
}

// maxDepth is how deep the kernel lets chains call each other.
const maxDepth = 16

// chain evaluates a chain; the packet goes on behind it unless it says stop.
func (t *tracer) chain(name Chain, depth int) (stop bool) {
	c, ok := t.v.chains[name]
	if !ok || depth > maxDepth {
		panic(fmt.Sprintf("plan: no chain %q at depth %d", name, depth))
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		if !t.holds(r.When) {
			continue
		}
		step := Step{Chain: name, Rule: r.String()}
		switch r.Do {
		case Return:
			t.out.Steps = append(t.out.Steps, step)
			return false
		case Follow:
			k := t.key(r.Set)
			to, ok := t.v.elems[k]
			if !ok {
				continue
			}
			step.Elem = Elem{k, to}.String()
			t.out.Steps = append(t.out.Steps, step)
			if to.Chain == Drop {
				return t.end(Dropped)
			}
			return t.chain(to.Chain, depth+1)
		case Goto:
			t.out.Steps = append(t.out.Steps, step)
			return t.chain(r.Chain, depth+1)
		case Jump:
			if t.chain(r.Chain, depth+1) {
				return true
			}
		default:
			if t.do(r, step, depth) {
				return true
			}
		}
	}
	return false
}

// do carries out what is no way to another chain.
func (t *tracer) do(r *Rule, step Step, depth int) (stop bool) {
	keep := func() { t.out.Steps = append(t.out.Steps, step) }
	switch r.Do {
	case Discard:
		keep()
		return t.end(Dropped)
	case Reset, Reject:
		keep()
		return t.end(Refusal)
	case Mark:
		keep()
		t.marked = true
	case Masquerade:
		keep()
		t.masquerade = true
		return true
	case Pick:
		keep()
		k := t.key(r.Set)
		for i := range r.N {
			k.Slot = uint16(i)
			to, ok := t.v.elems[k]
			if !ok {
				panic("plan: " + Elem{Key: k}.String() + " is missing")
			}
			t.out.Targets = append(t.out.Targets, Target{To: to.To})
		}
		return t.translate()
	case Send:
		keep()
		t.out.Targets = append(t.out.Targets, Target{To: r.To})
		return t.translate()
	case Remember:
		keep()
		t.out.Sticky = true
	case Recall:
		t.out.Sticky = true
		if t.p.Client == nil {
			return false
		}
		to, ok := t.p.Client(r.Map)
		if !ok {
			return false
		}
		keep()
		t.out.Recalled, t.out.Targets = true, []Target{{To: to}}
		return t.translate()
	case Choose:
		keep()
		for _, c := range r.Chains { // all of them send; the verdict has the sum
			t.chain(c, depth+1)
		}
		return t.translate()
	}
	return false
}

func (t *tracer) translate() bool {
	t.out.Fate, t.sent = Sent, true
	return true
}

func (t *tracer) end(f Fate) bool {
	t.out.Fate, t.done = f, true
	return true
}

// key reads a set's key off the packet.
func (t *tracer) key(s Set) Key {
	k := Key{Set: s}
	for _, f := range s.Key() {
		switch f {
		case Daddr:
			k.Addr = t.p.Dst.Addr()
		case Proto:
			k.Proto = t.p.Proto
		case Dport:
			k.Port = t.p.Dst.Port()
		}
	}
	return k
}

func (t *tracer) holds(when []Cond) bool {
	for _, c := range when {
		if t.is(c) == c.Not {
			return false
		}
	}
	return true
}

func (t *tracer) is(c Cond) bool {
	switch c.Is {
	case New:
		return !t.p.Invalid
	case Invalid:
		return t.p.Invalid
	case Translated:
		return t.sent
	case Marked:
		return t.marked
	case TCP:
		return t.p.Proto == state.TCP
	case In:
		return t.in(c.Set)
	case From:
		return c.Prefix.Contains(t.p.Src.Addr())
	case To:
		return c.Prefix.Contains(t.p.Dst.Addr())
	case FromHere:
		return t.here(t.p.Src.Addr())
	case ToHere:
		return t.here(t.p.Dst.Addr())
	case FromDevice:
		return t.p.Device == c.Device && t.p.Device != ""
	case FromDevices:
		return t.p.Device != "" && len(t.p.Device) >= len(c.Device) && t.p.Device[:len(c.Device)] == c.Device
	}
	panic(fmt.Sprintf("plan: unknown condition %v", c))
}

func (t *tracer) in(s Set) bool {
	k := t.key(s)
	switch s {
	case Allowed:
		for _, p := range t.v.allow[k] {
			if p.Contains(t.p.Src.Addr()) {
				return true
			}
		}
		return false
	case Hairpin:
		if t.p.Src.Addr() != t.p.Dst.Addr() {
			return false
		}
	}
	_, ok := t.v.elems[k]
	return ok
}
