package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/kube"
)

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "default"}
}

func put(z *Zone, all ...runtime.Object) {
	for _, o := range all {
		z.Take(kube.Delta{Op: kube.Put, Object: o})
	}
}

func svc(name string, spec corev1.ServiceSpec) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta(name), Spec: spec}
}

func sliceOf(name, of string, ports []discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	m := meta(name)
	m.Labels = map[string]string{discoveryv1.LabelServiceName: of}
	return &discoveryv1.EndpointSlice{ObjectMeta: m, Endpoints: endpoints, Ports: ports}
}

func at[T any](v T) *T { return &v }

func ep(addr, host string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if host != "" {
		e.Hostname = &host
	}
	return e
}

// world is a zone with one of everything.
func world() *Zone {
	z := NewZone("cluster.local")
	web := []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "http", Port: 80, Protocol: corev1.ProtocolUDP}, {Port: 9, Protocol: corev1.ProtocolTCP}}
	ports := []discoveryv1.EndpointPort{{Name: at("http"), Protocol: at(corev1.ProtocolTCP), Port: at(int32(8080))}, {Name: at("admin"), Port: at(int32(9090))}}
	none := corev1.ServiceSpec{ClusterIP: "None"}
	unready := none
	unready.PublishNotReadyAddresses = true
	put(z, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}},
		svc("web", corev1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7", "fd00:96::7"}, Ports: web}),
		svc("old", corev1.ServiceSpec{ClusterIP: "10.96.0.8"}),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10"}},
		svc("db", none), svc("quiet", none), svc("all", unready),
		svc("away", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "WWW.example.org"}),
		svc("alias", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.default.svc.cluster.local"}),
		svc("round", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "round.default.svc.cluster.local"}),
		svc("lost", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "nobody.default.svc.cluster.local"}),
		sliceOf("db-1", "db", ports, ep("10.88.0.5", "My-Pet", true), ep("10.88.0.6", "", false), ep("10.88.0.7", "", true)),
		sliceOf("db-2", "db", ports, ep("fd00:88::5", "my-pet", true), ep("10.88.0.9", "my-pet", true)),
		sliceOf("quiet-1", "quiet", ports, ep("10.88.0.20", "q", false)),
		sliceOf("all-1", "all", ports, ep("10.88.0.30", "a", false)),
	)
	for range 3 {
		z.Take(kube.Delta{Op: kube.Synced})
	}
	return z
}

// serve runs a server on loopback.
func serve(t *testing.T, z *Zone, resolvConf string) (udp, tcp string) {
	t.Helper()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	s := NewServer(z, resolvConf)
	go func() { _ = s.Serve(ctx, u, l); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	return u.LocalAddr().String(), l.Addr().String()
}

func ask(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	answer, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}).Exchange(q, addr)
	if err != nil {
		t.Fatalf("%v over %s: %v", q.Question, network, err)
	}
	return answer
}

// right are the right-hand sides of records, sorted.
func right(all []dns.RR) (out []string) {
	for _, r := range all {
		if r.Header().Rrtype != dns.TypeOPT {
			out = append(out, r.String()[len(r.Header().String()):])
		}
	}
	slices.Sort(out)
	return out
}

