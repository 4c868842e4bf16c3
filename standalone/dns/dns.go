// Package dns answers names of Services for the pods of a standalone node, straight from the node's objects, so an
// answer is never older than the API. Other names go to the machine's own resolvers, if it has any.
// Source: Kubernetes DNS-based service discovery, schema 1.1.0.
package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"worknode/standalone/store"
)

// ttl is short: a Service that is made anew may get another address.
const ttl = 5

// forwardTimeout bounds the wait for one of the machine's resolvers.
const forwardTimeout = 2 * time.Second

// Server answers for one zone.
type Server struct {
	objects   *store.Store
	zone      string   // with the trailing dot
	resolvers []string // host:port, asked in order for names outside the zone
}

// New returns a server for domain (such as "cluster.local"). resolvers may be empty: then only the zone is known.
func New(objects *store.Store, domain string, resolvers []string) *Server {
	return &Server{objects: objects, zone: dns.CanonicalName(domain), resolvers: resolvers}
}

// Serve answers on both sockets until ctx ends, and closes them.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) {
	for _, server := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		context.AfterFunc(ctx, func() { _ = server.Shutdown() })
		go func() { // ends with its socket
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				slog.Error("DNS stopped", "err", err)
			}
		}()
	}
	<-ctx.Done()
	udp.Close()
	tcp.Close()
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	answer := new(dns.Msg)
	switch {
	case len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery:
		answer.SetRcode(q, dns.RcodeNotImplemented)
	case dns.IsSubDomain(s.zone, dns.CanonicalName(q.Question[0].Name)):
		s.own(answer, q)
	default:
		if ptr, ok := s.reverse(q); ok {
			answer = ptr
		} else {
			answer = s.forward(q, w.LocalAddr().Network())
		}
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = int(opt.UDPSize())
	}
	if w.LocalAddr().Network() == "tcp" {
		size = dns.MaxMsgSize
	}
	answer.Truncate(size)
	if err := w.WriteMsg(answer); err != nil {
		slog.Debug("DNS answer not sent", "to", w.RemoteAddr(), "err", err)
	}
}

// own answers from the zone: NXDOMAIN for names that are not there, an empty answer for types that they do not have.
func (s *Server) own(answer, q *dns.Msg) {
	answer.SetReply(q)
	answer.Authoritative = true
	ask := q.Question[0]
	name := dns.CanonicalName(ask.Name)
	records, known := s.lookup(name, strings.TrimSuffix(strings.TrimSuffix(name, s.zone), "."))
	for _, r := range records {
		if r.Header().Rrtype == ask.Qtype || r.Header().Rrtype == dns.TypeCNAME || ask.Qtype == dns.TypeANY {
			r.Header().Name = ask.Name // the asker's own spelling
			answer.Answer = append(answer.Answer, r)
		}
	}
	if !known {
		answer.Rcode = dns.RcodeNameError
	}
	if len(answer.Answer) == 0 {
		answer.Ns = append(answer.Ns, &dns.SOA{
			Hdr: header(s.zone, dns.TypeSOA), Ns: "ns.dns." + s.zone, Mbox: "hostmaster." + s.zone,
			Serial: uint32(s.objects.RV()), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
		})
	}
}

// lookup returns all records of a name; rest is the name without the zone. known is false if there is no such name.
func (s *Server) lookup(name, rest string) (records []dns.RR, known bool) {
	parts := strings.Split(rest, ".")
	n := len(parts)
	switch {
	case rest == "" || rest == "svc":
		return nil, true
	case rest == "dns-version":
		return []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{"1.1.0"}}}, true
	case parts[n-1] != "svc" || n > 5:
		return nil, false
	case n == 2:
		return nil, s.objects.Get(store.Namespaces, "", parts[0]) != nil
	}
	namespace, service := parts[n-2], parts[n-3]
	item := s.objects.Get(store.Services, namespace, service)
	if item == nil {
		return nil, false
	}
	svc := item.Object.(*v1.Service)
	switch n {
	case 3:
		return s.service(name, svc)
	case 4:
		return s.endpoint(name, svc, parts[0])
	}
	return s.ports(name, svc, strings.TrimPrefix(parts[0], "_"), strings.TrimPrefix(parts[1], "_"))
}

func (s *Server) service(name string, svc *v1.Service) ([]dns.RR, bool) {
	if svc.Spec.Type == v1.ServiceTypeExternalName {
		return []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: dns.Fqdn(svc.Spec.ExternalName)}}, true
	}
	if svc.Spec.ClusterIP != v1.ClusterIPNone {
		return addresses(name, append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...)), true
	}
	var all []string
	s.eachEndpoint(svc, func(e *discoveryv1.Endpoint, _ *discoveryv1.EndpointSlice) { all = append(all, e.Addresses[0]) })
	return addresses(name, all), len(all) > 0
}

