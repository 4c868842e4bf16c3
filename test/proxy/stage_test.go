// Package proxy runs the behaviours of kube-proxy's own unit tests as real packets, against a real proxy program: one
// in a network namespace of its own (package bed), fed by an API that the test writes (package apiserver). The same
// cases run against worknode in every run and against kube-proxy itself in `make test-long`: so the tests are proven.
package proxy

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/test/apiserver"
	"worknode/test/bed"
	"worknode/test/harness"
)

// stage is a bed with a proxy on it and the API that it follows.
type stage struct {
	t    testing.TB
	bed  *bed.Bed
	api  *apiserver.Server
	argv []string
	*process

	who    contestant
	config config
	turn   int32 // of the sentinel

	written   map[string]runtime.Object // to the API, by key
	addresses []netip.Addr              // of the node, beyond its own
}

// The ports that somebody listens on: of endpoints; of the VIPs that the world has; of the node itself.
var (
	endpointPorts = []uint16{53, 80, 5353, 8080, 8443}
	worldPorts    = []uint16{53, 80, 443}
	nodePorts     = []uint16{3001, 3002, 3003}
)

// newStage starts a proxy and waits until it is at work.
func newStage(t testing.TB, who contestant, c config) *stage {
	t.Helper()
	b, err := bed.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	s := &stage{t: t, bed: b, api: apiserver.New(), who: who, config: c, written: map[string]runtime.Object{}}
	s.api.Put(node(), serviceCIDR())
	l, err := b.Listen("node", "127.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	go s.api.Serve(l)
	for ns, ports := range map[string][]uint16{"back": endpointPorts, "peer": endpointPorts, "world": worldPorts} {
		s.must(b.Serve(ns, "", ports...))
		s.must(b.ServeSCTP(ns))
	}
	for _, a := range []string{bed.NodeIP, bed.NodeAlt} {
		for _, one := range []netip.Addr{netip.MustParseAddr(a), bed.Twin(netip.MustParseAddr(a))} {
			s.must(b.Serve("node", one.String(), nodePorts...))
		}
	}
	dir := t.TempDir()
	s.must(os.WriteFile(dir+"/kubeconfig", []byte(apiserver.Kubeconfig("http://127.0.0.1:6443")), 0o600))
	s.argv = who.command(t, dir, c)
	s.start()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := b.Command("node", "nft", "list", "ruleset").CombinedOutput()
			if len(out) > 20<<10 {
				out = out[:20<<10]
			}
			t.Logf("%s said:\n%s\nthe ruleset:\n%s", who.name, s.log, out)
		}
		s.kill()
	})
	s.sync()
	return s
}

func (s *stage) start() { s.process = launch(s.t, s.bed, s.argv) }

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// node is the Node object of the node under test.
func node() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: bed.NodeName, Labels: map[string]string{corev1.LabelTopologyZone: "zone-a", corev1.LabelHostname: bed.NodeName}}}
	for _, a := range []string{bed.NodeIP, bed.Twin(netip.MustParseAddr(bed.NodeIP)).String()} {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func serviceCIDR() *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec:   networkingv1.ServiceCIDRSpec{CIDRs: both(bed.Services)},
		Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue}}}}
}

const sentinelIP, sentinelEndpoint = "172.30.255.1", "10.180.0.250"

// sync returns when everything that was written to the API is in force: the watches are in order, so it is when a last
// Service with a last slice works, in both families.
func (s *stage) sync() {
	s.t.Helper()
	s.turn++
	port := 1000 + s.turn
	svc, err := parseScene("sentinel", fmt.Sprintf("service sentinel/s ip %s port - %d/tcp\nslice sentinel/s port - 80/tcp at %s", sentinelIP, port, sentinelEndpoint))
	s.must(err)
	// A new slice, as a proxy may make something of the old one's endpoints and the new Service.
	for _, o := range svc.steps[0].put {
		if sl, ok := o.(*discoveryv1.EndpointSlice); ok {
			s.api.Delete(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: sl.Namespace, Name: sl.Name}})
			n := fmt.Sprint("p", port)
			sl.Ports[0].Name = &n
		} else {
			o.(*corev1.Service).Spec.Ports[0].Name = fmt.Sprint("p", port)
		}
	}
	s.api.Put(svc.steps[0].put...)
	p := bed.Packet{From: netip.MustParseAddr(bed.PodIP), To: netip.AddrPortFrom(netip.MustParseAddr(sentinelIP), uint16(port)), Proto: "tcp"}
	for _, one := range []bed.Packet{p, p.Twin()} {
		s.eventually(20*time.Second, "the proxy has taken in the objects", func() error {
			_, err := s.bed.Ask(one, 100*time.Millisecond)
			return err
		})
	}
}

