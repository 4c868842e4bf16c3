package dns

import (
	"net"
	"testing"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

func put(t *testing.T, s *store.Store, r *store.Resource, obj store.Object) {
	t.Helper()
	if _, err := s.Put(r, obj, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAnswersFollowTheSchema(t *testing.T) {
	objects, err := store.Open("")
	if err != nil {
		t.Fatal(err)
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: "default"} }
	port := []v1.ServicePort{{Name: "http", Port: 80, Protocol: v1.ProtocolTCP}}
	put(t, objects, store.Namespaces, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	put(t, objects, store.Services, &v1.Service{ObjectMeta: meta("web"), Spec: v1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"}, Ports: port}})
	put(t, objects, store.Services, &v1.Service{ObjectMeta: meta("db"), Spec: v1.ServiceSpec{ClusterIP: "None", Ports: port}})
	put(t, objects, store.Services, &v1.Service{ObjectMeta: meta("away"), Spec: v1.ServiceSpec{Type: v1.ServiceTypeExternalName, ExternalName: "example.org"}})
	yes, no, name, proto, number, host := true, false, "http", v1.ProtocolTCP, int32(8080), "db-0"
	put(t, objects, store.EndpointSlices, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "db-1", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.88.0.5"}, Hostname: &host, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.88.0.6"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.88.0.7"}},
		},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &number}},
	})
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { New(objects, "cluster.local", nil).Serve(t.Context(), udp, tcp); close(ended) }()
	t.Cleanup(func() { <-ended })

	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  []string // right-hand sides
	}{
		{"web.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.96.0.7"}},
		{"WEB.Default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.96.0.7"}},
		{"web.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, []string{"0 100 80 web.default.svc.cluster.local."}},
		{"db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.88.0.5", "10.88.0.7"}},
		{"db-0.db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.88.0.5"}},
		{"10-88-0-7.db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.88.0.7"}},
		{"10-88-0-6.db.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"_http._tcp.db.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, []string{"0 100 8080 db-0.db.default.svc.cluster.local.", "0 100 8080 10-88-0-7.db.default.svc.cluster.local."}},
		{"away.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"example.org."}},
		{"nobody.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, nil},
		{"nowhere.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, nil},
		{"dns-version.cluster.local.", dns.TypeTXT, dns.RcodeSuccess, []string{`"1.1.0"`}},
		{"7.0.96.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, []string{"web.default.svc.cluster.local."}},
		{"example.org.", dns.TypeA, dns.RcodeNameError, nil},
	} {
		for network, addr := range map[string]string{"udp": udp.LocalAddr().String(), "tcp": tcp.Addr().String()} {
			answer, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion(c.name, c.kind), addr)
			if err != nil {
				t.Fatalf("%s over %s: %v", c.name, network, err)
			}
			var got []string
			for _, r := range answer.Answer {
				got = append(got, r.String()[len(r.Header().String()):])
			}
			if answer.Rcode != c.rcode || len(got) != len(c.want) {
				t.Errorf("%s %s: %s %v, want %s %v", c.name, dns.TypeToString[c.kind], dns.RcodeToString[answer.Rcode], got, dns.RcodeToString[c.rcode], c.want)
				continue
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("%s: record %d is %q, want %q", c.name, i, got[i], c.want[i])
				}
			}
		}
	}
}
