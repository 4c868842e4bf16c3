package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"worknode/test/bed"
)

// behaviour is what packets at one moment cannot tell: flows that live, timeouts, servers.
type behaviour struct {
	name   string
	config string
	test   func(*stage)
	// notUpstream says why kube-proxy is not asked: empty if it is.
	notUpstream string
}

var behaviours = []behaviour{
	{name: "AffinityClientIP", config: "base", test: affinity},
	{name: "AffinityEnds", config: "base", test: affinityEnds},
	{name: "AffinityTimesOut", config: "base", test: affinityTimesOut},
	{name: "AffinityOutlivesTheProxy", config: "base", test: affinityOutlives},
	{name: "UDPFlowsLeaveDeadEndpoints", config: "base", test: udpLeaves},
	{name: "UDPFlowsStayWithTheServing", config: "base", test: udpStays},
	{name: "UDPFlowsOfDeletedServices", config: "base", test: udpDeleted,
		notUpstream: "kube-proxy leaves the flows of a deleted Service until they are idle"},
	{name: "UDPFromBeforeTheService", config: "base", test: udpBefore,
		notUpstream: "kube-proxy cleans up when endpoints change, and misses these flows if it saw the slice before the Service"},
	{name: "TCPFlowsLiveOn", config: "base", test: tcpLives},
	{name: "StartTakesOver", config: "base", test: startTakesOver},
	{name: "BadAddresses", config: "base", test: badAddresses},
	{name: "ZoneOfNodeChanges", config: "base", test: zoneChanges},
	{name: "NodeAddressChanges", config: "base", test: nodeAddressChanges,
		notUpstream: "kube-proxy ends when its Node's addresses change"},
	{name: "ServiceCIDRAdded", config: "base", test: serviceCIDRAdded,
		notUpstream: "kube-proxy takes new ServiceCIDRs at its next full sync, up to an hour later"},
}

// served are those of the proxy's own servers.
var served = []behaviour{
	{name: "HealthCheckNodePort", config: "base", test: healthCheckNodePort},
	{name: "LocalhostNodePort", config: "localhost", test: localhostNodePort},
}

// behaveAll runs all behaviours of a list that a contestant is asked for.
func behaveAll(t *testing.T, who contestant, list []behaviour) {
	stages := map[string]*stage{}
	for _, b := range list {
		if who.name == upstream.name && b.notUpstream != "" {
			t.Logf("%s: not asked of %s: %s", b.name, who.name, b.notUpstream)
			continue
		}
		s := stages[b.config]
		if s == nil {
			s = newStage(t, who, configNamed(t, b.config))
			stages[b.config] = s
		}
		t.Run(b.name, func(t *testing.T) { s.as(t, func() { b.test(s) }) })
	}
}

