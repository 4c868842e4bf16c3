// Package api is the proxy's boundary: it turns Services, EndpointSlices and the Node into the proxy's own nouns and
// serves health and metrics. It decides nothing about packets.
package api

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/proxy/state"
)

// labelProxyName on a Service says that another proxy serves it. Source: KEP-2447.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

func protoOf(p corev1.Protocol) (state.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return state.TCP, true
	case corev1.ProtocolUDP:
		return state.UDP, true
	case corev1.ProtocolSCTP:
		return state.SCTP, true
	}
	return 0, false
}

func portOf(n int32) (uint16, bool) { return uint16(n), n > 0 && n < 1<<16 }

func addrOf(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil && a.Zone() == ""
}

// Service trims a Service to what the dataplane needs; nil if there is nothing to serve: headless, ExternalName, or
// another proxy's.
func Service(in *corev1.Service) *state.Service {
	if _, other := in.Labels[labelProxyName]; other || in.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	ips := in.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{in.Spec.ClusterIP}
	}
	out := &state.Service{Name: state.Name{Namespace: in.Namespace, Name: in.Name}}
	for _, s := range ips {
		if a, ok := addrOf(s); ok { // "" and "None" are not addresses
			out.ClusterIPs = append(out.ClusterIPs, a)
		}
	}
	if len(out.ClusterIPs) == 0 {
		return nil
	}
	type front struct {
		proto state.Proto
		port  uint16
	}
	seen := map[front]bool{}
	for _, p := range in.Spec.Ports {
		proto, ok1 := protoOf(p.Protocol)
		port, ok2 := portOf(p.Port)
		if !ok1 || !ok2 || seen[front{proto, port}] { // the API server refuses such ports; a second one must not hide the first
			continue
		}
		seen[front{proto, port}] = true
		sp := state.ServicePort{Name: strings.Clone(p.Name), Proto: proto, Port: port}
		if n, ok := portOf(p.NodePort); ok && hasNodePorts(in) {
			sp.NodePort = n
		}
		out.Ports = append(out.Ports, sp)
	}
	return out
}

func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// Slice trims an EndpointSlice; nil if it cannot carry traffic: no Service, or names instead of addresses.
func Slice(in *discoveryv1.EndpointSlice, node string) *state.Slice {
	svc := in.Labels[discoveryv1.LabelServiceName]
	if svc == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &state.Slice{
		Name:    state.Name{Namespace: in.Namespace, Name: in.Name},
		Service: state.Name{Namespace: in.Namespace, Name: strings.Clone(svc)},
	}
	for _, p := range in.Ports {
		if p.Name == nil || p.Port == nil {
			continue
		}
		proto := state.TCP
		ok := true
		if p.Protocol != nil {
			proto, ok = protoOf(*p.Protocol)
		}
		if n, valid := portOf(*p.Port); ok && valid {
			out.Ports = append(out.Ports, state.SlicePort{Name: strings.Clone(*p.Name), Proto: proto, Port: n})
		}
	}
	fam := state.V4
	if in.AddressType == discoveryv1.AddressTypeIPv6 {
		fam = state.V6
	}
	out.Endpoints = make([]state.Endpoint, 0, len(in.Endpoints))
	for _, e := range in.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		a, ok := addrOf(e.Addresses[0]) // the API: all addresses are of one endpoint, consumers use the first
		if !ok || state.Of(a) != fam {
			continue
		}
		// Source: discovery/v1 EndpointConditions: unknown ready and serving mean true, unknown terminating false.
		yes := func(p *bool) bool { return p == nil || *p }
		c := e.Conditions
		out.Endpoints = append(out.Endpoints, state.Endpoint{
			Addr: a, Ready: yes(c.Ready), Serving: yes(c.Serving), Terminating: c.Terminating != nil && *c.Terminating,
			Local: e.NodeName != nil && *e.NodeName == node,
		})
	}
	return out
}

// NodeIPs returns the addresses on which "primary" node ports answer: one a family, internal before external.
func NodeIPs(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	have := map[state.Family]bool{}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range n.Status.Addresses {
			ip, ok := addrOf(a.Address)
			if ok && a.Type == kind && !have[state.Of(ip)] {
				have[state.Of(ip)] = true
				out = append(out, ip)
			}
		}
	}
	return out
}

// taintLeaving tells load balancers to stop sending: the autoscaler is about to delete the node.
const taintLeaving = "ToBeDeletedByClusterAutoscaler"

// Eligible tells whether load balancers may send to the node. Source: KEP-3836.
func Eligible(n *corev1.Node) bool {
	if n.DeletionTimestamp != nil {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Key == taintLeaving {
			return false
		}
	}
	return true
}
