package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/proxy/state"
)

// labelProxyName on a Service says that another proxy serves it. Source: KEP-2447.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// The API server has checked all objects, but it is not always the one that wrote them, nor of our version: what makes no
// sense to us is left out and reported, and never taken as far as the kernel.

// intern shares the strings that many objects have: namespaces, names of ports.
func intern(s string) string { return unique.Make(s).Value() }

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
	if err != nil {
		a, err = netip.ParseAddr(decimal(s))
	}
	return a.Unmap(), err == nil && a.Zone() == ""
}

// decimal takes leading zeros off the parts of an IPv4 address: objects from before Kubernetes 1.33 may have them, and
// they never meant octal numbers. Source: Kubernetes, ParseIPSloppy.
func decimal(s string) string {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if p = strings.TrimLeft(p, "0"); p == "" {
			p = "0"
		}
		parts[i] = p
	}
	return strings.Join(parts, ".")
}

// usableAddr tells whether an address may be a Service's or an endpoint's. Loopback and link-local ones mean another
// machine on every node. Source: Kubernetes, ValidateEndpointIP.
func usableAddr(s string) (netip.Addr, bool) {
	a, ok := addrOf(s)
	return a, ok && !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

func addrs(list []string, bad *complaints) (out []netip.Addr) {
	for _, s := range list {
		if a, ok := usableAddr(s); ok {
			out = append(out, a)
		} else if s != "" && s != corev1.ClusterIPNone {
			bad.add("address %q", s)
		}
	}
	return out
}

// prefixes reads ranges; validation upstream lets blanks pass.
func prefixes(list []string) (out []netip.Prefix) {
	for _, s := range list {
		addr, bits, _ := strings.Cut(strings.TrimSpace(s), "/")
		a, ok := addrOf(addr)
		n, err := strconv.Atoi(bits)
		if p := netip.PrefixFrom(a, n).Masked(); ok && err == nil && p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// complaints gathers what an object says that makes no sense; the first few are told.
type complaints struct {
	first []string
	more  int
}

func (c *complaints) add(format string, args ...any) {
	if len(c.first) < 3 {
		c.first = append(c.first, fmt.Sprintf(format, args...))
	} else {
		c.more++
	}
}

func (c *complaints) trouble(kind, namespace, name string) *state.Trouble {
	t := &state.Trouble{Kind: kind, Object: state.Name{Namespace: namespace, Name: name}}
	if len(c.first) > 0 {
		t.Reason, t.Message = "Invalid"+kind, "left out: "+strings.Join(c.first, ", ")
		if c.more > 0 {
			t.Message += fmt.Sprintf(" and %d more", c.more)
		}
	}
	return t
}

// Service trims a Service to what the dataplane needs; nil if there is nothing to serve: headless, ExternalName, or
// another proxy's.
func Service(in *corev1.Service) (*state.Service, *state.Trouble) {
	if _, other := in.Labels[labelProxyName]; other || in.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	var bad complaints
	ips := in.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{in.Spec.ClusterIP}
	}
	out := &state.Service{Name: state.Name{Namespace: intern(in.Namespace), Name: in.Name}, ClusterIPs: addrs(ips, &bad)}
	if len(out.ClusterIPs) == 0 {
		return nil, nil
	}
	out.ExternalIPs = addrs(in.Spec.ExternalIPs, &bad)
	for _, i := range in.Status.LoadBalancer.Ingress {
		// A load balancer of mode Proxy sends to node ports or endpoints, and must be reached itself (KEP-1860).
		if i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP {
			out.Ingress = append(out.Ingress, addrs([]string{i.IP}, &bad)...)
		}
	}
	if len(out.Ingress) > 0 {
		out.Sources = sources(in.Spec.LoadBalancerSourceRanges, &bad)
	}
	out.InternalLocal = in.Spec.InternalTrafficPolicy != nil && *in.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	// Source: Kubernetes, ExternallyAccessible and ExternalPolicyLocal.
	reached := hasNodePorts(in) || in.Spec.Type == corev1.ServiceTypeClusterIP && len(in.Spec.ExternalIPs) > 0
	out.ExternalLocal = reached && in.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if in.Spec.Type == corev1.ServiceTypeLoadBalancer && out.ExternalLocal {
		out.HealthPort, _ = portOf(in.Spec.HealthCheckNodePort)
	}
	out.Sticky = sticky(&in.Spec)
	out.Ports = servicePorts(in, &bad)
	return out, bad.trouble("Service", in.Namespace, in.Name)
}

// sources keeps a range that is none as a range of nobody: a mistake must not open the door.
func sources(list []string, bad *complaints) (out []netip.Prefix) {
	out = prefixes(list)
	if len(out) < len(list) {
		bad.add("a range of %q", list)
		if len(out) == 0 {
			out = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("::/128")}
		}
	}
	return out
}

const (
	stickyDefault = 3 * time.Hour
	stickyMost    = 24 * time.Hour
)

// sticky is how long affinity lasts. Source: Kubernetes, spec.sessionAffinityConfig.clientIP.timeoutSeconds.
func sticky(spec *corev1.ServiceSpec) time.Duration {
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	c := spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return stickyDefault
	}
	return min(max(time.Duration(*c.ClientIP.TimeoutSeconds)*time.Second, time.Second), stickyMost)
}