// endpoint answers HOST.SERVICE.NAMESPACE.svc of a headless Service.
func (s *Server) endpoint(name string, svc *v1.Service, host string) ([]dns.RR, bool) {
	if svc.Spec.ClusterIP != v1.ClusterIPNone {
		return nil, false
	}
	var all []string
	s.eachEndpoint(svc, func(e *discoveryv1.Endpoint, _ *discoveryv1.EndpointSlice) {
		if hostOf(e) == host {
			all = append(all, e.Addresses[0])
		}
	})
	return addresses(name, all), len(all) > 0
}

// ports answers _PORT._PROTOCOL.SERVICE.NAMESPACE.svc with SRV records.
func (s *Server) ports(name string, svc *v1.Service, port, protocol string) (records []dns.RR, known bool) {
	base := svc.Name + "." + svc.Namespace + ".svc." + s.zone
	srv := func(number int32, target string) {
		records = append(records, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: uint16(number), Target: target})
	}
	if svc.Spec.ClusterIP != v1.ClusterIPNone {
		for _, p := range svc.Spec.Ports {
			if p.Name == port && strings.EqualFold(string(p.Protocol), protocol) {
				srv(p.Port, base)
			}
		}
		return records, len(records) > 0
	}
	s.eachEndpoint(svc, func(e *discoveryv1.Endpoint, slice *discoveryv1.EndpointSlice) {
		for _, p := range slice.Ports {
			if p.Name != nil && *p.Name == port && p.Port != nil && p.Protocol != nil && strings.EqualFold(string(*p.Protocol), protocol) {
				srv(*p.Port, hostOf(e)+"."+base)
			}
		}
	})
	return records, len(records) > 0
}

// eachEndpoint visits the endpoints of a headless Service that a client may use.
func (s *Server) eachEndpoint(svc *v1.Service, visit func(*discoveryv1.Endpoint, *discoveryv1.EndpointSlice)) {
	items, _ := s.objects.List(store.EndpointSlices, svc.Namespace)
	of := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name})
	for _, item := range items {
		slice := item.Object.(*discoveryv1.EndpointSlice)
		if !of.Matches(labels.Set(slice.Labels)) {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if ready := e.Conditions.Ready == nil || *e.Conditions.Ready; len(e.Addresses) > 0 && (ready || svc.Spec.PublishNotReadyAddresses) {
				visit(e, slice)
			}
		}
	}
}

// hostOf is the name of an endpoint below its Service: its own, or its address with dashes.
func hostOf(e *discoveryv1.Endpoint) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return *e.Hostname
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(e.Addresses[0])
}

func addresses(name string, all []string) (records []dns.RR) {
	seen := map[netip.Addr]bool{}
	for _, text := range all {
		ip, err := netip.ParseAddr(text)
		if err != nil || seen[ip] {
			continue
		}
		seen[ip] = true
		if ip.Is4() {
			records = append(records, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		} else {
			records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return records
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// reverse answers PTR for the address of a Service; ok is false if it is none of ours.
func (s *Server) reverse(q *dns.Msg) (answer *dns.Msg, ok bool) {
	ask := q.Question[0]
	if ask.Qtype != dns.TypePTR {
		return nil, false
	}
	items, _ := s.objects.List(store.Services, "")
	for _, item := range items {
		svc := item.Object.(*v1.Service)
		for _, ip := range svc.Spec.ClusterIPs {
			if name, err := dns.ReverseAddr(ip); err == nil && strings.EqualFold(name, ask.Name) {
				answer = new(dns.Msg).SetReply(q)
				answer.Answer = []dns.RR{&dns.PTR{Hdr: header(ask.Name, dns.TypePTR), Ptr: fmt.Sprintf("%s.%s.svc.%s", svc.Name, svc.Namespace, s.zone)}}
				return answer, true
			}
		}
	}
	return nil, false
}

// forward asks the machine's resolvers one after the other.
func (s *Server) forward(q *dns.Msg, network string) *dns.Msg {
	client := &dns.Client{Net: network, Timeout: forwardTimeout}
	for _, resolver := range s.resolvers {
		if answer, _, err := client.Exchange(q, resolver); err == nil {
			return answer
		}
	}
	code := dns.RcodeServerFailure
	if len(s.resolvers) == 0 {
		code = dns.RcodeNameError // an island: no name outside exists, and saying so at once spares everybody a time-out
	}
	return new(dns.Msg).SetRcode(q, code)
}
