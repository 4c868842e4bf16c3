package proxy

import (
	"net/netip"
	"testing"

	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// A flow that begins while an older cleaning is on its way goes to an endpoint which that cleaning did not know of when it
// started: it is judged by what was announced since.
func TestFlowsAreJudgedByWhatIsTrueNow(t *testing.T) {
	c := newCleaner(nil)
	front := state.Front{Addr: netip.MustParseAddr("10.96.0.1"), Proto: state.UDP, Port: 53}
	at := netip.AddrPortFrom(front.Addr, 53)
	a, b := netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53")
	say := func(to ...netip.AddrPort) {
		c.announce(state.V4, []plan.Flows{{Front: front, Serving: to}, {Front: state.Front{Proto: state.UDP, Port: 30053}, Serving: to}},
			[]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	}
	stale := func(what string, to netip.AddrPort, want bool) {
		t.Helper()
		for _, at := range []netip.AddrPort{at, netip.MustParseAddrPort("192.0.2.1:30053")} {
			if got := c.stale(state.V4, at, to); got != want {
				t.Errorf("%s: flow %v to %v is stale: %v", what, at, to, got)
			}
		}
	}
	say()
	c.forget(state.V4, first(c.targets(state.V4)), second(c.targets(state.V4)))
	if to, _ := c.targets(state.V4); len(to) != 2 {
		t.Fatal("a cleaning before the commit counts as one after it")
	}
	c.committed()
	to, turn := c.targets(state.V4) // a cleaning begins
	if len(to) != 2 {
		t.Fatalf("%d targets", len(to))
	}
	stale("no endpoints", a, true)
	say(a)
	c.committed()
	stale("one since", a, false)
	stale("one since", b, true)
	c.forget(state.V4, to, turn) // the cleaning ends; there is news
	if to, turn = c.targets(state.V4); len(to) != 2 {
		t.Fatalf("the news is lost: %d targets", len(to))
	}
	if c.stale(state.V6, at, b) || c.stale(state.V4, netip.AddrPortFrom(front.Addr, 54), b) {
		t.Error("somebody else's flow is stale")
	}
	c.forget(state.V4, to, turn)
	if to, _ = c.targets(state.V4); len(to) != 0 {
		t.Fatalf("%d targets left", len(to))
	}
}

// Of a Service that was deleted while transactions failed, the flows are still cleaned.
func TestFlowsOfServicesDeletedDuringFailures(t *testing.T) {
	port := func(name string, ip byte, to string) *plan.Port {
		return &plan.Port{Key: plan.PortKey{Service: state.Name{Name: name}, Proto: state.UDP}, ClusterIP: netip.AddrFrom4([4]byte{10, 96, 0, ip}), Port: 53,
			Serving: []netip.AddrPort{netip.MustParseAddrPort(to)}}
	}
	m := plan.NewModel()
	changed := func(list ...*plan.Port) (out []plan.Changed) {
		for _, p := range list {
			out = append(out, plan.Changed{Service: p.Key.Service, Ports: []*plan.Port{p}})
		}
		return out
	}
	d := plan.Full(plan.Have{}, changed(port("gone", 1, "10.0.0.1:53"), port("stays", 2, "10.0.0.2:53")), plan.Want{})
	m.Commit(&d)
	d = plan.Full(plan.Have{}, changed(port("stays", 2, "10.0.0.2:53")), plan.Want{})
	got := map[string]int{}
	for _, f := range m.Flows(&d) {
		got[f.Front.Addr.String()] = len(f.Serving)
	}
	if len(got) != 2 || got["10.96.0.1"] != 0 || got["10.96.0.2"] != 1 {
		t.Errorf("%v", got)
	}
}

func first(to []netip.AddrPort, _ uint64) []netip.AddrPort { return to }
func second(_ []netip.AddrPort, turn uint64) uint64        { return turn }
