// Package state holds the proxy's nouns (Services, EndpointSlices, trimmed to what the dataplane needs) and the store
// that joins them. It does not know where they come from and decides nothing about packets.
package state

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"
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

// String is the name that the API has for it, as in "TCP".
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

	ExternalIPs []netip.Addr   // spec.externalIPs
	Ingress     []netip.Addr   // of the load balancer, as far as the kernel is to answer them (ipMode VIP)
	Sources     []netip.Prefix // who may use Ingress; no range of a family means everybody

	InternalLocal bool          // internalTrafficPolicy
	ExternalLocal bool          // externalTrafficPolicy
	Sticky        time.Duration // sessionAffinity ClientIP lasts so long after the last connection; zero: none
	HealthPort    uint16        // healthCheckNodePort; zero: none
}

// ServicePort is one port of a Service. Name joins it with the slices' ports; it is empty for a nameless port.
type ServicePort struct {
	Name     string
	Proto    Proto
	Port     uint16
	NodePort uint16 // zero: none
}

// Equal tells whether two Services say the same.
func (s *Service) Equal(o *Service) bool {
	return s.Name == o.Name && slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.Ports, o.Ports) &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) && slices.Equal(s.Ingress, o.Ingress) && slices.Equal(s.Sources, o.Sources) &&
		s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal && s.Sticky == o.Sticky && s.HealthPort == o.HealthPort
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

// Equal tells whether two slices say the same.
func (s *Slice) Equal(o *Slice) bool {
	return s.Name == o.Name && s.Service == o.Service && slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Endpoints, o.Endpoints)
}

// Endpoint is one backend. The API's defaults are applied: an unset ready or serving is true, terminating false.
type Endpoint struct {
	Addr        netip.Addr
	Zones       Zones // it is hinted for; none: no hint
	Ready       bool
	Serving     bool
	Terminating bool
	Local       bool // on this node
	NodeHint    bool // it is hinted for certain nodes
	ForThisNode bool // of which this is one
}

// Zones is a set of zone names. Endpoints of one zone share one copy of it.
type Zones struct{ h unique.Handle[string] }

var noZones unique.Handle[string]

// MakeZones returns the set of the names.
func MakeZones(names ...string) Zones {
	if len(names) == 0 {
		return Zones{}
	}
	return Zones{unique.Make("\x00" + strings.Join(names, "\x00") + "\x00")}
}

// Empty tells whether there is no name in it.
func (z Zones) Empty() bool { return z.h == noZones }

// Has tells whether a zone is in it.
func (z Zones) Has(zone string) bool {
	return !z.Empty() && zone != "" && strings.Contains(z.h.Value(), "\x00"+zone+"\x00")
}

// Front is where clients reach a Service port: a virtual address, or a port of the node if Addr is the zero Addr.
type Front struct {
	Addr  netip.Addr
	Proto Proto
	Port  uint16
}
