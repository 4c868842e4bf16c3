package plan

import (
	"net/netip"
	"slices"

	"worknode/proxy/state"
)

// maxEndpoints bounds one port's endpoints: slots are numbered in 16 bits. Endpoints beyond it get no connections.
const maxEndpoints = 1<<16 - 1

// Compile returns the ports of a Service in one family; none if svc is nil or has no address of that family.
// owns tells whether a front is this Service's rather than a rival's.
func Compile(svc *state.Service, sl map[state.Name]*state.Slice, fam state.Family, owns func(state.Front) bool) []Port {
	if svc == nil {
		return nil
	}
	var vip netip.Addr
	for _, a := range svc.ClusterIPs {
		if state.Of(a) == fam {
			vip = a
			break
		}
	}
	if !vip.IsValid() {
		return nil
	}
	ports := make([]Port, 0, len(svc.Ports))
	for _, sp := range svc.Ports {
		p := Port{Key: PortKey{svc.Name, sp.Name, sp.Proto}, Port: sp.Port}
		if owns(state.Front{Addr: vip, Proto: sp.Proto, Port: sp.Port}) {
			p.ClusterIP = vip
		}
		if sp.NodePort != 0 && owns(state.Front{Proto: sp.Proto, Port: sp.NodePort}) {
			p.NodePort = sp.NodePort
		}
		backends := join(sl, sp, fam)
		p.Endpoints, p.Local = usable(backends)
		if sp.Proto == state.UDP {
			p.Serving = serving(backends)
		}
		ports = append(ports, p)
	}
	return ports
}

// backend is one endpoint with the port it serves on.
type backend struct {
	to          netip.AddrPort
	ready       bool
	serving     bool
	terminating bool
	local       bool
}

// join collects the endpoints behind a Service port from all slices, sorted and each once. During a move an endpoint
// may be in two slices: the one that does not say terminating is the newer one.
// Source: Kubernetes, EndpointSlice concepts, "Duplicate endpoints".
func join(sl map[state.Name]*state.Slice, sp state.ServicePort, fam state.Family) []backend {
	var all []backend
	for _, s := range sl {
		for _, port := range s.Ports {
			if port.Name != sp.Name || port.Proto != sp.Proto {
				continue
			}
			for _, e := range s.Endpoints {
				if state.Of(e.Addr) == fam {
					all = append(all, backend{netip.AddrPortFrom(e.Addr, port.Port), e.Ready, e.Serving, e.Terminating, e.Local})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b backend) int {
		if c := a.to.Compare(b.to); c != 0 {
			return c
		}
		return rank(a) - rank(b)
	})
	return slices.CompactFunc(all, func(a, b backend) bool { return a.to == b.to })
}

// rank orders what slices say of one endpoint, the most alive first, so that the answer does not depend on their order.
func rank(b backend) int {
	n := 0
	for i, worse := range []bool{!b.local, !b.serving, !b.ready, b.terminating} {
		if worse {
			n |= 1 << i
		}
	}
	return n
}

// usable picks the endpoints that get new connections: the ready ones; if there are none, those that still serve
// while they terminate, which is better than refusing (KEP-1669).
func usable(all []backend) (to, local []netip.AddrPort) {
	pick := func(ok func(backend) bool) {
		for _, b := range all {
			if ok(b) && len(to) < maxEndpoints {
				to = append(to, b.to)
				if b.local {
					local = append(local, b.to)
				}
			}
		}
	}
	pick(func(b backend) bool { return b.ready })
	if len(to) == 0 {
		pick(func(b backend) bool { return b.serving && b.terminating })
	}
	return to, local
}

// serving lists the endpoints that may keep the UDP flows they have.
func serving(all []backend) (to []netip.AddrPort) {
	for _, b := range all {
		if b.serving {
			to = append(to, b.to)
		}
	}
	return to
}
