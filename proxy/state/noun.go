// Package state holds the proxy's nouns (Services, EndpointSlices, trimmed to what the dataplane needs) and the store
// that joins them. It does not know where they come from and decides nothing about packets.
package state

import (
	"cmp"
	"net/netip"
)

// Name identifies a namespaced object.
type Name struct{ Namespace, Name string }

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names.
func (n Name) Compare(m Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, m.Namespace), cmp.Compare(n.Name, m.Name))
}

// Family is an address family.
type Family uint8

const (
	V4 Family = 4
	V6 Family = 6
)

// Of tells an address's family.
func Of(a netip.Addr) Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// Proto is a transport protocol's number as in the IP header.
type Proto uint8

const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "?"
}

// Service is a Service that has a virtual address.
type Service struct {
	Name       Name
	ClusterIPs []netip.Addr // at most one a family
	Ports      []ServicePort
}

// ServicePort is one port of a Service. Name joins it with the slices' ports; it is empty for a nameless port.
type ServicePort struct {
	Name     string
	Proto    Proto
	Port     uint16
	NodePort uint16 // zero: none
}

// Slice is an EndpointSlice.
type Slice struct {
	Name      Name
	Service   Name
	Ports     []SlicePort
	Endpoints []Endpoint
}

// SlicePort is where the endpoints of a slice serve the Service port of that name.
type SlicePort struct {
	Name  string
	Proto Proto
	Port  uint16
}

// Endpoint is one backend. The API's defaults are applied: an unset ready or serving is true, terminating false.
type Endpoint struct {
	Addr        netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	Local       bool // on this node
}

// Front is where clients reach a Service port: a virtual address, or a port of the node if Addr is the zero Addr.
type Front struct {
	Addr  netip.Addr
	Proto Proto
	Port  uint16
}
