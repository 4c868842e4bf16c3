package api

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"worknode/standalone/store"
)

const (
	nodePortFirst = 30000
	nodePortLast  = 32767
	// The low end of each range is left to those who name an address or port themselves, as upstream does.
	nodePortGiven = 86
)

// allocate gives a service its addresses and node ports. The caller stores the service and then calls unlock, so that
// nobody chooses the same meanwhile. Choices begin at a place that follows from the name: a service that is made again
// gets what it had, unless that is taken. For other kinds it does nothing.
func (s *Server) allocate(obj, was store.Object) (unlock func(), err error) {
	svc, is := obj.(*corev1.Service)
	if !is {
		return func() {}, nil
	}
	s.alloc.Lock()
	used := s.usage(svc)
	if err = s.allocateIP(svc, used); err == nil {
		err = s.allocatePorts(svc, used)
	}
	if err != nil {
		s.alloc.Unlock()
		return nil, err
	}
	return s.alloc.Unlock, nil
}

type portKey struct {
	protocol corev1.Protocol
	port     int32
}

type usage struct {
	ips   map[string]bool
	ports map[portKey]bool
}

// usage collects what all other services have.
func (s *Server) usage(except *corev1.Service) usage {
	u := usage{map[string]bool{}, map[portKey]bool{}}
	items, _ := s.Store.List(store.Services, "")
	for _, item := range items {
		svc := item.Object.(*corev1.Service)
		if svc.Namespace == except.Namespace && svc.Name == except.Name {
			continue
		}
		if svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone {
			u.ips[svc.Spec.ClusterIP] = true
		}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				u.ports[portKey{p.Protocol, p.NodePort}] = true
			}
		}
	}
	return u
}