func configNamed(t *testing.T, name string) config {
	for _, c := range configs {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no configuration %q", name)
	return config{}
}

// packet makes a question; of both families the test runs over, this is the IPv4 one.
func packet(from, to, proto string) bed.Packet {
	return bed.Packet{From: netip.MustParseAddr(from), To: netip.MustParseAddrPort(to), Proto: proto}
}

// twice runs fn with a packet and with its twin.
func twice(p bed.Packet, fn func(bed.Packet)) {
	fn(p)
	fn(p.Twin())
}

// answer asks once and insists on an answer.
func (s *stage) answer(p bed.Packet) netip.AddrPort {
	s.t.Helper()
	a, err := s.bed.Ask(p, 5*time.Second)
	if err != nil {
		s.t.Fatalf("%s: %v", p, err)
	}
	return a.At
}

// only insists that all of n questions come to one endpoint, and returns it.
func (s *stage) only(p bed.Packet, n int) netip.AddrPort {
	s.t.Helper()
	first := s.answer(p)
	for range n {
		if a := s.answer(p); a != first {
			s.t.Fatalf("%s: reached %s and %s; want the first alone", p, first, a)
		}
	}
	return first
}

func (s *stage) expect(p bed.Packet, outcome string) {
	s.t.Helper()
	six := p.To.Addr().Is6()
	want, err := parseOutcome(outcome, p)
	s.must(err)
	if six {
		want = want.Twin()
	}
	if err := s.bed.Expect(p, want); err != nil {
		s.t.Errorf("%s: %v", p, err)
	}
}

const sticky = `
service ns1/svc1 LoadBalancer ip 172.30.0.41 lb 1.2.3.4 affinity %d port p80 80/tcp node 3001 port u53 53/udp
slice ns1/svc1 port p80 80/tcp port u53 53/udp at 10.180.0.1 here at 10.180.0.2 here at 10.180.1.1 at 10.180.1.2 at 10.180.1.3 at 10.180.1.4 at 10.180.1.5 at 10.180.1.6`

// One client is served by one endpoint, by whatever address it asks (the key is the client and the Service's port);
// another client perhaps by another.
func affinity(s *stage) {
	s.apply(fmt.Sprintf(sticky, 10800))
	for _, proto := range []string{"tcp", "udp"} {
		port := map[string]string{"tcp": ":80", "udp": ":53"}[proto]
		twice(packet(bed.PodIP, "172.30.0.41"+port, proto), func(p bed.Packet) { s.only(p, 15) })
	}
	twice(packet(bed.PodIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) {
		chosen := s.only(p, 3)
		for _, to := range []string{"1.2.3.4:80", bed.NodeIP + ":3001"} {
			q := packet(bed.PodIP, to, "tcp")
			if p.To.Addr().Is6() {
				q = q.Twin()
			}
			if got := s.only(q, 8); got != chosen {
				s.t.Errorf("%s: %s; want %s, which the client has by the ClusterIP", q, got, chosen)
			}
		}
	})
	twice(packet(bed.Outside, bed.NodeIP+":3001", "tcp"), func(p bed.Packet) { s.only(p, 8) })
	twice(packet(bed.NodeIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) { s.only(p, 8) })
	twice(packet(bed.PodIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) {
		seen := map[netip.AddrPort]bool{}
		for i := range 40 { // eight endpoints: all the same has a chance of 8^-39
			q := p
			q.From = netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 20+i))
			if p.To.Addr().Is6() {
				q.From = bed.Twin(q.From)
			}
			seen[s.answer(q)] = true
		}
		if len(seen) < 2 {
			s.t.Errorf("%s: forty clients all reached %v", p.To, seen)
		}
	})
}

// Affinity to an endpoint that leaves ends at once; affinity to the others stays.
func affinityEnds(s *stage) {
	s.apply(fmt.Sprintf(sticky, 10800))
	twice(packet(bed.PodIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) {
		s.apply(fmt.Sprintf(sticky, 10800))
		gone := s.only(p, 2)
		address := gone.Addr()
		for _, a := range []string{"10.180.0.1", "10.180.0.2", "10.180.1.1", "10.180.1.2", "10.180.1.3", "10.180.1.4", "10.180.1.5", "10.180.1.6"} {
			if v4 := netip.MustParseAddr(a); bed.Twin(v4) == address {
				address = v4
			}
		}
		var stay string
		for _, a := range []string{"10.180.0.1", "10.180.0.2", "10.180.1.1", "10.180.1.2", "10.180.1.3"} {
			if netip.MustParseAddr(a) != address {
				stay += " at " + a
			}
		}
		s.apply("slice ns1/svc1 port p80 80/tcp" + stay + " at " + address.String() + " terminating")
		next := s.only(p, 10)
		if next == gone {
			s.t.Errorf("%s: still reaches %s, which is terminating", p, gone)
		}
		// It is back: the client stays where it is now.
		s.apply("slice ns1/svc1 port p80 80/tcp" + stay + " at " + address.String())
		if got := s.only(p, 5); got != next {
			s.t.Errorf("%s: reaches %s; want to stay with %s", p, got, next)
		}
	})
}