// The tables follow the sections of the specification. A negative answer carries the zone's SOA; an answer does not.
func TestSpecification(t *testing.T) {
	udp, tcp := serve(t, world(), "")
	const zone, ok, nx = ".cluster.local.", dns.RcodeSuccess, dns.RcodeNameError
	for _, c := range []struct {
		section, name string
		kind          uint16
		rcode         int
		want          string // right-hand sides, separated by |
	}{
		{"2.2", "dns-version" + zone, dns.TypeTXT, ok, `"1.1.0"`},
		{"2.2", "dns-version" + zone, dns.TypeA, ok, ""},
		{"2.3.1", "web.default.svc" + zone, dns.TypeA, ok, "10.96.0.7"},
		{"2.3.1", "WEB.Default.SVC.Cluster.LOCAL.", dns.TypeA, ok, "10.96.0.7"},
		{"2.3.1", "web.default.svc" + zone, dns.TypeAAAA, ok, "fd00:96::7"},
		{"2.3.1", "old.default.svc" + zone, dns.TypeA, ok, "10.96.0.8"},
		{"2.3.1", "old.default.svc" + zone, dns.TypeAAAA, ok, ""},
		{"2.3.1", "web.default.svc" + zone, dns.TypeMX, ok, ""},
		{"2.3.1", "web.default.svc" + zone, dns.TypeANY, ok, "10.96.0.7|fd00:96::7"},
		{"2.3.1", "nobody.default.svc" + zone, dns.TypeA, nx, ""},
		{"2.3.1", "x.web.default.svc" + zone, dns.TypeA, nx, ""},
		{"2.3.2", "_http._tcp.web.default.svc" + zone, dns.TypeSRV, ok, "0 100 80 web.default.svc.cluster.local."},
		{"2.3.2", "_HTTP._UDP.web.default.svc" + zone, dns.TypeSRV, ok, "0 100 80 web.default.svc.cluster.local."},
		{"2.3.2", "_http._tcp.web.default.svc" + zone, dns.TypeA, ok, ""},
		{"2.3.2", "_http._sctp.web.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.2", "_https._tcp.web.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.2", "__._tcp.web.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.2", "_._tcp.web.default.svc" + zone, dns.TypeSRV, nx, ""}, // the port without a name has no record
		{"2.3.2", "http._tcp.web.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.2", "_http._tcp.old.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.2", "_tcp.web.default.svc" + zone, dns.TypeSRV, ok, ""}, // there are names below it
		{"2.3.2", "_tcp.old.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.3.3", "7.0.96.10.in-addr.arpa.", dns.TypePTR, ok, "web.default.svc.cluster.local."},
		{"2.3.3", "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.D.F.ip6.arpa.", dns.TypePTR, ok, "web.default.svc.cluster.local."},
		{"2.3.3", "99.0.96.10.in-addr.arpa.", dns.TypePTR, nx, ""},
		{"2.4.1", "db.default.svc" + zone, dns.TypeA, ok, "10.88.0.5|10.88.0.7|10.88.0.9"},
		{"2.4.1", "db.default.svc" + zone, dns.TypeAAAA, ok, "fd00:88::5"},
		{"2.4.1", "my-pet.db.default.svc" + zone, dns.TypeA, ok, "10.88.0.5|10.88.0.9"},
		{"2.4.1", "My-Pet.db.default.svc" + zone, dns.TypeAAAA, ok, "fd00:88::5"},
		{"2.4.1", "10-88-0-7.db.default.svc" + zone, dns.TypeA, ok, "10.88.0.7"},
		{"2.4.1", "10-88-0-6.db.default.svc" + zone, dns.TypeA, nx, ""},
		{"2.4.1", "10-88-0-5.db.default.svc" + zone, dns.TypeA, nx, ""}, // it has a hostname
		{"2.4.1", "quiet.default.svc" + zone, dns.TypeA, nx, ""},        // no ready endpoint
		{"2.4.1", "all.default.svc" + zone, dns.TypeA, ok, "10.88.0.30"},
		{"2.4.1", "a.all.default.svc" + zone, dns.TypeA, ok, "10.88.0.30"},
		{"2.4.1", "my-pet.web.default.svc" + zone, dns.TypeA, nx, ""},
		{"2.4.2", "_http._tcp.db.default.svc" + zone, dns.TypeSRV, ok, "0 100 8080 10-88-0-7.db.default.svc.cluster.local.|0 100 8080 my-pet.db.default.svc.cluster.local."},
		{"2.4.2", "_admin._tcp.db.default.svc" + zone, dns.TypeSRV, ok, "0 100 9090 10-88-0-7.db.default.svc.cluster.local.|0 100 9090 my-pet.db.default.svc.cluster.local."},
		{"2.4.2", "_http._tcp.quiet.default.svc" + zone, dns.TypeSRV, nx, ""},
		{"2.4.3", "5.0.88.10.in-addr.arpa.", dns.TypePTR, ok, "my-pet.db.default.svc.cluster.local."},
		{"2.4.3", "7.0.88.10.in-addr.arpa.", dns.TypePTR, nx, ""}, // no hostname
		{"2.4.3", "20.0.88.10.in-addr.arpa.", dns.TypePTR, nx, ""},
		{"2.4.3", "30.0.88.10.in-addr.arpa.", dns.TypePTR, ok, "a.all.default.svc.cluster.local."},
		{"2.5", "away.default.svc" + zone, dns.TypeA, ok, "www.example.org."},
		{"2.5", "away.default.svc" + zone, dns.TypeCNAME, ok, "www.example.org."},
		{"2.5", "alias.default.svc" + zone, dns.TypeA, ok, "10.96.0.7|web.default.svc.cluster.local."},
		{"2.5", "x.away.default.svc" + zone, dns.TypeA, nx, ""},
		{"2.5", "lost.default.svc" + zone, dns.TypeA, nx, "nobody.default.svc.cluster.local."}, // RFC 6604: the end of the chain decides
		{"2.6", "10-88-0-7.default.pod" + zone, dns.TypeA, ok, "10.88.0.7"},
		{"2.6", "1-2-3-4.default.pod" + zone, dns.TypeA, ok, "1.2.3.4"},
		{"2.6", "fd00-88--5.default.pod" + zone, dns.TypeAAAA, ok, "fd00:88::5"},
		{"2.6", "0--1.default.pod" + zone, dns.TypeAAAA, ok, "::1"},
		{"2.6", "1-2-3-4.default.pod" + zone, dns.TypeAAAA, ok, ""},
		{"2.6", "1-2-3-400.default.pod" + zone, dns.TypeA, nx, ""},
		{"2.6", "1-2-3-4.nowhere.pod" + zone, dns.TypeA, nx, ""},
		{"zone", "cluster.local.", dns.TypeNS, ok, "ns.dns.cluster.local."},
		{"zone", "cluster.local.", dns.TypeA, ok, ""},
		{"zone", "ns.dns" + zone, dns.TypeA, ok, "10.96.0.10"},
		{"zone", "dns" + zone, dns.TypeA, ok, ""},
		{"zone", "svc" + zone, dns.TypeA, ok, ""},
		{"zone", "default.svc" + zone, dns.TypeA, ok, ""},
		{"zone", "nowhere.svc" + zone, dns.TypeA, nx, ""},
		{"zone", "pod" + zone, dns.TypeA, ok, ""},
		{"zone", "default.pod" + zone, dns.TypeA, ok, ""},
		{"zone", "other" + zone, dns.TypeA, nx, ""},
		{"zone", "x.other" + zone, dns.TypeA, nx, ""},
		{"zone", "x.dns" + zone, dns.TypeA, nx, ""},
		{"outside", "example.org.", dns.TypeA, nx, ""},
	} {
		for network, addr := range map[string]string{"udp": udp, "tcp": tcp} {
			answer := ask(t, network, addr, new(dns.Msg).SetQuestion(c.name, c.kind))
			if got := strings.Join(right(answer.Answer), "|"); answer.Rcode != c.rcode || got != c.want {
				t.Errorf("%s: %s %s: %s %q, want %s %q", c.section, c.name, dns.TypeToString[c.kind], dns.RcodeToString[answer.Rcode], got, dns.RcodeToString[c.rcode], c.want)
			}
			inZone := strings.HasSuffix(strings.ToLower(c.name), "cluster.local.")
			if negative := inZone && (c.want == "" || c.rcode == nx); negative != (len(answer.Ns) == 1 && answer.Ns[0].Header().Rrtype == dns.TypeSOA) {
				t.Errorf("%s: %s: authority %v", c.section, c.name, answer.Ns)
			}
			if inZone && (!answer.Authoritative || answer.RecursionAvailable) {
				t.Errorf("%s: %s: flags %v", c.section, c.name, answer.MsgHdr)
			}
			for _, r := range answer.Answer {
				if h := r.Header(); h.Ttl != ttl || !strings.EqualFold(h.Name, c.name) && c.section != "2.5" {
					t.Errorf("%s: %s: record %v", c.section, c.name, r)
				}
			}
		}
	}
	// The additional section spares a question.
	answer := ask(t, "udp", udp, new(dns.Msg).SetQuestion("_http._tcp.db.default.svc.cluster.local.", dns.TypeSRV))
	if got := strings.Join(right(answer.Extra), " "); got != "10.88.0.5 10.88.0.7 10.88.0.9 fd00:88::5" {
		t.Errorf("additional: %s", got)
	}
	soa := ask(t, "udp", udp, new(dns.Msg).SetQuestion("cluster.local.", dns.TypeSOA))
	if len(soa.Answer) != 1 || soa.Answer[0].(*dns.SOA).Minttl != ttl || soa.Answer[0].(*dns.SOA).Ns != "ns.dns.cluster.local." {
		t.Errorf("SOA: %v", soa.Answer)
	}
	// Aliases that lead round end.
	if answer := ask(t, "udp", udp, new(dns.Msg).SetQuestion("round.default.svc.cluster.local.", dns.TypeA)); len(answer.Answer) == 0 || len(answer.Answer) > longest {
		t.Errorf("a loop of aliases: %v", answer.Answer)
	}
}

