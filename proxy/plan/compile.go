package plan

import (
	"net/netip"
	"slices"

	"worknode/proxy/state"
)

// maxEndpoints bounds one port's endpoints: slots are numbered in 16 bits. Endpoints beyond it get no connections.
const maxEndpoints = 1<<16 - 1

// Here is what compiling needs to know of this node.
type Here struct {
	Node string
	Zone string
	IPs  []netip.Addr // the Node object's, one a family
}

// Input is one Service as the API has it.
type Input struct {
	Service *state.Service // nil: it is gone
	Slices  []*state.Slice
	Owns    func(state.Front) bool // whether a front is this Service's rather than a rival's
}

// Compile returns the ports of a Service in one family; none if it has no address of that family.
func Compile(in Input, fam state.Family, here Here) []*Port {
	svc := in.Service
	if svc == nil {
		return nil
	}
	vip := first(svc.ClusterIPs, fam)
	if !vip.IsValid() {
		return nil
	}
	ports := make([]*Port, 0, len(svc.Ports))
	for _, sp := range svc.Ports {
		p := &Port{Key: PortKey{svc.Name, sp.Name, sp.Proto}, Port: sp.Port, Sticky: svc.Sticky,
			InternalLocal: svc.InternalLocal, ExternalLocal: svc.ExternalLocal}
		if in.Owns(state.Front{Addr: vip, Proto: sp.Proto, Port: sp.Port}) {
			p.ClusterIP = vip
		}
		if sp.NodePort != 0 && in.Owns(state.Front{Proto: sp.Proto, Port: sp.NodePort}) {
			p.NodePort = sp.NodePort
		}
		p.addExternal(in, sp, vip, fam)
		if len(p.Guarded) > 0 {
			p.guard(svc.Sources, fam, here)
		}
		p.addEndpoints(join(in.Slices, sp, fam), here)
		ports = append(ports, p)
	}
	return ports
}

func first(list []netip.Addr, fam state.Family) netip.Addr {
	for _, a := range list {
		if state.Of(a) == fam {
			return a
		}
	}
	return netip.Addr{}
}

// addExternal fills in the external addresses; Guarded has the load balancer's, for guard to look at.
func (p *Port) addExternal(in Input, sp state.ServicePort, vip netip.Addr, fam state.Family) {
	take := func(from []netip.Addr) (out []netip.Addr) {
		for _, a := range from {
			if state.Of(a) == fam && a != vip && in.Owns(state.Front{Addr: a, Proto: sp.Proto, Port: sp.Port}) {
				out = append(out, a)
			}
		}
		return out
	}
	p.Guarded = sorted(take(in.Service.Ingress))
	if p.External = take(in.Service.ExternalIPs); len(p.External)+len(p.Guarded) > 0 {
		p.External = sorted(append(p.External, p.Guarded...))
	}
}

func sorted(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// guard works out who may use the load balancer's addresses. Where the node itself may, so may those addresses: a node
// that has one of them reaches it with that address as its source.
// Source: Kubernetes, spec.loadBalancerSourceRanges; a range of all addresses, like none, means everybody.
func (p *Port) guard(sources []netip.Prefix, fam state.Family, here Here) {
	allow := ofFamily(sources, fam)
	if len(allow) == 0 || slices.ContainsFunc(allow, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
		p.Guarded = nil
		return
	}
	node := first(here.IPs, fam)
	if node.IsValid() && slices.ContainsFunc(allow, func(r netip.Prefix) bool { return r.Contains(node) }) {
		for _, a := range p.Guarded {
			allow = append(allow, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	p.Allow = tidy(allow)
}

// tidy sorts ranges and leaves out those inside of others, which the kernel refuses in one set.
func tidy(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits() // the wider one first
	})
	out := list[:0]
	for _, p := range list {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