// The time runs from the last connection; after it, the client may go elsewhere.
func affinityTimesOut(s *stage) {
	s.apply(fmt.Sprintf(sticky, 1))
	twice(packet(bed.PodIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) {
		first := s.answer(p)
		for range 6 { // each renews it: two seconds in all
			time.Sleep(350 * time.Millisecond) // the time that passes is what is tested
			if a := s.answer(p); a != first {
				s.t.Fatalf("%s: from %s to %s although asked three times a second", p, first, a)
			}
		}
		for range 12 { // eight endpoints: all the same has a chance of 8^-12
			time.Sleep(1500 * time.Millisecond)
			if s.answer(p) != first {
				return
			}
		}
		s.t.Errorf("%s: reaches %s again and again, long after a second", p, first)
	})
}

// A new proxy knows what clients have from the old one.
func affinityOutlives(s *stage) {
	s.apply(fmt.Sprintf(sticky, 10800))
	chosen := map[bed.Packet]netip.AddrPort{}
	for i := range 12 {
		twice(packet(fmt.Sprintf("10.0.0.%d", 20+i), "172.30.0.41:80", "tcp"), func(p bed.Packet) { chosen[p] = s.answer(p) })
	}
	s.kill()
	s.start()
	s.sync()
	for p, want := range chosen {
		if got := s.answer(p); got != want {
			s.t.Errorf("%s: %s before the restart, %s after", p, want, got)
		}
	}
}

const dns = `
service ns1/dns LoadBalancer ip 172.30.0.10 external 192.168.99.11 lb 1.2.3.4 port dns 53/udp node 3001
slice ns1/dns port dns 53/udp at `

// dnsClients are the ways to the Service of dns.
var dnsClients = []bed.Packet{
	packet(bed.PodIP, "172.30.0.10:53", "udp"), packet(bed.Outside, "192.168.99.11:53", "udp"), packet(bed.Outside, "1.2.3.4:53", "udp"),
	packet(bed.Outside, bed.NodeIP+":3001", "udp"), packet(bed.NodeIP, "172.30.0.10:53", "udp"),
}

// open begins a flow for each client and its twin, and insists that each reaches want.
func (s *stage) open(clients []bed.Packet, want string) []*bed.Flow {
	s.t.Helper()
	var flows []*bed.Flow
	for _, c := range clients {
		twice(c, func(p bed.Packet) {
			f, a, err := s.bed.Open(p)
			if err != nil {
				s.t.Fatalf("%s: %v", p, err)
			}
			if w := netip.MustParseAddrPort(want); a.At != w && a.At.Addr() != bed.Twin(w.Addr()) {
				s.t.Fatalf("%s: reaches %s; want %s", p, a.At, want)
			}
			flows = append(flows, f)
		})
	}
	return flows
}

// move waits until every flow is answered by want.
func (s *stage) move(flows []*bed.Flow, want string) {
	s.t.Helper()
	w := netip.MustParseAddrPort(want)
	for _, f := range flows {
		s.eventually(5*time.Second, fmt.Sprintf("the flow %s reaches %s", f.Packet, want), func() error {
			a, err := f.Again(200 * time.Millisecond)
			if err == nil && a.At != w && a.At != netip.AddrPortFrom(bed.Twin(w.Addr()), w.Port()) {
				err = fmt.Errorf("reaches %s", a.At)
			}
			return err
		})
	}
}