func TestProtocol(t *testing.T) {
	z := world()
	many := make([]discoveryv1.Endpoint, 100)
	for i := range many {
		many[i] = ep(fmt.Sprintf("10.89.0.%d", i+1), "", true)
	}
	put(z, svc("many", corev1.ServiceSpec{ClusterIP: "None"}), sliceOf("many-1", "many", nil, many...))
	udp, tcp := serve(t, z, "")
	q := func() *dns.Msg { return new(dns.Msg).SetQuestion("many.default.svc.cluster.local.", dns.TypeA) }
	for _, c := range []struct {
		name      string
		q         *dns.Msg
		network   string
		truncated bool
		most      int
		opt       bool
	}{
		{"without EDNS: 512 bytes", q(), "udp", true, 512, false},
		{"EDNS: what the asker takes", q().SetEdns0(800, false), "udp", true, 800, true},
		{"EDNS: never more than fits on every way", q().SetEdns0(4096, false), "udp", true, largest, true},
		{"EDNS: less than 512 is 512", q().SetEdns0(100, false), "udp", true, 512, true},
		{"TCP: all", q(), "tcp", false, dns.MaxMsgSize, false},
	} {
		addr := map[string]string{"udp": udp, "tcp": tcp}[c.network]
		answer := ask(t, c.network, addr, c.q)
		answer.Compress = true // as it came
		if answer.Truncated != c.truncated || answer.Len() > c.most || (answer.IsEdns0() != nil) != c.opt || !c.truncated && len(answer.Answer) != 100 {
			t.Errorf("%s: truncated %v, %d bytes, %d records, EDNS %v", c.name, answer.Truncated, answer.Len(), len(answer.Answer), answer.IsEdns0())
		}
	}
	// Answers come in another order each time.
	first := fmt.Sprint(ask(t, "tcp", tcp, q()).Answer)
	if again := fmt.Sprint(ask(t, "tcp", tcp, q()).Answer); again == first {
		t.Error("the same order twice, of 100 records")
	}
	bad := q().SetEdns0(1232, false)
	bad.IsEdns0().SetVersion(1)
	for name, c := range map[string]struct {
		q     *dns.Msg
		rcode int
	}{
		"EDNS version 1": {bad, dns.RcodeBadVers},
		"class CHAOS":    {&dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}, Question: []dns.Question{{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}}}, dns.RcodeRefused},
		"notify":         {&dns.Msg{MsgHdr: dns.MsgHdr{Id: 7, Opcode: dns.OpcodeUpdate}, Question: q().Question}, dns.RcodeNotImplemented},
		"no question":    {&dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}}, dns.RcodeFormatError},
	} {
		if answer := ask(t, "udp", udp, c.q); answer.Rcode != c.rcode {
			t.Errorf("%s: %s", name, dns.RcodeToString[answer.Rcode])
		}
	}
}

