package plan

import (
	"net/netip"
	"slices"
	"time"

	"worknode/proxy/state"
)

// PortKey identifies a Service port.
type PortKey struct {
	Service state.Name
	Port    string
	Proto   state.Proto
}

// Port is one Service port as one family's dataplane sees it. Addresses and node ports that a rival has are left out.
type Port struct {
	Key       PortKey
	ClusterIP netip.Addr // zero: a rival has it
	Port      uint16
	NodePort  uint16         // zero: none
	External  []netip.Addr   // external IPs and load balancer's addresses, sorted
	Guarded   []netip.Addr   // those of them that only Allow may use, sorted
	Allow     []netip.Prefix // sorted, none inside another

	InternalLocal bool // internalTrafficPolicy Local
	ExternalLocal bool // externalTrafficPolicy Local
	Sticky        time.Duration

	// Where connections go under policy Cluster and Local, as far as the port uses the policy. Sorted in what Compile
	// returns, in slot order in a Model.
	All   []netip.AddrPort
	Local []netip.AddrPort

	Any     bool             // there are usable endpoints somewhere: where none is for us, drop rather than refuse
	Hairpin []netip.AddrPort // usable ones on this node, sorted
	Serving []netip.AddrPort // UDP only: endpoints whose old flows may live on, sorted
}

// external tells whether the port is reached otherwise than by its ClusterIP.
func (p *Port) external() bool { return p.NodePort != 0 || len(p.External) > 0 }

// elems calls each with every element that the port wants, each once.
func (p *Port) elems(each func(Key, Value)) {
	all, local := p.sticky()
	key := func(s Set, a netip.Addr, port uint16) Key {
		return Key{Set: s, Addr: a, Proto: p.Key.Proto, Port: port}
	}
	// pick has the slots of one front filled, and returns the chain that picks among them.
	pick := func(s Set, sticky *Sticky, k Key, list []netip.AddrPort) Value {
		if sticky != nil {
			return Value{Chain: sticky.Name}
		}
		k.Set = s
		for i, to := range list {
			k.Slot = uint16(i)
			each(k, Value{To: to})
		}
		return Value{Chain: pickFrom(s, len(list))}
	}
	if p.ClusterIP.IsValid() {
		k := key(Fronts, p.ClusterIP, p.Port)
		switch {
		case p.InternalLocal && len(p.Local) > 0:
			each(k, pick(EndpointsLocal, local, k, p.Local))
		case !p.InternalLocal && len(p.All) > 0:
			each(k, pick(Endpoints, all, k, p.All))
		default:
			each(key(Refused, p.ClusterIP, p.Port), p.refusal())
		}
		each(Key{Set: ClusterIPs, Addr: p.ClusterIP}, Value{})
	}
	// outside is the same for external addresses and node ports, with other maps.
	outside := func(front, frontAll, frontLocal, refused, ep, epLocal Set, tell, masquerade Chain, k Key) {
		at := func(s Set) Key { k := k; k.Set = s; return k }
		if !p.Any {
			each(at(refused), Value{Chain: Refuse})
			return
		}
		each(at(frontAll), pick(ep, all, k, p.All))
		if !p.ExternalLocal {
			each(at(front), Value{Chain: masquerade})
			return
		}
		each(at(front), Value{Chain: tell})
		if len(p.Local) == 0 {
			each(at(refused), Value{Chain: Drop})
			return
		}
		each(at(frontLocal), pick(epLocal, local, k, p.Local))
	}
	for _, a := range p.External {
		outside(Fronts, FrontsAll, FrontsLocal, Refused, Endpoints, EndpointsLocal, ExternalLocal, External, key(Fronts, a, p.Port))
	}
	if p.NodePort != 0 {
		outside(NodePorts, NodePortsAll, NodePortsLocal, RefusedNode, NodeEndpoints, NodeEndpointsLocal, NodePortLocal, NodePort,
			key(NodePorts, netip.Addr{}, p.NodePort))
	}
	for _, a := range p.Guarded {
		k := key(Firewalled, a, p.Port)
		each(k, Value{})
		for _, k.From = range p.Allow {
			k.Set = Allowed
			each(k, Value{})
		}
	}
	for _, to := range p.Hairpin {
		each(Key{Set: Hairpin, Addr: to.Addr(), Proto: p.Key.Proto, Port: to.Port()}, Value{})
	}
}

// refusal is what a ClusterIP connection meets that no endpoint may take: silence if there are some elsewhere, as policy
// Local promises nothing; else a quick no.
func (p *Port) refusal() Value {
	if p.Any {
		return Value{Chain: Drop}
	}
	return Value{Chain: Refuse}
}

// same compares a port of the model with what Compile returned.
func same(a, b *Port) bool {
	return a.ClusterIP == b.ClusterIP && a.Port == b.Port && a.NodePort == b.NodePort && slices.Equal(a.External, b.External) &&
		slices.Equal(a.Guarded, b.Guarded) && slices.Equal(a.Allow, b.Allow) && a.InternalLocal == b.InternalLocal &&
		a.ExternalLocal == b.ExternalLocal && a.Sticky == b.Sticky && a.Any == b.Any &&
		sameSet(a.All, b.All) && sameSet(a.Local, b.Local) && slices.Equal(a.Hairpin, b.Hairpin) && slices.Equal(a.Serving, b.Serving)
}

// sameSet compares endpoints in slot order with sorted ones.
func sameSet(slotted, sorted []netip.AddrPort) bool {
	if len(slotted) != len(sorted) {
		return false
	}
	for _, s := range slotted {
		if _, ok := slices.BinarySearchFunc(sorted, s, netip.AddrPort.Compare); !ok {
			return false
		}
	}
	return true
}