// A UDP flow to an endpoint that is gone goes to another, although the client keeps its port; as conntrack's
// TestCleanStaleEntries. Also out of nothing: the refusal leaves no trace.
func udpLeaves(s *stage) {
	s.apply(dns + "10.180.0.1 here")
	flows := s.open(dnsClients, "10.180.0.1:53")
	s.apply(dns + "10.180.1.1")
	s.move(flows, "10.180.1.1:53")
	s.apply(dns + "10.180.1.1 ending at 10.180.1.2")
	s.move(flows, "10.180.1.2:53")
	s.apply("slice ns1/dns port dns 53/udp")
	for _, f := range flows {
		if f.To.Port() == 3001 {
			continue // a NodePort's flows are known by port alone, and upstream leaves those of a Service without endpoints
		}
		s.eventually(5*time.Second, fmt.Sprintf("the flow %s is refused", f.Packet), func() error {
			a, err := f.Again(200 * time.Millisecond)
			if errors.Is(err, bed.ErrRefused) {
				return nil
			}
			return fmt.Errorf("%v, reaches %s", err, a.At)
		})
	}
	s.apply(dns + "10.180.0.2 here")
	s.move(flows, "10.180.0.2:53")
}

// A UDP flow stays with its endpoint while that one serves, be it terminating, hidden by a hint or beside new ones.
func udpStays(s *stage) {
	s.apply(dns + "10.180.0.1 here")
	flows := s.open(dnsClients, "10.180.0.1:53")
	for _, now := range []string{
		"10.180.0.1 here at 10.180.1.1 at 10.180.1.2",
		"10.180.0.1 terminating here at 10.180.1.1",
		"10.180.0.1 zones zone-b here at 10.180.1.1 zones zone-a",
	} {
		s.apply(dns + now)
		for _, f := range flows {
			for range 3 {
				a, err := f.Again(time.Second)
				if err != nil || a.At.Addr() != netip.MustParseAddr("10.180.0.1") && a.At.Addr() != bed.Twin(netip.MustParseAddr("10.180.0.1")) {
					s.t.Errorf("with endpoints at %s the flow %s goes to %s (%v); want it to stay", now, f.Packet, a.At, err)
				}
			}
		}
	}
}

// The flows of a Service that is deleted end with it: its address may be another's next.
func udpDeleted(s *stage) {
	s.apply(dns + "10.180.0.1 here")
	flows := s.open(dnsClients, "10.180.0.1:53")
	s.apply("delete service ns1/dns\ndelete slice ns1/dns")
	for _, f := range flows {
		s.eventually(5*time.Second, fmt.Sprintf("the flow %s leaves the deleted Service", f.Packet), func() error {
			a, err := f.Again(100 * time.Millisecond)
			if err == nil && a.At.Addr() != f.To.Addr() {
				return fmt.Errorf("it reaches %s", a.At)
			}
			return nil
		})
	}
	s.apply(`
service ns1/other LoadBalancer ip 172.30.0.10 external 192.168.99.11 lb 1.2.3.4 port dns 53/udp node 3001
slice ns1/other port dns 53/udp at 10.180.1.1`)
	s.move(flows, "10.180.1.1:53")
}

// A client that asked before there was a Service is not stuck with what it got then.
func udpBefore(s *stage) {
	s.sync()                                                                            // the last test's Services are gone
	flows := s.open([]bed.Packet{packet(bed.PodIP, "1.2.3.4:53", "udp")}, "1.2.3.4:53") // the world's answer
	s.apply(dns + "10.180.0.1 here")
	s.move(flows, "10.180.0.1:53")
}

// What is connected stays connected, whatever becomes of endpoint, Service and proxy.
func tcpLives(s *stage) {
	const web = `
service ns1/web LoadBalancer ip 172.30.0.11 external 192.168.99.11 lb 1.2.3.4 port http 80/tcp node 3001
slice ns1/web port http 80/tcp at `
	s.apply(web + "10.180.0.1 here")
	var clients []bed.Packet
	for _, c := range dnsClients {
		c.Proto = "tcp"
		switch c.To.Port() {
		case 53:
			to := netip.AddrPortFrom(c.To.Addr(), 80)
			if c.To.Addr() == netip.MustParseAddr("172.30.0.10") {
				to = netip.MustParseAddrPort("172.30.0.11:80")
			}
			c.To = to
		}
		clients = append(clients, c)
	}
	flows := s.open(clients, "10.180.0.1:80")
	alive := func(after string) {
		for _, f := range flows {
			if _, err := f.Again(3 * time.Second); err != nil {
				s.t.Errorf("after %s the connection %s is broken: %v", after, f.Packet, err)
			}
		}
	}
	alive("nothing")
	s.apply(web + "10.180.1.1")
	alive("the endpoint was replaced")
	s.kill()
	alive("the proxy was killed")
	s.start()
	s.sync()
	alive("the proxy came back")
	s.apply("slice ns1/web port http 80/tcp")
	alive("all endpoints went")
	s.apply("delete service ns1/web\ndelete slice ns1/web")
	alive("the Service was deleted")
}

