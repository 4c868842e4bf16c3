package plan

import (
	"fmt"
	"net/netip"
	"slices"
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

func TestOneEndpointChangeTouchesFewElements(t *testing.T) {
	p := func(list ...string) []Changed {
		return []Changed{{state.Name{Name: "s"}, []*Port{{Key: PortKey{Service: state.Name{Name: "s"}, Proto: state.TCP},
			ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80, All: eps(list...), Any: len(list) > 0}}}}
	}
	m := NewModel()
	start := Full(Have{}, nil, Want{})
	m.Commit(&start)
	step := func(what string, add, replace, del int, list ...string) {
		t.Helper()
		d := m.Diff(p(list...), Want{})
		if len(d.Add) != add || len(d.Replace) != replace || len(d.Del) != del {
			t.Errorf("%s: %d added, %d replaced, %d deleted; want %d, %d, %d", what, len(d.Add), len(d.Replace), len(d.Del), add, replace, del)
		}
		m.Commit(&d)
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
	compile := func(n state.Name) Changed {
		svc, sl := store.Service(n)
		return Changed{n, Compile(Input{svc, sl, func(f state.Front) bool { return store.Owns(n, f) }}, state.V4, Here{})}
	}
	var all []Changed
	store.Services(func(n state.Name) { all = append(all, compile(n)) })
	m := NewModel()
	d := Full(Have{}, all, Want{})
	m.Commit(&d)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		for _, n := range store.PutSlice(slice(i%1000, i%60000)) {
			d := m.Diff([]Changed{compile(n)}, Want{})
			m.Commit(&d)
		}
	}
}
