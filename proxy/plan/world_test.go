package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"worknode/proxy/state"
)

// world is a random cluster, its store, and the kernel as the deltas leave it.
type world struct {
	t      *testing.T
	r      *rand.Rand
	store  *state.Store
	fam    state.Family
	here   Here
	want   Want
	model  *Model
	kernel map[Key]Value
	chains map[Chain][]Rule
	maps   map[string]bool
}

func newWorld(t *testing.T, seed uint64, fam state.Family) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1)), store: state.NewStore(), fam: fam, model: NewModel(),
		kernel: map[Key]Value{}, chains: map[Chain][]Rule{}, maps: map[string]bool{}, here: Here{Node: "n", Zone: "a"}}
	w.want.Rules.Family = fam
	return w
}

// addrs are of both families, so that half of the world is the other family's.
func (w *world) addr(net byte, n int) netip.Addr {
	if w.r.IntN(8) == 0 != (w.fam == state.V6) {
		return netip.AddrFrom16([16]byte{0xfd, net, 14: byte(n >> 8), 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{10, net, byte(n >> 8), byte(n)})
}

func (w *world) addrs(most int, net byte, n int) (out []netip.Addr) {
	for range w.r.IntN(most + 1) {
		out = append(out, w.addr(net, w.r.IntN(n)))
	}
	return out
}

func (w *world) name() state.Name {
	return state.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%02d", w.r.IntN(30))}
}

func (w *world) once(n int) bool { return w.r.IntN(n) == 0 }

var protos = []state.Proto{state.TCP, state.UDP, state.SCTP}

// service makes a random Service; addresses and node ports are few, so that Services collide and hand them over.
func (w *world) service(n state.Name) *state.Service {
	svc := &state.Service{Name: n, ClusterIPs: []netip.Addr{w.addr(96, w.r.IntN(25)), w.addr(97, w.r.IntN(25))}}
	if w.once(3) {
		svc.ExternalIPs, svc.Ingress = w.addrs(2, 203, 6), w.addrs(2, 203, 6)
		if w.once(2) {
			for _, a := range w.addrs(3, 1, 256) {
				p, _ := a.Prefix(a.BitLen() - w.r.IntN(12))
				svc.Sources = append(svc.Sources, p)
			}
		}
	}
	svc.InternalLocal, svc.ExternalLocal = w.once(4), w.once(3)
	if w.once(4) {
		svc.Sticky = time.Duration(1+w.r.IntN(2)) * time.Hour
	}
	for i := range 1 + w.r.IntN(3) {
		p := state.ServicePort{Name: fmt.Sprint("p", i), Proto: protos[w.r.IntN(3)], Port: uint16(80 + i)}
		if w.once(2) {
			p.NodePort = uint16(30000 + 10*i + w.r.IntN(9))
		}
		svc.Ports = append(svc.Ports, p)
	}
	return svc
}

func (w *world) slice(n state.Name) *state.Slice {
	sl := &state.Slice{Name: state.Name{Namespace: "ns", Name: fmt.Sprint(n.Name, "-", w.r.IntN(2))}, Service: n}
	if w.once(20) {
		sl.Service = w.name() // a slice that moves
	}
	for i := range 3 {
		sl.Ports = append(sl.Ports, state.SlicePort{Name: fmt.Sprint("p", i), Proto: protos[w.r.IntN(3)], Port: uint16(8080 + i)})
	}
	for range w.r.IntN(6) {
		e := state.Endpoint{Addr: w.addr(1, w.r.IntN(12)), Ready: !w.once(4), Serving: !w.once(3), Terminating: w.once(3), Local: w.once(2)}
		if w.once(2) {
			e.Zones = state.MakeZones([]string{"a", "b"}[w.r.IntN(2)])
		}
		if w.once(3) {
			e.NodeHint, e.ForThisNode = true, w.once(2)
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return sl
}

// change makes one random change and tells which Services it may touch.
func (w *world) change() []state.Name {
	n := w.name()
	switch w.r.IntN(12) {
	case 0:
		return w.store.DeleteService(n)
	case 1, 2, 3:
		return w.store.PutService(w.service(n))
	case 4:
		return w.store.DeleteSlice(state.Name{Namespace: "ns", Name: fmt.Sprint(n.Name, "-", w.r.IntN(2))})
	case 5:
		w.want.NodeIPs = nil
		for _, a := range w.addrs(3, 200, 9) {
			if state.Of(a) == w.fam {
				w.want.NodeIPs = append(w.want.NodeIPs, a)
			}
		}
		w.want.NodeIPs = sorted(w.want.NodeIPs)
		return nil
	case 6:
		r := &w.want.Rules
		switch w.r.IntN(6) {
		case 0:
			r.MasqueradeAll = !r.MasqueradeAll
		case 1:
			r.DropInvalid = !r.DropInvalid
		case 2:
			r.MarkBit = w.r.IntN(32)
		case 3:
			r.Pods = append(slices.Clone(r.Pods[:len(r.Pods)/2]), Cond{Is: FromDevice, Device: fmt.Sprint("br", w.r.IntN(9))})
		case 4:
			r.AnyNodeIP = !r.AnyNodeIP
		case 5:
			w.here.Zone = []string{"", "a", "b"}[w.r.IntN(3)]
			var all []state.Name
			w.store.Services(func(n state.Name) { all = append(all, n) })
			return all
		}
		return nil
	}
	return w.store.PutSlice(w.slice(n))
}

func (w *world) compile(n state.Name) Changed {
	svc, sl := w.store.Service(n)
	return Changed{n, Compile(Input{svc, sl, func(f state.Front) bool { return w.store.Owns(n, f) }}, w.fam, w.here)}
}

func (w *world) all() (out []Changed) {
	w.store.Services(func(n state.Name) { out = append(out, w.compile(n)) })
	return out
}

// have is the kernel as a look would find it.
func (w *world) have() Have {
	h := Have{Elems: w.kernel, Chains: map[Chain]uint64{}, Maps: slices.Collect(maps.Keys(w.maps))}
	hooked := map[Chain]Hook{}
	for _, c := range w.want.Rules.Ruleset() {
		hooked[c.Name] = c.Hook
	}
	for c, rules := range w.chains {
		h.Chains[c] = (&ChainRules{Name: c, Hook: hooked[c], Rules: rules}).Hash()
	}
	return h
}

// apply does to the kernel what the delta says, as strictly as the kernel would.
func (w *world) apply(d *Delta) {
	t := w.t
	t.Helper()
	for _, name := range d.Maps {
		if w.maps[name] {
			t.Fatalf("map %s made twice", name)
		}
		w.maps[name] = true
	}
	for _, c := range d.Chains {
		if _, there := w.chains[c.Name]; there != c.Exists {
			t.Fatalf("chain %v is there: %v, written as if: %v", c.Name, there, c.Exists)
		}
		w.chains[c.Name] = c.Rules
	}
	put := func(e Elem, replace bool) {
		if _, had := w.kernel[e.Key]; had != replace {
			t.Fatalf("%v: in the kernel already: %v, replace: %v", e, had, replace)
		}
		w.kernel[e.Key] = e.Value
	}
	for _, e := range d.Add {
		put(e, false)
	}
	for _, e := range d.Replace {
		put(e, true)
	}
	for _, e := range d.Del {
		if v, had := w.kernel[e.Key]; !had || v != e.Value {
			t.Fatalf("%v deleted, but there is %v", e, v)
		}
		delete(w.kernel, e.Key)
	}
	for _, c := range d.DropChains {
		if rules, there := w.chains[c]; !there || len(rules) > 0 && IsSticky(string(c)) {
			t.Fatalf("chain %v removed: there %v with %v", c, there, rules)
		}
		delete(w.chains, c)
	}
	for _, name := range d.DropMaps {
		if !w.maps[name] {
			t.Fatalf("map %s removed, but is not there", name)
		}
		delete(w.maps, name)
	}
	w.check()
}

// check finds what the kernel would refuse: verdicts and rules that lead nowhere, and ranges that overlap.
func (w *world) check() {
	t := w.t
	t.Helper()
	ranges := map[Key][]netip.Prefix{}
	for k, v := range w.kernel {
		if c := v.Chain; c != "" && c != Drop {
			if rules, there := w.chains[c]; !there || len(rules) == 0 {
				t.Fatalf("%v leads to a chain that is not there, or empty", Elem{k, v})
			}
		}
		if k.Set == Allowed {
			at := k
			at.From = netip.Prefix{}
			for _, p := range ranges[at] {
				if p.Overlaps(k.From) {
					t.Fatalf("%v overlaps %v", k, p)
				}
			}
			ranges[at] = append(ranges[at], k.From)
		}
	}
	for c, rules := range w.chains {
		for _, r := range rules {
			for _, to := range append(slices.Clone(r.Chains), r.Chain) {
				if _, there := w.chains[to]; to != "" && !there {
					t.Fatalf("chain %s: %v leads nowhere", c, &r)
				}
			}
			if r.Map != "" && !w.maps[r.Map] {
				t.Fatalf("chain %s: %v asks a map that is not there", c, &r)
			}
			if r.Set == Allowed || r.Do == Pick && r.N == 0 {
				t.Fatalf("chain %s: %v", c, &r)
			}
		}
	}
}

// pairs are the maps of slots and those that lead to them.
var pairs = map[Set][]Set{
	Endpoints: {Fronts, FrontsAll}, EndpointsLocal: {Fronts, FrontsLocal},
	NodeEndpoints: {NodePortsAll}, NodeEndpointsLocal: {NodePortsLocal},
}

// normal describes a table without the order of slots, and fails if slots have gaps or do not match their chain.
func normal(t *testing.T, m map[Key]Value) string {
	t.Helper()
	var lines []string
	for k, v := range m {
		if k.Set.Data() {
			n := 0
			for _, s := range pairs[k.Set] {
				front := k
				front.Slot, front.Set = 0, s
				if from, size, ok := m[front].Chain.Sized(); ok && from == k.Set {
					n = size
				}
			}
			if int(k.Slot) >= n {
				t.Fatalf("%v is a slot of %d", Elem{k, v}, n)
			}
			k.Slot = 0
		}
		if from, n, ok := v.Chain.Sized(); ok {
			for i := range n {
				slot := k
				slot.Slot, slot.Set = uint16(i), from
				if _, ok := m[slot]; !ok {
					t.Fatalf("%v has no slot %d of %d", Elem{k, v}, i, n)
				}
			}
		}
		lines = append(lines, fmt.Sprintf("%v %v", k, v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// normalChains describes chains without the order of endpoints, and without the stale and the unused ones.
func normalChains(chains map[Chain][]Rule) string {
	var lines []string
	for c, rules := range chains {
		if _, _, sized := c.Sized(); sized || IsSticky(string(c)) && len(rules) == 0 {
			continue
		}
		for _, r := range rules {
			r.Chains = slices.Sorted(slices.Values(r.Chains))
			if r.Do == Recall {
				r.To = netip.AddrPort{}
			}
			lines = append(lines, string(c)+": "+r.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestDiffsAddUpToAFreshCompile(t *testing.T) {
	for seed := range uint64(8) {
		w := newWorld(t, seed, []state.Family{state.V4, state.V6}[seed%2])
		dirty := map[state.Name]bool{}
		for step := range 800 {
			for range 1 + w.r.IntN(3)*w.r.IntN(2) { // sometimes several changes in one transaction
				for _, n := range w.change() {
					dirty[n] = true
				}
			}
			var d Delta
			if step%7 == 4 || step == 0 { // the kernel refused the last one: look, and repair all
				d = Full(w.have(), w.all(), w.want)
			} else {
				var changed []Changed
				for n := range dirty {
					changed = append(changed, w.compile(n))
				}
				d = w.model.Diff(changed, w.want)
			}
			w.model.Flows(&d)
			if step%7 == 3 {
				continue
			}
			w.apply(&d)
			w.model.Commit(&d)
			w.store.Settle()
			clear(dirty)
			if step%5 == 0 || step%7 == 4 {
				w.compare(seed, step)
			}
		}
		if len(w.chains) == 0 || len(w.maps) == 0 {
			t.Errorf("seed %d: the world is too simple", seed)
		}
	}
}

func (w *world) compare(seed uint64, step int) {
	t := w.t
	t.Helper()
	f := newWorld(t, seed, w.fam)
	f.want = w.want
	fresh := Full(Have{}, w.all(), w.want)
	f.apply(&fresh)
	if got, want := normal(t, w.kernel), normal(t, f.kernel); got != want {
		t.Fatalf("seed %d step %d:\nkernel\n%s\nfresh\n%s", seed, step, got, want)
	}
	if got, want := normalChains(w.chains), normalChains(f.chains); got != want {
		t.Fatalf("seed %d step %d: chains\nkernel\n%s\nfresh\n%s", seed, step, got, want)
	}
	if m := w.model.Elems(); !maps.Equal(m, w.kernel) {
		t.Fatalf("seed %d step %d: the model differs from the kernel:\n%s\nkernel\n%s", seed, step, normal(t, m), normal(t, w.kernel))
	}
	have := w.have()
	for c, h := range w.model.Chains() {
		if h == 0 {
			h = EmptyHash()
		}
		if have.Chains[c] != h {
			t.Fatalf("seed %d step %d: the model has chain %s otherwise", seed, step, c)
		}
	}
	f.model.Commit(&fresh)
	if w.model.Totals() != f.model.Totals() {
		t.Fatalf("seed %d step %d: totals %+v, fresh %+v", seed, step, w.model.Totals(), f.model.Totals())
	}
	// A restart finds nothing to do but to remove what is stale.
	again := Full(have, w.all(), w.want)
	if again.Size() > 0 || len(again.Chains) > 0 || len(again.Maps) > 0 {
		t.Fatalf("seed %d step %d: adopting an up-to-date table would change %s and %d more, %d chains", seed, step, again.First(), again.Size(), len(again.Chains))
	}
	w.apply(&again)
	w.model.Commit(&again)
	if last := Full(w.have(), w.all(), w.want); !last.Empty() {
		t.Fatalf("seed %d step %d: adopting twice would change something: %+v", seed, step, last)
	}
}