// health asks a health check port of the node; code 0 means that nobody listens.
func (s *stage) health(port int) (code int, weight string, body struct {
	Service             struct{ Namespace, Name string }
	LocalEndpoints      int
	ServiceProxyHealthy bool
}) {
	s.t.Helper()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Dial: func(_, addr string) (net.Conn, error) {
		return s.bed.Dial("tcp", netip.MustParseAddr(bed.Outside), netip.MustParseAddrPort(addr), time.Second)
	}}}
	r, err := client.Get(fmt.Sprintf("http://%s:%d/healthz", bed.NodeIP, port))
	if err != nil {
		return 0, "", body
	}
	defer r.Body.Close()
	text, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(text, &body); err != nil {
		s.t.Errorf("health check answers %q: %v", text, err)
	}
	return r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight"), body
}

// As TestHealthCheckNodePortWhenTerminating and healthcheck's TestServer: the load balancer learns where it should send.
func healthCheckNodePort(s *stage) {
	const svc = "service ns1/svc1 LoadBalancer eTP Local health 30000 ip 172.30.0.41 lb 1.2.3.4 port p80 80/tcp port p443 443/tcp\n"
	expect := func(when string, code, endpoints int) {
		s.t.Helper()
		s.eventually(3*time.Second, "the health check answers as it should: "+when, func() error {
			got, weight, body := s.health(30000)
			if got != code || code != 0 && (body.LocalEndpoints != endpoints || weight != fmt.Sprint(endpoints) ||
				body.Service.Namespace != "ns1" || body.Service.Name != "svc1" || !body.ServiceProxyHealthy) {
				return fmt.Errorf("%d, weight %q, %+v; want %d with %d", got, weight, body, code, endpoints)
			}
			return nil
		})
	}
	s.apply(svc)
	expect("no endpoints", 503, 0)
	s.apply(svc + "slice ns1/svc1 port p80 80/tcp port p443 8443/tcp at 10.180.0.1 ready here at 10.180.0.2 ready here at 10.180.0.3 unready here at 10.180.1.1 ready")
	expect("two of three local ones are ready, on two ports", 200, 2)
	s.apply(svc + "slice ns1/svc1 port p80 80/tcp port p443 8443/tcp at 10.180.0.1 terminating here at 10.180.0.2 terminating here at 10.180.1.1 ready")
	expect("the local ones are terminating", 503, 0)
	s.apply("service ns1/svc1 LoadBalancer eTP Cluster ip 172.30.0.41 lb 1.2.3.4 port p80 80/tcp")
	expect("the policy is Cluster now", 0, 0)
	s.apply(svc)
	expect("the policy is Local again", 503, 0)
	s.apply("delete service ns1/svc1")
	expect("the Service is deleted", 0, 0)
}