// Changes show at once; a zone that has not heard of everything denies nothing.
func TestChanges(t *testing.T) {
	z := NewZone("cluster.local.")
	udp, _ := serve(t, z, "")
	code := func(name string, kind uint16) string {
		a := ask(t, "udp", udp, new(dns.Msg).SetQuestion(name, kind))
		return dns.RcodeToString[a.Rcode] + " " + strings.Join(right(a.Answer), "|")
	}
	expect := func(name string, kind uint16, want string) {
		t.Helper()
		if got := strings.TrimSpace(code(name, kind)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	const web, rev = "web.default.svc.cluster.local.", "7.0.96.10.in-addr.arpa."
	put(z, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	z.Take(kube.Delta{Op: kube.Synced})
	z.Take(kube.Delta{Op: kube.Synced})
	expect(web, dns.TypeA, "SERVFAIL")
	z.Take(kube.Delta{Op: kube.Synced})
	expect(web, dns.TypeA, "NXDOMAIN")
	put(z, svc("web", corev1.ServiceSpec{ClusterIP: "10.96.0.7"}))
	expect(web, dns.TypeA, "NOERROR 10.96.0.7")
	expect(rev, dns.TypePTR, "NOERROR web.default.svc.cluster.local.")
	put(z, svc("web", corev1.ServiceSpec{ClusterIP: "10.96.0.9"}))
	expect(web, dns.TypeA, "NOERROR 10.96.0.9")
	expect(rev, dns.TypePTR, "NXDOMAIN")
	// The Service becomes headless, its slice comes before or after, moves to another Service, and goes by its name alone.
	s := sliceOf("s", "web", nil, ep("10.88.0.5", "pet", true))
	put(z, s, svc("web", corev1.ServiceSpec{ClusterIP: "None"}), svc("other", corev1.ServiceSpec{ClusterIP: "None"}))
	expect("5.0.88.10.in-addr.arpa.", dns.TypePTR, "NOERROR pet.web.default.svc.cluster.local.")
	put(z, sliceOf("s", "other", nil, ep("10.88.0.5", "pet", true)))
	expect(web, dns.TypeA, "NXDOMAIN")
	expect("5.0.88.10.in-addr.arpa.", dns.TypePTR, "NOERROR pet.other.default.svc.cluster.local.")
	z.Take(kube.Delta{Op: kube.Delete, Object: &discoveryv1.EndpointSlice{ObjectMeta: meta("s")}})
	expect("other.default.svc.cluster.local.", dns.TypeA, "NXDOMAIN")
	for _, gone := range []runtime.Object{&corev1.Service{ObjectMeta: meta("web")}, &corev1.Service{ObjectMeta: meta("other")}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}} {
		z.Take(kube.Delta{Op: kube.Delete, Object: gone})
	}
	expect("default.svc.cluster.local.", dns.TypeA, "NXDOMAIN")
	if len(z.services)+len(z.slices)+len(z.serves)+len(z.reverse)+len(z.indexed)+len(z.namespaces) != 0 {
		t.Errorf("left behind: %v %v %v %v %v", z.services, z.slices, z.serves, z.reverse, z.indexed)
	}
}

// upstream is a resolver of the machine, on loopback; how says what it answers.
func upstream(t *testing.T, how func(w dns.ResponseWriter, q *dns.Msg)) netip.AddrPort {
	t.Helper()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", u.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: u, Handler: dns.HandlerFunc(how)}, {Listener: l, Handler: dns.HandlerFunc(how)}} {
		go func() { _ = s.ActivateAndServe() }()
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	return addrPort(u.LocalAddr())
}

// server with given resolvers, as if the file named them.
func server(t *testing.T, z *Zone, resolvers ...netip.AddrPort) *Server {
	t.Helper()
	s := NewServer(z, "")
	s.forward.all = resolvers
	return s
}

func answerWith(q *dns.Msg, ttl uint32, records ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	for _, r := range records {
		rr, err := dns.NewRR(strings.Replace(r, "TTL", fmt.Sprint(ttl), 1))
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func TestForwarding(t *testing.T) {
	var asked atomic.Int64
	var overTCP atomic.Int64
	far := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		name := q.Question[0].Name
		m := answerWith(q, 20)
		switch name {
		case "www.example.org.":
			m = answerWith(q, 20, name+" TTL IN CNAME a.example.org.", "a.example.org. TTL IN A 192.0.2.53")
		case "gone.example.org.":
			m.Rcode = dns.RcodeNameError
			soa, _ := dns.NewRR("example.org. 900 IN SOA ns.example.org. a.example.org. 1 2 3 4 3")
			m.Ns = []dns.RR{soa}
		case "big.example.org.":
			if w.LocalAddr().Network() == "udp" {
				m.Truncated = true
			} else {
				overTCP.Add(1)
				for i := range 60 {
					m.Answer = append(m.Answer, answerWith(q, 20, fmt.Sprintf("%s TTL IN A 192.0.2.%d", name, i)).Answer...)
				}
			}
		case "broken.example.org.":
			m.Rcode = dns.RcodeServerFailure
		}
		_ = w.WriteMsg(m)
	})
	silent := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) { // it refuses, so the next one is asked
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(q, dns.RcodeRefused))
	})
	s := server(t, world(), silent, far)
	get := func(name string, kind uint16) *dns.Msg {
		q := new(dns.Msg).SetQuestion(name, kind)
		q.SetEdns0(1232, false)
		return s.answer(q)
	}
	for range 3 {
		a := get("WWW.Example.org.", dns.TypeA)
		if got := strings.Join(right(a.Answer), "|"); got != "192.0.2.53|a.example.org." || a.Authoritative || !a.RecursionAvailable || a.Question[0].Name != "WWW.Example.org." {
			t.Errorf("%v", a)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times: the answer is not kept", n)
	}
	asked.Store(0)
	for range 2 {
		if a := get("gone.example.org.", dns.TypeA); a.Rcode != dns.RcodeNameError || len(a.Ns) != 1 {
			t.Errorf("%v", a)
		}
		if a := get("broken.example.org.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
			t.Errorf("%v", a)
		}
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times: a denial is kept, a failure is not", n)
	}
	if a := get("big.example.org.", dns.TypeA); len(a.Answer) != 60 || overTCP.Load() != 1 {
		t.Errorf("%d records, %d times over TCP", len(a.Answer), overTCP.Load())
	}
	// An alias out of the zone is followed.
	a := get("away.default.svc.cluster.local.", dns.TypeA)
	if got := strings.Join(right(a.Answer), "|"); got != "192.0.2.53|a.example.org.|www.example.org." || a.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", a)
	}
	// The resolver that answered is asked first from now on.
	if first := s.forward.resolvers()[0]; first != far {
		t.Errorf("first is %s, the one that refuses", first)
	}
	// Without any that answers: SERVFAIL for names outside; our own names are not touched.
	far2 := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	s = server(t, world(), far2)
	if a := get("www.example.org.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", a)
	}
	if a := get("away.default.svc.cluster.local.", dns.TypeA); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 1 {
		t.Errorf("%v", a)
	}
	if a := get("web.default.svc.cluster.local.", dns.TypeA); a.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", a)
	}
}