func servicePorts(in *corev1.Service, bad *complaints) (out []state.ServicePort) {
	for _, p := range in.Spec.Ports {
		proto, ok1 := protoOf(p.Protocol)
		port, ok2 := portOf(p.Port)
		// A second port must not hide the first, and both name and number with protocol tell ports apart.
		twice := slices.ContainsFunc(out, func(o state.ServicePort) bool {
			return o.Proto == proto && (o.Port == port || o.Name == p.Name)
		})
		if !ok1 || !ok2 || twice {
			bad.add("port %d/%s %q", p.Port, p.Protocol, p.Name)
			continue
		}
		sp := state.ServicePort{Name: intern(p.Name), Proto: proto, Port: port}
		if n, ok := portOf(p.NodePort); ok && hasNodePorts(in) {
			sp.NodePort = n
		}
		out = append(out, sp)
	}
	return out
}

func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// Slice trims an EndpointSlice; nil if it cannot carry traffic: no Service, or names instead of addresses.
func Slice(in *discoveryv1.EndpointSlice, node string) (*state.Slice, *state.Trouble) {
	svc := in.Labels[discoveryv1.LabelServiceName]
	if svc == "" || in.AddressType != discoveryv1.AddressTypeIPv4 && in.AddressType != discoveryv1.AddressTypeIPv6 {
		return nil, nil
	}
	var bad complaints
	out := &state.Slice{
		Name:    state.Name{Namespace: intern(in.Namespace), Name: in.Name},
		Service: state.Name{Namespace: intern(in.Namespace), Name: svc},
	}
	for _, p := range in.Ports {
		if p.Name == nil || p.Port == nil {
			continue // any name, all ports: for other users of slices
		}
		proto := state.TCP
		ok := true
		if p.Protocol != nil {
			proto, ok = protoOf(*p.Protocol)
		}
		n, valid := portOf(*p.Port)
		if !ok || !valid {
			if *p.Port != 0 { // zero is how one says nothing
				bad.add("port %d", *p.Port)
			}
			continue
		}
		out.Ports = append(out.Ports, state.SlicePort{Name: intern(*p.Name), Proto: proto, Port: n})
	}
	fam := state.V4
	if in.AddressType == discoveryv1.AddressTypeIPv6 {
		fam = state.V6
	}
	out.Endpoints = make([]state.Endpoint, 0, len(in.Endpoints))
	for i := range in.Endpoints {
		e := &in.Endpoints[i]
		if len(e.Addresses) == 0 {
			bad.add("an endpoint without an address")
			continue
		}
		a, ok := usableAddr(e.Addresses[0]) // the API: all addresses are of one endpoint, consumers use the first
		if !ok || state.Of(a) != fam {
			bad.add("endpoint %q among %s addresses", e.Addresses[0], in.AddressType)
			continue
		}
		out.Endpoints = append(out.Endpoints, endpoint(e, a, node))
	}
	return out, bad.trouble("EndpointSlice", in.Namespace, in.Name)
}

// endpoint applies the API's defaults. Source: discovery/v1 EndpointConditions: unknown ready and serving mean true,
// unknown terminating false.
func endpoint(e *discoveryv1.Endpoint, a netip.Addr, node string) state.Endpoint {
	yes := func(p *bool) bool { return p == nil || *p }
	out := state.Endpoint{
		Addr: a, Ready: yes(e.Conditions.Ready), Serving: yes(e.Conditions.Serving),
		Terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
		Local:       node != "" && e.NodeName != nil && *e.NodeName == node,
	}
	if e.Hints == nil {
		return out
	}
	zones := make([]string, 0, 4)
	for _, z := range e.Hints.ForZones {
		zones = append(zones, z.Name)
	}
	out.Zones = state.MakeZones(zones...)
	for _, n := range e.Hints.ForNodes {
		out.NodeHint = true
		out.ForThisNode = out.ForThisNode || node != "" && n.Name == node
	}
	return out
}

// Node trims a Node.
func Node(in *corev1.Node) *state.Node {
	cidrs := in.Spec.PodCIDRs
	if len(cidrs) == 0 && in.Spec.PodCIDR != "" {
		cidrs = []string{in.Spec.PodCIDR}
	}
	return &state.Node{
		Exists: true, Eligible: Eligible(in), Zone: in.Labels[corev1.LabelTopologyZone],
		IPs: nodeIPs(in), PodCIDRs: prefixes(cidrs),
	}
}

// nodeIPs returns the addresses on which "primary" node ports answer: one a family, internal before external.
func nodeIPs(n *corev1.Node) []netip.Addr {
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