// A proxy that starts keeps what is there working and takes away what is no longer wanted; as TestSyncProxyRulesStartup.
func startTakesOver(s *stage) {
	s.apply(`
service ns1/stays ip 172.30.0.41 port p80 80/tcp
service ns1/goes LoadBalancer ip 172.30.0.42 lb 1.2.3.4 port p80 80/tcp node 3001
service ns1/changes ip 172.30.0.43 port p80 80/tcp
slice ns1/stays port p80 80/tcp at 10.180.0.1 here
slice ns1/goes port p80 80/tcp at 10.180.0.2 here
slice ns1/changes port p80 80/tcp at 10.180.0.3 here at 10.180.1.1`)
	s.kill()
	twice(packet(bed.PodIP, "172.30.0.41:80", "tcp"), func(p bed.Packet) { s.expect(p, "10.180.0.1:80") })
	s.write(`
delete service ns1/goes
delete slice ns1/goes
service ns1/comes ip 172.30.0.44 port p80 80/tcp
slice ns1/comes port p80 80/tcp at 10.180.0.4 here
slice ns1/changes port p80 80/tcp at 10.180.1.1 at 10.180.1.2 at 10.180.1.3`)
	s.start()
	s.sync()
	for to, outcome := range map[string]string{
		"172.30.0.41:80": "10.180.0.1:80",
		"172.30.0.42:80": "dropped",
		"172.30.0.43:80": "10.180.1.1:80 10.180.1.2:80 10.180.1.3:80",
		"172.30.0.44:80": "10.180.0.4:80",
		"1.2.3.4:80":     "untouched",
	} {
		twice(packet(bed.PodIP, to, "tcp"), func(p bed.Packet) {
			if outcome == "untouched" {
				if a := s.answer(p); a != p.To {
					s.t.Errorf("%s: reaches %s; want it left alone", p, a)
				}
				return
			}
			s.expect(p, outcome)
		})
	}
}

// As TestBadIPs: old objects may have addresses with leading zeros, which count as decimal.
func badAddresses(s *stage) {
	svc, err := parseScene("bad", `
service ns1/svc1 LoadBalancer ip 172.30.0.41 external 192.168.99.22 lb 1.2.3.4 range 203.0.113.0/25 port p80 80/tcp node 3001
slice ns1/svc1 port p80 80/tcp at 10.180.0.1 here`)
	s.must(err)
	o := svc.steps[0].put[0].(*corev1.Service)
	o.Spec.ClusterIP, o.Spec.ClusterIPs[0] = "172.30.0.041", "172.30.0.041"
	o.Spec.ExternalIPs[0] = "192.168.099.022"
	o.Status.LoadBalancer.Ingress[0].IP = "1.2.3.004"
	o.Spec.LoadBalancerSourceRanges[0] = "203.0.113.000/025"
	s.put(o)
	for _, one := range svc.steps[0].put[1:] {
		s.put(one)
	}
	s.sync()
	for from, to := range map[string]string{bed.PodIP: "172.30.0.41:80", bed.Outside: "1.2.3.4:80", bed.NodeIP: "192.168.99.22:80"} {
		if from == bed.PodIP {
			s.expect(packet(from, to, "tcp"), "10.180.0.1:80")
		} else {
			s.expect(packet(from, to, "tcp"), "10.180.0.1:80 masq")
		}
	}
	s.expect(packet("203.0.113.130", "1.2.3.4:80", "tcp"), "dropped")
}

// A node that is moved to another zone has other endpoints at once.
func zoneChanges(s *stage) {
	s.apply(`
service ns1/svc1 ip 172.30.0.41 port p80 80/tcp
slice ns1/svc1 port p80 80/tcp at 10.180.0.1 zones zone-a here at 10.180.1.1 zones zone-b`)
	p := packet(bed.PodIP, "172.30.0.41:80", "tcp")
	s.expect(p, "10.180.0.1:80")
	n := node()
	n.Labels[corev1.LabelTopologyZone] = "zone-b"
	s.api.Put(n)
	defer s.api.Put(node())
	twice(p, func(p bed.Packet) {
		want := netip.MustParseAddrPort("10.180.1.1:80")
		s.eventually(5*time.Second, "the endpoint is that of zone-b", func() error {
			if a := s.answer(p); a != want && a.Addr() != bed.Twin(want.Addr()) {
				return fmt.Errorf("it is %s", a)
			}
			return nil
		})
	})
	s.expect(p, "10.180.1.1:80")
	s.expect(p.Twin(), "10.180.1.1:80")
}