// A resolver that is ourselves, or that asks us in turn, is left out.
func TestLoopsAreFound(t *testing.T) {
	z := world()
	s := NewServer(z, "")
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	self := addrPort(udp.LocalAddr())
	through := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) { // forwards all to us, as dnsmasq or systemd-resolved may
		if a, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(q, self.String()); err == nil {
			_ = w.WriteMsg(a)
		}
	})
	good := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(answerWith(q, 20, q.Question[0].Name+" TTL IN A 192.0.2.1"))
	})
	s.forward.all = []netip.AddrPort{self, through, good}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { _ = s.Serve(ctx, udp, tcp); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if left := s.forward.resolvers(); len(left) == 1 && left[0] == good {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("still asked: %v", left)
		}
	}
	if a := ask(t, "udp", self.String(), new(dns.Msg).SetQuestion("example.org.", dns.TypeA)); len(a.Answer) != 1 {
		t.Errorf("%v", a)
	}
}

// The machine's file is read again when it changes.
func TestResolvConfIsFollowed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	f := newForwarder(file)
	for i, c := range []struct{ text, want string }{
		{"# none\nsearch a\n", "[]"},
		{"nameserver 192.0.2.1\nnameserver 2001:db8::1 # second\noptions edns0\nnameserver x\n", "[192.0.2.1:53 [2001:db8::1]:53]"},
		{"nameserver 127.0.0.53\n", "[127.0.0.53:53]"},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.read = time.Time{}
		f.mu.Unlock()
		if got := fmt.Sprint(f.resolvers()); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func TestCacheKeepsTimeAndBounds(t *testing.T) {
	var c cache
	now := time.Now()
	q := func(i int) question { return question{fmt.Sprint(i, "."), dns.TypeA, dns.ClassINET, false} }
	m := func(ttl uint32) *dns.Msg {
		return answerWith(new(dns.Msg).SetQuestion("a.", dns.TypeA), ttl, "a. TTL IN A 192.0.2.1")
	}
	c.put(q(0), m(10), now)
	if got, ok := c.get(q(0), now.Add(4*time.Second)); !ok || got.Answer[0].Header().Ttl != 6 {
		t.Errorf("after four of ten seconds: %v %v", got, ok)
	}
	if _, ok := c.get(q(0), now.Add(10*time.Second)); ok {
		t.Error("kept for too long")
	}
	c.put(q(1), m(86400), now)
	if _, ok := c.get(q(1), now.Add(longestIn)); ok {
		t.Error("kept for longer than we keep anything")
	}
	c.put(q(2), m(0), now)
	if _, ok := c.get(q(2), now); ok {
		t.Error("an answer for this moment only was kept")
	}
	for i := range 3 * cached {
		c.put(q(i), m(20), now)
	}
	if len(c.all) > cached {
		t.Errorf("%d answers", len(c.all))
	}
}

func FuzzQuery(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "5.0.88.10.in-addr.arpa.", ".", "example.org.", "1-2-3-4.default.pod.cluster.local."} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeANY)
		q.SetEdns0(4096, true)
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := NewServer(world(), "")
	f.Fuzz(func(t *testing.T, data []byte) {
		q := new(dns.Msg)
		if q.Unpack(data) != nil {
			return // miekg/dns answers those itself
		}
		a := s.answer(q)
		if a == nil || a.Id != q.Id || !a.Response {
			t.Fatalf("%v", a)
		}
		a.Truncate(512)
		packed, err := a.Pack()
		if err != nil || len(packed) > 512+255 && len(q.Question) == 1 {
			t.Fatalf("%d bytes, %v", len(packed), err)
		}
	})
}
