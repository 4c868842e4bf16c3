// Package plan decides what the kernel's service tables hold: Compile turns a Service and its slices into ports,
// Model.Diff turns changed ports into the few elements that one transaction must touch, Ruleset lists the rules that use
// them, and Trace follows a packet through all of it. It is pure: no clock, dice, disk, network or log; the same input
// gives the same output.
//
// A table has a fixed, small number of sets and maps, because the kernel's cost of every operation grows with their
// number; Services and endpoints are elements of them. Endpoints are plain data, because every element that leads to a
// chain makes the kernel check the whole table again (research "proxy" 0 and 3.4 tell what was measured). Only Services
// with session affinity have chains and a map of their own (sticky.go).
package plan

import (
	"fmt"
	"net/netip"

	"worknode/proxy/state"
)

// Set is one of the table's sets and maps. The order is the order in which one transaction adds to them: endpoints
// before the frontends that lead to them, so that on kernels whose commit is not seen at once nothing leads nowhere.
type Set uint8

// "Front" stands for an address, a protocol and a port; "node port" for a protocol and a port. Of each pair of maps one
// has the endpoints of policy Cluster and one those of policy Local.
const (
	Endpoints          Set = iota // front, slot → endpoint
	EndpointsLocal                // front, slot → endpoint on this node
	NodeEndpoints                 // node port, slot → endpoint
	NodeEndpointsLocal            // node port, slot → endpoint on this node
	Hairpin                       // endpoint here, the same address, protocol, port: masquerade when one calls itself
	ClusterIPs                    // address: whatever no front takes is refused
	NodeIPs                       // address on which node ports answer
	Allowed                       // front, range of sources that may use it
	Firewalled                    // front that only Allowed sources may use
	NodePortsAll                  // node port → chain that picks one of all endpoints
	NodePortsLocal                // node port → chain that picks one on this node
	NodePorts                     // node port → chain that tells where the client is
	FrontsAll                     // external front → chain that picks one of all endpoints
	FrontsLocal                   // external front → chain that picks one on this node
	Fronts                        // front → chain that picks, or for external ones tells where the client is
	Refused                       // front without endpoints → chain that refuses, or drop
	RefusedNode                   // node port without endpoints → chain that refuses, or drop
	Sets                          // how many there are
)

var setNames = [Sets]string{
	Endpoints: "ep", EndpointsLocal: "ep-loc", NodeEndpoints: "epnp", NodeEndpointsLocal: "epnp-loc", Hairpin: "hairpin",
	ClusterIPs: "cluster-ips", NodeIPs: "node-ips", Allowed: "fw-ok", Firewalled: "fw-dst", NodePortsAll: "np-all",
	NodePortsLocal: "np-loc", NodePorts: "np", FrontsAll: "svc-all", FrontsLocal: "svc-loc", Fronts: "svc", Refused: "noep",
	RefusedNode: "noep-np",
}

// String is the set's name in the table.
func (s Set) String() string { return setNames[s] }

// Field is one part of what a set's key is made of; see Set.Key.
type Field uint8

const (
	Daddr Field = iota
	Saddr
	Proto
	Dport
	Slot
)

var (
	frontKey = []Field{Daddr, Proto, Dport}
	nodeKey  = []Field{Proto, Dport}
)

// Key returns the parts of the packet that make a key of the set, in order. Slot is not in the packet.
func (s Set) Key() []Field {
	switch s {
	case Endpoints, EndpointsLocal:
		return []Field{Daddr, Proto, Dport, Slot}
	case NodeEndpoints, NodeEndpointsLocal:
		return []Field{Proto, Dport, Slot}
	case Hairpin:
		return []Field{Saddr, Daddr, Proto, Dport}
	case ClusterIPs, NodeIPs:
		return []Field{Daddr}
	case Allowed:
		return []Field{Daddr, Proto, Dport, Saddr}
	case NodePortsAll, NodePortsLocal, NodePorts, RefusedNode:
		return nodeKey
	}
	return frontKey
}

// Verdicts tells whether the set is a map that leads to chains.
func (s Set) Verdicts() bool { return s >= NodePortsAll && s < Sets }

// Data tells whether the set is a map that has endpoints.
func (s Set) Data() bool { return s <= NodeEndpointsLocal }

// shared sets hold elements that several ports may want; they are counted.
func (s Set) shared() bool { return s == ClusterIPs || s == Hairpin }

// Key is the key of an element; which fields are used depends on the set.
type Key struct {
	Set   Set
	Proto state.Proto
	Port  uint16
	Slot  uint16
	Addr  netip.Addr   // Daddr, and Saddr in Hairpin
	From  netip.Prefix // Saddr in Allowed
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

// String describes an element in a few words, as in "svc 10.96.0.1:80/TCP → c3".
func (e Elem) String() string {
	out := e.Key.Set.String()
	k := e.Key
	switch {
	case k.Port == 0:
		out += " " + k.Addr.String()
	case k.Addr.IsValid():
		out += fmt.Sprintf(" %v/%v", netip.AddrPortFrom(k.Addr, k.Port), k.Proto)
	default:
		out += fmt.Sprintf(" :%d/%v", k.Port, k.Proto)
	}
	if k.From.IsValid() {
		out += " from " + k.From.String()
	}
	if e.Value.To.IsValid() {
		return fmt.Sprintf("%s slot %d → %v", out, k.Slot, e.Value.To)
	}
	if e.Value.Chain != "" {
		out += " → " + string(e.Value.Chain)
	}
	return out
}