func (s *Server) allocateIP(svc *corev1.Service, used usage) error {
	spec, path := &svc.Spec, field.NewPath("spec", "clusterIPs")
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.ClusterIP, spec.ClusterIPs, spec.IPFamilies, spec.IPFamilyPolicy = "", nil, nil, nil
		return nil
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIP == "" {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	invalid := func(value any, why string) error {
		return apierrors.NewInvalid(store.Services.GVK().GroupKind(), svc.Name, field.ErrorList{field.Invalid(path, value, why)})
	}
	switch {
	case spec.ClusterIP == "":
		ip, ok := s.freeIP(svc, used)
		if !ok {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: range is full"))
		}
		spec.ClusterIP = ip.String()
	case spec.ClusterIP != corev1.ClusterIPNone:
		ip, err := netip.ParseAddr(spec.ClusterIP)
		if err != nil || !s.ServiceCIDR.Contains(ip) {
			return invalid([]string{spec.ClusterIP}, fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", spec.ClusterIP, spec.ClusterIP, s.ServiceCIDR.Masked()))
		}
		if used.ips[spec.ClusterIP] {
			return invalid([]string{spec.ClusterIP}, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", spec.ClusterIP))
		}
	}
	if len(spec.ClusterIPs) > 1 {
		return invalid(spec.ClusterIPs, "may only hold one address: this node has one family of service addresses")
	}
	spec.ClusterIPs = []string{spec.ClusterIP}
	family := corev1.IPv4Protocol
	if s.ServiceCIDR.Addr().Is6() {
		family = corev1.IPv6Protocol
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{family}
	}
	if spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		spec.IPFamilyPolicy = &single
	}
	return nil
}

// freeIP looks for an address from the service's own place on, first above the part for given addresses, then in it.
func (s *Server) freeIP(svc *corev1.Service, used usage) (netip.Addr, bool) {
	bits := s.ServiceCIDR.Addr().BitLen() - s.ServiceCIDR.Bits()
	size := uint64(1) << min(bits, 20) // 1 M services are enough of a wider range
	if size < 4 {
		return netip.Addr{}, false
	}
	first, last := uint64(2), size-2 // not the network, not the API's, not the broadcast address
	given := min(max(16, size/16), 256)
	if given >= last {
		given = first
	}
	for _, band := range [][2]uint64{{given, last}, {first, given - 1}} {
		n := band[1] - band[0] + 1
		if band[1] < band[0] {
			continue
		}
		start := place(svc) % n
		for i := range n {
			ip := offset(s.ServiceCIDR.Masked().Addr(), band[0]+(start+i)%n)
			if !used.ips[ip.String()] {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

// place is where the search for a service's address begins.
func place(svc *corev1.Service) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(svc.Namespace + "/" + svc.Name))
	return h.Sum64() >> 16
}

// offset is the n-th address behind a.
func offset(a netip.Addr, n uint64) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	return netip.AddrFrom16(b)
}

func (s *Server) allocatePorts(svc *corev1.Service, used usage) error {
	outside := svc.Spec.Type == corev1.ServiceTypeNodePort ||
		svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts)
	if !outside {
		return nil
	}
	path := field.NewPath("spec", "ports")
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		invalid := func(why string) error {
			return apierrors.NewInvalid(store.Services.GVK().GroupKind(), svc.Name,
				field.ErrorList{field.Invalid(path.Index(i).Child("nodePort"), p.NodePort, why)})
		}
		if p.NodePort == 0 {
			port, ok := freePort(svc, i, p.Protocol, used)
			if !ok {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: range is full"))
			}
			p.NodePort = port
		}
		if p.NodePort < nodePortFirst || p.NodePort > nodePortLast {
			return invalid(fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", nodePortFirst, nodePortLast))
		}
		if used.ports[portKey{p.Protocol, p.NodePort}] {
			return invalid("provided port is already allocated")
		}
		used.ports[portKey{p.Protocol, p.NodePort}] = true
	}
	return nil
}

func freePort(svc *corev1.Service, index int, protocol corev1.Protocol, used usage) (int32, bool) {
	named := func(port int32) bool { // another port of the same service asks for it
		for _, p := range svc.Spec.Ports {
			if p.NodePort == port && p.Protocol == protocol {
				return true
			}
		}
		return false
	}
	for _, band := range [][2]int32{{nodePortFirst + nodePortGiven, nodePortLast}, {nodePortFirst, nodePortFirst + nodePortGiven - 1}} {
		n := band[1] - band[0] + 1
		start := int32((place(svc) + uint64(index)*7) % uint64(n))
		for i := range n {
			port := band[0] + (start+i)%n
			if !used.ports[portKey{protocol, port}] && !named(port) {
				return port, true
			}
		}
	}
	return 0, false
}

// keepAddresses carries a service's addresses and node ports over to a successor that does not name them.
func keepAddresses(svc, old *corev1.Service) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = old.Spec.ClusterIP, old.Spec.ClusterIPs
	}
	if len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	if len(svc.Spec.IPFamilies) == 0 {
		svc.Spec.IPFamilies = old.Spec.IPFamilies
	}
	if svc.Spec.IPFamilyPolicy == nil {
		svc.Spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
	}
	if svc.Spec.Type == corev1.ServiceTypeClusterIP { // node ports end with the type that had them
		if old.Spec.Type == corev1.ServiceTypeClusterIP {
			return
		}
		if svc.Spec.ExternalTrafficPolicy == old.Spec.ExternalTrafficPolicy && len(svc.Spec.ExternalIPs) == 0 {
			svc.Spec.ExternalTrafficPolicy = ""
		}
		for i := range svc.Spec.Ports {
			for _, p := range old.Spec.Ports {
				if svc.Spec.Ports[i].NodePort == p.NodePort {
					svc.Spec.Ports[i].NodePort = 0
				}
			}
		}
		return
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		for _, q := range old.Spec.Ports {
			if q.Port == p.Port && (q.Protocol == p.Protocol || p.Protocol == "" && q.Protocol == corev1.ProtocolTCP) {
				p.NodePort = q.NodePort
			}
		}
	}
}