// eventually repeats ask until it is satisfied.
func (s *stage) eventually(within time.Duration, what string, ask func() error) {
	s.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(harness.Slow(within)); ; <-tick.C {
		err := ask()
		if err == nil {
			return
		}
		if !s.alive() {
			s.t.Fatalf("%s: the proxy ended", what)
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %v in vain until %s: %v", within, what, err)
		}
	}
}

// apply writes the objects of a scene's text to the API and waits until they are in force.
func (s *stage) apply(text string) {
	s.t.Helper()
	s.write(text)
	s.sync()
}

// write is apply without the waiting.
func (s *stage) write(text string) {
	s.t.Helper()
	sc, err := parseScene("text", text)
	s.must(err)
	s.change(sc.steps[0])
}

// change carries out what a step says of objects and addresses.
func (s *stage) change(st step) {
	s.t.Helper()
	for _, a := range st.addresses {
		s.must(s.bed.Address(true, a))
		s.addresses = append(s.addresses, a)
	}
	for _, o := range st.gone {
		delete(s.written, key(o))
	}
	s.api.Delete(st.gone...)
	for _, o := range st.put {
		s.put(o.DeepCopyObject()) // other stages play the same scene
	}
}

// put hands an object over to the API.
func (s *stage) put(o runtime.Object) {
	s.written[key(o)] = o
	s.api.Put(o)
}

// clear takes away all that was written, and what the node remembers of connections.
func (s *stage) clear() {
	s.t.Helper()
	for k, o := range s.written {
		s.api.Delete(o)
		delete(s.written, k)
	}
	for _, a := range s.addresses {
		s.must(s.bed.Address(false, a))
	}
	s.addresses = nil
	out, err := s.bed.Command("node", "conntrack", "-F").CombinedOutput()
	if err != nil {
		s.t.Fatalf("conntrack -F: %v: %s", err, out)
	}
}

func key(o runtime.Object) string {
	m := o.(metav1.Object)
	return fmt.Sprintf("%T %s/%s", o, m.GetNamespace(), m.GetName())
}

// as runs fn with the stage reporting to t.
func (s *stage) as(t *testing.T, fn func()) {
	defer func(outer testing.TB) { s.t = outer }(s.t)
	s.t = t
	s.clear()
	fn()
}

// play runs a scene and reports its packets.
func (s *stage) play(sc *scene) {
	s.t.Helper()
	for _, st := range sc.steps {
		s.change(st)
		s.sync()
		s.ask(st.probes)
	}
}

// ask sends all packets of a step, at the same time, over both families.
func (s *stage) ask(probes []probe) {
	s.t.Helper()
	type result struct {
		p   probe
		pkt bed.Packet
		err error
	}
	results := make(chan result)
	slots := make(chan struct{}, 8)
	for _, p := range probes {
		want := p.outcome(s.who.name, s.config.name)
		for _, six := range []bool{false, true} {
			pkt, want := p.packet, want
			if six {
				pkt, want = pkt.Twin(), want.Twin()
			}
			go func() {
				slots <- struct{}{}
				err := s.bed.Expect(pkt, want)
				<-slots
				results <- result{p, pkt, err}
			}()
		}
	}
	for range 2 * len(probes) {
		if r := <-results; r.err != nil {
			s.t.Errorf("%s: %s: %v", r.p.name, r.pkt, r.err)
		}
	}
}

// playAll runs every scene with every configuration that it is for, one proxy a configuration.
func playAll(t *testing.T, who contestant) {
	all := scenes(t)
	for _, c := range configs {
		t.Run(c.name, func(t *testing.T) {
			if !slices.ContainsFunc(all, func(sc *scene) bool { return slices.Contains(sc.configs, c.name) }) {
				return
			}
			s := newStage(t, who, c)
			for _, sc := range all {
				if slices.Contains(sc.configs, c.name) {
					t.Run(sc.name, func(t *testing.T) { s.as(t, func() { s.play(sc) }) })
				}
			}
		})
	}
}