// NodePorts follow the Node's address.
func nodeAddressChanges(s *stage) {
	s.apply(`
service ns1/svc1 NodePort ip 172.30.0.41 port p80 80/tcp node 3001
slice ns1/svc1 port p80 80/tcp at 10.180.0.1 here`)
	n := node()
	n.Status.Addresses[0].Address = bed.NodeAlt
	s.api.Put(n)
	alt, old := packet(bed.Outside, bed.NodeAlt+":3001", "tcp"), packet(bed.Outside, bed.NodeIP+":3001", "tcp")
	s.eventually(5*time.Second, "the NodePort is on the new address", func() error {
		if a := s.answer(alt); a == alt.To {
			return errors.New("the node itself answers")
		}
		return nil
	})
	if a := s.answer(old); a != old.To {
		s.t.Errorf("%s: reaches %s; want it left alone", old, a)
	}
	s.api.Put(node())
	s.eventually(5*time.Second, "the NodePort is back", func() error {
		if a := s.answer(old); a == old.To {
			return errors.New("the node itself answers")
		}
		return nil
	})
}

// Addresses of a new ServiceCIDR that no Service has are dropped from now on.
func serviceCIDRAdded(s *stage) {
	s.sync() // the last test's Services are gone
	p := packet(bed.PodIP, "9.10.11.12:80", "tcp")
	if a := s.answer(p); a != p.To {
		s.t.Fatalf("%s: reaches %s", p, a)
	}
	more := serviceCIDR()
	more.Name = "more"
	more.Spec.CIDRs = both("9.10.11.0/24")
	s.api.Put(more)
	defer s.api.Delete(more)
	s.eventually(5*time.Second, "unallocated addresses are dropped", func() error {
		_, err := s.bed.Ask(p, 100*time.Millisecond)
		if !errors.Is(err, bed.ErrDropped) {
			return fmt.Errorf("not dropped: %v", err)
		}
		return nil
	})
}

// As TestLocalhostNodePortProxy: a TCP NodePort on loopback is served by the proxy itself; others are refused.
func localhostNodePort(s *stage) {
	s.apply(`
service ns1/svc1 NodePort ip 172.30.0.41 port p80 80/tcp node 3005 port u53 53/udp node 3006
slice ns1/svc1 port p80 80/tcp port u53 53/udp at 10.180.0.1 here at 10.180.1.1`)
	twice(packet("127.0.0.1", "127.0.0.1:3005", "tcp"), func(p bed.Packet) {
		s.eventually(5*time.Second, "the NodePort answers on loopback", func() error { _, err := s.bed.Ask(p, time.Second); return err })
		s.expect(p, "10.180.0.1:80 10.180.1.1:80 anysource")
	})
	twice(packet("127.0.0.1", "127.0.0.1:3006", "udp"), func(p bed.Packet) { s.expect(p, "refused") })
	s.apply("slice ns1/svc1 port p80 80/tcp port u53 53/udp at 10.180.1.2")
	twice(packet("127.0.0.1", "127.0.0.1:3005", "tcp"), func(p bed.Packet) { s.expect(p, "10.180.1.2:80 anysource") })
	s.kill()
	s.start()
	s.sync()
	twice(packet("127.0.0.1", "127.0.0.1:3005", "tcp"), func(p bed.Packet) {
		s.eventually(5*time.Second, "the NodePort answers on loopback after a restart", func() error { _, err := s.bed.Ask(p, time.Second); return err })
	})
	s.apply("delete service ns1/svc1")
	twice(packet("127.0.0.1", "127.0.0.1:3005", "tcp"), func(p bed.Packet) {
		s.eventually(5*time.Second, "nobody listens any more", func() error {
			if _, err := s.bed.Ask(p, time.Second); !errors.Is(err, bed.ErrRefused) {
				return fmt.Errorf("not refused: %v", err)
			}
			return nil
		})
	})
}
