package proxy

import (
	"net/netip"
	"testing"

	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// A Service is deleted and made again while the flows of the old one are being looked for: those of the new one stay.
func TestCleaningSparesWhatCameMeanwhile(t *testing.T) {
	front, old, fresh := netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("10.0.0.2:53")
	flows := func(serving ...netip.AddrPort) []plan.Flows {
		return []plan.Flows{{Front: state.Front{Addr: front.Addr(), Proto: state.UDP, Port: front.Port()}, Serving: serving}}
	}
	c := newCleaner(nil)
	stale := c.stale(state.V4, fronts{front: nil}) // at work, since the Service was deleted
	want := func(when string, cutOld, cutFresh bool) {
		t.Helper()
		if stale(front, old) != cutOld || stale(front, fresh) != cutFresh {
			t.Errorf("%s: old cut %v, fresh cut %v; want %v, %v", when, stale(front, old), stale(front, fresh), cutOld, cutFresh)
		}
	}
	want("deleted", true, true)
	c.announce(state.V4, flows(fresh), nil)
	want("on its way", true, false)
	c.queue(state.V4, flows(fresh), nil)
	c.announce(state.V4, nil, nil)
	want("committed", true, false)
	if stale(netip.MustParseAddrPort("10.96.0.11:53"), old) {
		t.Error("another Service's flow would be cut")
	}
}
