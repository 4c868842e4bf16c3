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
// A front that d takes away is listed without endpoints, unless another port takes it over. Of a delta that stems from Full
// all fronts are listed: some flows may be from before our rules, or from a change that we have missed.
func (m *Model) Flows(d *Delta) []Flows {
	var at map[state.Front]int
	var out []Flows
	add := func(p *Port, serving []netip.AddrPort) {
		if p.Key.Proto != state.UDP {
			return
		}
		p.fronts(func(f state.Front) {
			i, ok := at[f]
			if !ok {
				if at == nil {
					at = map[state.Front]int{}
				}
				i = len(out)
				at[f] = i
				out = append(out, Flows{Front: f})
			}
			if serving != nil {
				out[i].Serving = serving
			}
		})
	}
	if d.fresh {
		for name, had := range m.services {
			if d.services[name] == nil {
				for _, p := range had {
					add(p, nil)
				}
			}
		}
	}
	for name, ports := range d.services {
		had := m.services[name]
		for _, p := range had {
			if find(ports, p.Key) != p { // else it is as it was
				add(p, nil)
			}
		}
		for _, p := range ports {
			if find(had, p.Key) != p {
				add(p, p.Serving)
			}
		}
	}
	return out
}

// fronts calls each with everything the port is reached by.
func (p *Port) fronts(each func(state.Front)) {
	if p.ClusterIP.IsValid() {
		each(state.Front{Addr: p.ClusterIP, Proto: p.Key.Proto, Port: p.Port})
	}
	for _, a := range p.External {
		each(state.Front{Addr: a, Proto: p.Key.Proto, Port: p.Port})
	}
	if p.NodePort != 0 {
		each(state.Front{Proto: p.Key.Proto, Port: p.NodePort})
	}
}
