// Package plan decides what the kernel's service table holds: Compile turns a Service and its slices into ports,
// Model.Diff turns changed ports into the few elements that one transaction must touch. It is pure: no clock, dice,
// disk, network or log; the same input gives the same output.
//
// The table has a fixed, small number of sets and maps, because the kernel's cost of every operation grows with their
// number; Services and endpoints are elements of them (docs/decisions and research "proxy" 3.4 tell what was measured).
package plan

import (
	"net/netip"

	"worknode/proxy/state"
)

// Set is one of the table's sets and maps. The order is the order in which one transaction adds to them: endpoints
// before the frontends that lead to them, so that on kernels whose commit is not seen at once nothing leads nowhere.
type Set uint8

const (
	Endpoints     Set = iota // address, protocol, port, slot → endpoint
	NodeEndpoints            // protocol, node port, slot → endpoint
	Hairpin                  // endpoint, endpoint, protocol, port: masquerade when one calls itself
	ClusterIPs               // address: whatever no frontend takes is refused
	NodeIPs                  // address on which node ports answer
	NodePortsAll             // protocol, node port → chain that picks one of all endpoints
	NodePorts                // protocol, node port → chain that tells where the client is
	Frontends                // address, protocol, port → chain that picks an endpoint
	Refused                  // address, protocol, port without endpoints → chain that refuses
	RefusedNode              // protocol, node port without endpoints → chain that refuses
	Sets                     // how many there are
)

// Key is the key of an element; which fields are used depends on the set.
type Key struct {
	Set   Set
	Proto state.Proto
	Port  uint16
	Slot  uint16
	Addr  netip.Addr
}

// Value is what a map has for a key: a chain or an endpoint; zero in plain sets.
type Value struct {
	Chain Chain
	To    netip.AddrPort
}

// Elem is one element.
type Elem struct {
	Key   Key
	Value Value
}

// Chain names a chain of the table. Those that pick have N, the number of slots they choose from.
type Chain struct {
	Kind ChainKind
	N    uint16
}

// ChainKind is what a chain does.
type ChainKind uint8

const (
	None            ChainKind = iota
	Pick                      // one of N endpoints of a frontend, at random
	PickNode                  // the same for a node port
	NodePortCluster           // masquerade, then NodePortsAll
	Refuse                    // answer "port unreachable"
)

// Sized tells whether chains of this kind are made on demand, one for each N.
func (k ChainKind) Sized() bool { return k == Pick || k == PickNode }

// shared sets hold elements that several ports may want; they are counted.
func (s Set) shared() bool { return s == ClusterIPs || s == Hairpin }

// PortKey identifies a Service port.
type PortKey struct {
	Service state.Name
	Port    string
	Proto   state.Proto
}

// Port is one Service port as one family's dataplane sees it.
type Port struct {
	Key       PortKey
	ClusterIP netip.Addr // zero: a rival has it
	Port      uint16
	NodePort  uint16           // zero: none, or a rival has it
	Endpoints []netip.AddrPort // where connections go; sorted in what Compile returns, in slot order in a Model
	Local     []netip.AddrPort // those of them on this node
	Serving   []netip.AddrPort // UDP only: endpoints whose old flows may live on
}

// elems calls each with every element that the port wants.
func (p *Port) elems(each func(Key, Value)) {
	n := uint16(len(p.Endpoints))
	if p.ClusterIP.IsValid() {
		key := func(s Set, slot int) Key {
			return Key{Set: s, Addr: p.ClusterIP, Proto: p.Key.Proto, Port: p.Port, Slot: uint16(slot)}
		}
		each(Key{Set: ClusterIPs, Addr: p.ClusterIP}, Value{})
		if n == 0 {
			each(key(Refused, 0), Value{Chain: Chain{Kind: Refuse}})
		} else {
			each(key(Frontends, 0), Value{Chain: Chain{Pick, n}})
		}
		for i, to := range p.Endpoints {
			each(key(Endpoints, i), Value{To: to})
		}
	}
	if p.NodePort != 0 {
		key := func(s Set, slot int) Key {
			return Key{Set: s, Proto: p.Key.Proto, Port: p.NodePort, Slot: uint16(slot)}
		}
		if n == 0 {
			each(key(RefusedNode, 0), Value{Chain: Chain{Kind: Refuse}})
		} else {
			each(key(NodePorts, 0), Value{Chain: Chain{Kind: NodePortCluster}})
			each(key(NodePortsAll, 0), Value{Chain: Chain{PickNode, n}})
		}
		for i, to := range p.Endpoints {
			each(key(NodeEndpoints, i), Value{To: to})
		}
	}
	for _, to := range p.Local {
		each(Key{Set: Hairpin, Addr: to.Addr(), Proto: p.Key.Proto, Port: to.Port()}, Value{})
	}
}
