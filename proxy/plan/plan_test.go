package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"worknode/proxy/state"
)

func eps(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestEndpointsKeepTheirSlots(t *testing.T) {
	// Letters are endpoints; a slot that differs between have and got is one element written.
	for _, c := range []struct{ have, want, got string }{
		{"", "abc", "abc"},
		{"abc", "abc", "abc"},
		{"cab", "abc", "cab"},
		{"abc", "abcd", "abcd"},
		{"cab", "abx", "xab"},     // replace: one slot
		{"abcde", "acde", "aecd"}, // remove: the last one moves
		{"abcde", "abcd", "abcd"},
		{"abcde", "cd", "dc"},
		{"abcde", "e", "e"},
		{"abc", "", ""},
		{"abc", "xyz", "xyz"},
		{"aab", "ab", "ab"}, // a damaged table
	} {
		of := func(s string) (out []netip.AddrPort) {
			for _, r := range s {
				out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r)}), 80))
			}
			return out
		}
		got := arrange(of(c.have), of(c.want))
		if !slices.Equal(got, of(c.got)) {
			t.Errorf("%s → %s: got %v, want %s", c.have, c.want, got, c.got)
		}
	}
}

func TestCompileChoosesEndpoints(t *testing.T) {
	name := state.Name{Namespace: "ns", Name: "web"}
	svc := &state.Service{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []state.ServicePort{{Name: "http", Proto: state.TCP, Port: 80, NodePort: 30080}}}
	type ep = state.Endpoint
	at := func(s string, e ep) ep { e.Addr = netip.MustParseAddr(s); return e }
	ready, draining := ep{Ready: true, Serving: true}, ep{Serving: true, Terminating: true}
	local := ep{Ready: true, Serving: true, Local: true}
	for _, c := range []struct {
		what  string
		port  state.SlicePort
		in    []ep
		want  []netip.AddrPort
		local int
	}{
		{"ready", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.2", ready), at("10.0.0.1", local)}, eps("10.0.0.1:8080", "10.0.0.2:8080"), 1},
		{"not ready", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.2", ready), at("10.0.0.1", ep{})}, eps("10.0.0.2:8080"), 0},
		{"terminating beside ready", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.2", ready), at("10.0.0.1", draining)}, eps("10.0.0.2:8080"), 0},
		{"only terminating", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.2", ep{}), at("10.0.0.1", draining)}, eps("10.0.0.1:8080"), 0},
		{"terminating and not serving", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.1", ep{Terminating: true})}, nil, 0},
		{"another port name", state.SlicePort{Name: "admin", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.1", ready)}, nil, 0},
		{"another protocol", state.SlicePort{Name: "http", Proto: state.UDP, Port: 8080}, []ep{at("10.0.0.1", ready)}, nil, 0},
		{"twice, once dying", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("10.0.0.1", draining), at("10.0.0.1", ready)}, eps("10.0.0.1:8080"), 0},
		{"another family", state.SlicePort{Name: "http", Proto: state.TCP, Port: 8080}, []ep{at("fd00::1", ready)}, nil, 0},
	} {
		sl := map[state.Name]*state.Slice{{Namespace: "ns", Name: "s"}: {Service: name, Ports: []state.SlicePort{c.port}, Endpoints: c.in}}
		got := Compile(svc, sl, state.V4, func(state.Front) bool { return true })
		if len(got) != 1 || !slices.Equal(got[0].Endpoints, c.want) || len(got[0].Local) != c.local {
			t.Errorf("%s: got %+v, want %v with %d local", c.what, got, c.want, c.local)
		}
		if Compile(svc, sl, state.V6, func(state.Front) bool { return true }) != nil {
			t.Errorf("%s: an IPv4 Service has IPv6 ports", c.what)
		}
	}
}

// world is a random cluster, its store, and the kernel as the deltas leave it.
type world struct {
	t      *testing.T
	r      *rand.Rand
	store  *state.Store
	model  *Model
	kernel map[Key]Value
	chains map[Chain]bool
	nodes  []netip.Addr
}

func (w *world) addr(net byte, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, net, byte(n >> 8), byte(n)})
}

func (w *world) name() state.Name {
	return state.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%02d", w.r.IntN(30))}
}

// change makes one random change; addresses and node ports are few, so that Services collide and hand them over.
func (w *world) change() []state.Name {
	n := w.name()
	protos := []state.Proto{state.TCP, state.UDP, state.SCTP}
	switch w.r.IntN(10) {
	case 0:
		return w.store.DeleteService(n)
	case 1, 2, 3:
		svc := &state.Service{Name: n, ClusterIPs: []netip.Addr{w.addr(96, w.r.IntN(25))}}
		for i := range 1 + w.r.IntN(3) {
			p := state.ServicePort{Name: fmt.Sprint("p", i), Proto: protos[w.r.IntN(3)], Port: uint16(80 + i)}
			if w.r.IntN(2) == 0 {
				p.NodePort = uint16(30000 + 10*i + w.r.IntN(9))
			}
			svc.Ports = append(svc.Ports, p)
		}
		return w.store.PutService(svc)
	case 4:
		return w.store.DeleteSlice(state.Name{Namespace: "ns", Name: fmt.Sprint(n.Name, "-", w.r.IntN(2))})
	case 5:
		w.nodes = nil
		for i := range w.r.IntN(3) {
			w.nodes = append(w.nodes, w.addr(200, i))
		}
		return nil
	}
	sl := &state.Slice{Name: state.Name{Namespace: "ns", Name: fmt.Sprint(n.Name, "-", w.r.IntN(2))}, Service: n}
	if w.r.IntN(20) == 0 {
		sl.Service = w.name() // a slice that moves
	}
	for i := range 3 {
		sl.Ports = append(sl.Ports, state.SlicePort{Name: fmt.Sprint("p", i), Proto: protos[w.r.IntN(3)], Port: uint16(8080 + i)})
	}
	for range w.r.IntN(6) {
		sl.Endpoints = append(sl.Endpoints, state.Endpoint{Addr: w.addr(1, w.r.IntN(12)), Ready: w.r.IntN(4) > 0,
			Serving: w.r.IntN(3) > 0, Terminating: w.r.IntN(3) == 0, Local: w.r.IntN(2) == 0})
	}
	return w.store.PutSlice(sl)
}

func (w *world) compile(n state.Name) []Port {
	svc, sl := w.store.Service(n)
	return Compile(svc, sl, state.V4, func(f state.Front) bool { return w.store.Owns(n, f) })
}

func (w *world) all() (out []Port) {
	w.store.Services(func(n state.Name) { out = append(out, w.compile(n)...) })
	return out
}

// apply does to the kernel what the delta says, as strictly as the kernel would.
func (w *world) apply(d *Delta) {
	w.t.Helper()
	for _, c := range d.Chains {
		if w.chains[c] {
			w.t.Fatalf("chain %v made twice", c)
		}
		w.chains[c] = true
	}
	put := func(e Elem, replace bool) {
		if _, had := w.kernel[e.Key]; had != replace {
			w.t.Fatalf("%+v: in the kernel already: %v, replace: %v", e, had, replace)
		}
		if c := e.Value.Chain; c.Kind.Sized() && !w.chains[c] {
			w.t.Fatalf("%+v leads to a chain that is not there", e)
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
		if _, had := w.kernel[e.Key]; !had {
			w.t.Fatalf("%+v deleted, but is not there", e)
		}
		delete(w.kernel, e.Key)
	}
}

// normal describes a table without the order of slots, and fails if slots have gaps or do not match their chain.
func normal(t *testing.T, m map[Key]Value) string {
	t.Helper()
	var lines []string
	for k, v := range m {
		if k.Set == Endpoints || k.Set == NodeEndpoints {
			front := k
			front.Slot, front.Set = 0, map[Set]Set{Endpoints: Frontends, NodeEndpoints: NodePortsAll}[k.Set]
			if n := m[front].Chain.N; k.Slot >= n {
				t.Fatalf("%+v is a slot of %d", k, n)
			}
			k.Slot = 0
		}
		if n := int(v.Chain.N); k.Set == Frontends || k.Set == NodePortsAll {
			for i := range n {
				slot := k
				slot.Slot, slot.Set = uint16(i), map[Set]Set{Frontends: Endpoints, NodePortsAll: NodeEndpoints}[k.Set]
				if _, ok := m[slot]; !ok {
					t.Fatalf("%+v has no slot %d of %d", k, i, n)
				}
			}
		}
		lines = append(lines, fmt.Sprintf("%+v %+v", k, v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestDiffsAddUpToAFreshCompile(t *testing.T) {
	for seed := range uint64(6) {
		w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1)), store: state.NewStore(), model: NewModel(), kernel: map[Key]Value{}, chains: map[Chain]bool{}}
		dirty := map[state.Name]bool{}
		for step := range 1000 {
			for range 1 + w.r.IntN(3)*w.r.IntN(2) { // sometimes several changes in one transaction
				for _, n := range w.change() {
					dirty[n] = true
				}
			}
			var d Delta
			if step%7 == 4 { // the kernel refused the last one: look, and repair all
				d = Full(w.kernel, w.chains, w.all(), w.nodes)
			} else {
				var changed []Changed
				for n := range dirty {
					changed = append(changed, Changed{n, w.compile(n)})
				}
				d = w.model.Diff(changed, w.nodes)
			}
			w.model.Flows(&d)
			if step%7 == 3 {
				continue
			}
			w.apply(&d)
			w.model.Commit(d)
			clear(dirty)
			if step%5 == 0 || step%7 == 4 {
				fresh := Full(nil, nil, w.all(), w.nodes)
				new := NewModel()
				new.Commit(fresh)
				want, got := normal(t, new.Elems()), normal(t, w.kernel)
				if got != want {
					t.Fatalf("seed %d step %d:\nkernel\n%s\nfresh\n%s", seed, step, got, want)
				}
				if m := normal(t, w.model.Elems()); m != got {
					t.Fatalf("seed %d step %d: the model differs from the kernel:\n%s\nkernel\n%s", seed, step, m, got)
				}
				// A restart finds nothing to do.
				if again := Full(w.kernel, w.chains, w.all(), w.nodes); !again.Empty() {
					t.Fatalf("seed %d step %d: adopting an up-to-date table would change %d elements", seed, step, again.Size())
				}
			}
		}
	}
}

func TestOneEndpointChangeTouchesFewElements(t *testing.T) {
	p := func(list ...string) []Changed {
		return []Changed{{state.Name{Name: "s"}, []Port{{Key: PortKey{Service: state.Name{Name: "s"}, Proto: state.TCP},
			ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80, Endpoints: eps(list...)}}}}
	}
	m := NewModel()
	step := func(what string, add, replace, del int, list ...string) {
		t.Helper()
		d := m.Diff(p(list...), nil)
		if len(d.Add) != add || len(d.Replace) != replace || len(d.Del) != del {
			t.Errorf("%s: %d added, %d replaced, %d deleted; want %d, %d, %d", what, len(d.Add), len(d.Replace), len(d.Del), add, replace, del)
		}
		m.Commit(d)
	}
	step("new Service", 2+4, 0, 0, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1")
	step("nothing", 0, 0, 0, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1")
	step("replace", 0, 1, 0, "10.0.0.1:1", "10.0.0.3:1", "10.0.0.4:1", "10.0.0.9:1")
	step("remove one in the middle", 0, 2, 1, "10.0.0.1:1", "10.0.0.4:1", "10.0.0.9:1") // slot, count; last slot
	step("add", 1, 1, 0, "10.0.0.1:1", "10.0.0.4:1", "10.0.0.7:1", "10.0.0.9:1")
	step("none left", 1, 0, 5)
}

func BenchmarkOneEndpointChangeAt1000Services(b *testing.B) {
	store := state.NewStore()
	name := func(i int) state.Name { return state.Name{Namespace: "ns", Name: fmt.Sprint("svc-", i)} }
	slice := func(i, last int) *state.Slice {
		s := &state.Slice{Name: name(i), Service: name(i), Ports: []state.SlicePort{{Proto: state.TCP, Port: 8080}}}
		for j := range 3 {
			s.Endpoints = append(s.Endpoints, state.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), Ready: true, Serving: true})
		}
		s.Endpoints[2].Addr = netip.AddrFrom4([4]byte{10, 9, byte(last >> 8), byte(last)})
		return s
	}
	for i := range 1000 {
		store.PutService(&state.Service{Name: name(i), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []state.ServicePort{{Proto: state.TCP, Port: 80}}})
		store.PutSlice(slice(i, 1))
	}
	compile := func(n state.Name) []Port {
		svc, sl := store.Service(n)
		return Compile(svc, sl, state.V4, func(f state.Front) bool { return store.Owns(n, f) })
	}
	var all []Port
	store.Services(func(n state.Name) { all = append(all, compile(n)...) })
	m := NewModel()
	m.Commit(Full(nil, nil, all, nil))
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		for _, n := range store.PutSlice(slice(i%1000, i%60000)) {
			m.Commit(m.Diff([]Changed{{n, compile(n)}}, nil))
		}
	}
}
