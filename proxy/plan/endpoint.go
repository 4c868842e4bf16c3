package plan

import (
	"net/netip"
	"slices"

	"worknode/proxy/state"
)

// backend is one endpoint with the port it serves on.
type backend struct {
	to netip.AddrPort
	*state.Endpoint
}

// join collects the endpoints behind a Service port from all slices, sorted and each once. During a move an endpoint
// may be in two slices, and an address may have a new pod while its old one goes: the one that does not say terminating
// counts. Source: Kubernetes, EndpointSlice concepts, "Duplicate endpoints".
func join(sl []*state.Slice, sp state.ServicePort, fam state.Family) []backend {
	var all []backend
	for _, s := range sl {
		for _, port := range s.Ports {
			if port.Name != sp.Name || port.Proto != sp.Proto {
				continue
			}
			all = slices.Grow(all, len(s.Endpoints))
			for i := range s.Endpoints {
				if e := &s.Endpoints[i]; state.Of(e.Addr) == fam {
					all = append(all, backend{netip.AddrPortFrom(e.Addr, port.Port), e})
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
	for i, worse := range []bool{!b.Local, !b.Serving, !b.Ready, b.Terminating} {
		if worse {
			n |= 1 << i
		}
	}
	return n
}

func ready(b backend) bool    { return b.Ready }
func draining(b backend) bool { return !b.Ready && b.Serving && b.Terminating }

// addEndpoints fills in where connections go. Usable are the ready endpoints; if there are none, those that still serve
// while they terminate, which is better than refusing; policy Cluster and Local decide that each for itself (KEP-1669).
func (p *Port) addEndpoints(all []backend, here Here) {
	usesAll := !p.InternalLocal || p.external()
	usesLocal := p.InternalLocal || p.ExternalLocal && p.external()
	near := topology(all, here)
	if usesAll {
		p.All = usable(all, func(b backend) bool { return b.Ready && near(b) }, draining)
	}
	if usesLocal {
		p.Local = usable(all, func(b backend) bool { return b.Local && b.Ready }, func(b backend) bool { return b.Local && draining(b) })
	}
	p.Any = len(p.All) > 0 || slices.ContainsFunc(all, func(b backend) bool { return ready(b) || draining(b) })
	for _, b := range all {
		if !b.Local {
			continue
		}
		if _, ok := slices.BinarySearchFunc(p.All, b.to, netip.AddrPort.Compare); !ok {
			if _, ok = slices.BinarySearchFunc(p.Local, b.to, netip.AddrPort.Compare); !ok {
				continue
			}
		}
		p.Hairpin = append(p.Hairpin, b.to)
	}
	if p.Key.Proto == state.UDP {
		p.Serving = pick(all, func(b backend) bool { return b.Serving })
	}
}

// usable picks what the first question says yes to, or else the second.
func usable(all []backend, first, second func(backend) bool) []netip.AddrPort {
	if to := pick(all, first); len(to) > 0 {
		return to
	}
	return pick(all, second)
}

func pick(all []backend, ok func(backend) bool) []netip.AddrPort {
	n := 0
	for _, b := range all {
		if ok(b) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	to := make([]netip.AddrPort, 0, min(n, maxEndpoints))
	for _, b := range all {
		if ok(b) && len(to) < maxEndpoints {
			to = append(to, b.to)
		}
	}
	return to
}

// topology tells which ready endpoints are meant for this node: those hinted for it, else those for its zone. Hints count
// only if every ready endpoint has one and one is for us: a partial set would overload some endpoints or leave us none.
// Source: KEP-2433 and KEP-3015.
func topology(all []backend, here Here) func(backend) bool {
	nodes, zones := true, true // every ready endpoint is hinted
	ourNode, ourZone := false, false
	for _, b := range all {
		if !b.Ready {
			continue
		}
		nodes = nodes && b.NodeHint
		ourNode = ourNode || b.ForThisNode
		zones = zones && !b.Zones.Empty()
		ourZone = ourZone || b.Zones.Has(here.Zone)
	}
	switch {
	case nodes && ourNode:
		return func(b backend) bool { return b.ForThisNode }
	case zones && ourZone:
		return func(b backend) bool { return b.Zones.Has(here.Zone) }
	}
	return func(backend) bool { return true }
}

// ReadyHere counts the distinct addresses of a Service's ready endpoints on this node, of all its ports, in the family of
// its first address: what a load balancer's health check asks for.
func ReadyHere(in Input) int {
	if in.Service == nil || len(in.Service.ClusterIPs) == 0 {
		return 0
	}
	fam := state.Of(in.Service.ClusterIPs[0])
	here := map[netip.Addr]bool{}
	for _, sp := range in.Service.Ports {
		for _, b := range join(in.Slices, sp, fam) {
			if b.Local && b.Ready {
				here[b.to.Addr()] = true
			}
		}
	}
	return len(here)
}
