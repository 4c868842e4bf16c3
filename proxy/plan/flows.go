package plan

import (
	"net/netip"

	"worknode/proxy/state"
)

// Flows says which UDP flows of one front may live on: those that go to Serving. All others are cut, because a UDP
// flow sticks to its endpoint for as long as packets come, which for a resolver or a tunnel is for ever.
type Flows struct {
	Front   state.Front // of a node port if Addr is the zero Addr
	Serving []netip.AddrPort
}

// Flows returns what to clean after d is committed; call it before Commit, while the old fronts are still known.
// A front that d takes away is listed without endpoints, unless another port takes it over.
func (m *Model) Flows(d *Delta) []Flows {
	at := map[state.Front]int{}
	var out []Flows
	add := func(p *Port, serving []netip.AddrPort) {
		each := func(f state.Front) {
			i, ok := at[f]
			if !ok {
				i = len(out)
				at[f] = i
				out = append(out, Flows{Front: f})
			}
			if serving != nil {
				out[i].Serving = serving
			}
		}
		if p.Key.Proto != state.UDP {
			return
		}
		if p.ClusterIP.IsValid() {
			each(state.Front{Addr: p.ClusterIP, Proto: state.UDP, Port: p.Port})
		}
		if p.NodePort != 0 {
			each(state.Front{Proto: state.UDP, Port: p.NodePort})
		}
	}
	for k, p := range d.ports {
		if k.Proto != state.UDP {
			continue
		}
		if had, ok := m.ports[k]; ok {
			add(&had, nil)
		}
		if p != nil {
			add(p, p.Serving)
		}
	}
	return out
}
