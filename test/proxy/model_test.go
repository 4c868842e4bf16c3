package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/proxy/api"
	"worknode/proxy/plan"
	"worknode/proxy/state"
	"worknode/test/bed"
)

// TestTraceAgreesWithTheKernel: what plan.Trace says of random packets on random Services is what becomes of them. The model
// is compiled here, from the objects that the proxy gets by its watch.
func TestTraceAgreesWithTheKernel(t *testing.T) { traceAgrees(t, 8, 60) }

func traceAgrees(t *testing.T, rounds, packets int) {
	s := newStage(t, worknode, configs[0])
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	fates := map[plan.Fate]int{}
	for range rounds {
		s.clear()
		text := randomServices(r)
		s.apply(text)
		views := map[state.Family]*plan.View{state.V4: s.view(state.V4), state.V6: s.view(state.V6)}
		type result struct {
			p       bed.Packet
			verdict plan.Verdict
			err     error
		}
		results := make(chan result)
		slots := make(chan struct{}, 8)
		asked := 0
		for range packets {
			p := randomPacket(r)
			if r.IntN(2) == 0 {
				p = p.Twin()
			}
			v := plan.Trace(views[state.Of(p.To.Addr())], s.packet(p))
			if !observable(p, v) {
				continue
			}
			asked++
			fates[v.Fate]++
			go func() {
				slots <- struct{}{}
				err := s.compare(p, v)
				<-slots
				results <- result{p, v, err}
			}()
		}
		for range asked {
			if got := <-results; got.err != nil {
				t.Errorf("%s: %v; the model says %s %v, by\n%v", got.p, got.err, got.verdict.Fate, got.verdict.Targets, steps(got.verdict))
			}
		}
		if t.Failed() {
			t.Fatalf("the Services were:\n%s", text)
		}
	}
	t.Logf("packets by fate: %v", fates)
	for _, f := range []plan.Fate{plan.Passed, plan.Sent, plan.Refusal, plan.Dropped} {
		if fates[f] < rounds/4 {
			t.Errorf("only %d packets were %s: too few to say anything", fates[f], f)
		}
	}
}

func steps(v plan.Verdict) string {
	var b strings.Builder
	for _, st := range v.Steps {
		fmt.Fprintf(&b, "\t%s\n", st)
	}
	return b.String()
}

// randomServices are some Services with addresses, ports and endpoints from small pools.
func randomServices(r *rand.Rand) string {
	var b strings.Builder
	chance := func(n int, text string) string {
		if r.IntN(n) == 0 {
			return " " + text
		}
		return ""
	}
	for i := range 6 {
		fmt.Fprintf(&b, "service rnd/s%d ip 172.30.9.%d LoadBalancer", i, i+1)
		b.WriteString(chance(2, fmt.Sprintf("lb 1.2.3.%d", i+1)) + chance(3, fmt.Sprintf("external 192.168.99.%d", i+1)))
		b.WriteString(chance(3, "eTP Local") + chance(4, "iTP Local") + chance(4, "range 203.0.113.0/25") + chance(8, "range 10.0.0.0/24") + chance(8, "range 192.168.0.0/24"))
		b.WriteString(" port web 80/tcp")
		if i < 3 {
			fmt.Fprintf(&b, " node %d", nodePorts[i])
		}
		b.WriteString(chance(2, "port dns 53/udp") + chance(3, "port tls 443/tcp") + "\n")
		for part := range []int{0, 1, 1, 1, 2}[r.IntN(5)] {
			fmt.Fprintf(&b, "slice rnd/s%d part %d port web %d/tcp port tls 8443/tcp port dns 53/udp", i, part, []int{80, 8080}[r.IntN(2)])
			for range 1 + r.IntN(3) {
				fmt.Fprintf(&b, " at %s%s", []string{"10.180.0.1 here", "10.180.0.2 here", "10.180.0.3 here", "10.180.1.1", "10.180.1.2", "10.180.2.1"}[r.IntN(6)],
					[]string{"", "", "", " unready", " terminating", " ending", " zones zone-a", " zones zone-b"}[r.IntN(8)])
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func randomPacket(r *rand.Rand) bed.Packet {
	n := 1 + r.IntN(7) // the seventh has no Service
	to := []string{fmt.Sprintf("172.30.9.%d:80", n), fmt.Sprintf("172.30.9.%d:443", n), fmt.Sprintf("1.2.3.%d:80", n), fmt.Sprintf("1.2.3.%d:443", n),
		fmt.Sprintf("192.168.99.%d:80", n), fmt.Sprintf("%s:%d", bed.NodeIP, nodePorts[r.IntN(3)]), fmt.Sprintf("%s:%d", bed.NodeAlt, nodePorts[r.IntN(3)])}[r.IntN(7)]
	proto := "tcp"
	if r.IntN(4) == 0 {
		to, proto = []string{fmt.Sprintf("172.30.9.%d:53", n), fmt.Sprintf("1.2.3.%d:53", n)}[r.IntN(2)], "udp"
	}
	from := []string{bed.PodIP, bed.Outside, "203.0.113.130", bed.NodeIP, bed.PeerIP, "10.180.0.1", "10.180.1.1"}[r.IntN(7)]
	return packet(from, to, proto)
}

// observable tells whether the bed can show what becomes of a packet: an endpoint that sits in the same namespace as the
// client would answer past the node, unless the client is hidden.
func observable(p bed.Packet, v plan.Verdict) bool {
	for _, target := range v.Targets {
		if home := bed.Home(p.From); home != "node" && home == bed.Home(target.To.Addr()) && !target.Masquerade {
			return false
		}
	}
	return true
}

// packet is a question in the model's words.
func (s *stage) packet(p bed.Packet) plan.Packet {
	local := map[netip.Addr]bool{}
	for _, text := range []string{bed.NodeIP, bed.NodeAlt, "127.0.0.1"} {
		a := netip.MustParseAddr(text)
		local[a], local[bed.Twin(a)] = true, true
	}
	out := plan.Packet{Src: netip.AddrPortFrom(p.From, 40_000), Dst: p.To, Proto: map[string]state.Proto{"tcp": state.TCP, "udp": state.UDP}[p.Proto],
		Here: func(a netip.Addr) bool { return local[a] }}
	if home := bed.Home(p.From); home != "node" {
		out.Device = "to-" + home
	}
	return out
}

// view compiles what is written to the API, as the proxy should.
func (s *stage) view(fam state.Family) *plan.View {
	store := state.NewStore()
	for _, o := range s.written {
		switch o := o.(type) {
		case *corev1.Service:
			svc, _ := api.Service(o)
			store.PutService(svc)
		case *discoveryv1.EndpointSlice:
			sl, _ := api.Slice(o, bed.NodeName)
			store.PutSlice(sl)
		}
	}
	n := api.Node(node())
	var changed []plan.Changed
	store.Services(func(name state.Name) {
		svc, slices := store.Service(name)
		in := plan.Input{Service: svc, Slices: slices, Owns: func(f state.Front) bool { return store.Owns(name, f) }}
		changed = append(changed, plan.Changed{Service: name, Ports: plan.Compile(in, fam, plan.Here{Node: bed.NodeName, Zone: n.Zone, IPs: n.IPs})})
	})
	settings := state.DefaultSettings(bed.NodeName)
	pods := state.LocalPods{By: state.ByClusterCIDR}
	for _, text := range both(bed.PodCIDR) {
		pods.CIDRs = append(pods.CIDRs, netip.MustParsePrefix(text))
	}
	settings.LocalPods = []state.LocalPods{pods}
	var cidrs []netip.Prefix
	for _, text := range serviceCIDR().Spec.CIDRs {
		cidrs = append(cidrs, netip.MustParsePrefix(text))
	}
	want := plan.Want{Rules: plan.RulesOf(&settings, n, cidrs, fam)}
	for _, a := range n.IPs {
		if state.Of(a) == fam {
			want.NodeIPs = append(want.NodeIPs, a)
		}
	}
	d := plan.Full(plan.Have{}, changed, want)
	m := plan.NewModel()
	m.Commit(&d)
	return plan.NewView(m)
}

// compare asks until it is certain that the kernel does with p what the verdict says.
func (s *stage) compare(p bed.Packet, v plan.Verdict) error {
	switch v.Fate {
	case plan.Refusal:
		return s.bed.Expect(p, bed.Outcome{Refused: true})
	case plan.Dropped:
		return s.bed.Expect(p, bed.Outcome{Dropped: true})
	case plan.Passed:
		return s.bed.Expect(p, bed.Outcome{Reached: []netip.AddrPort{p.To}, AnySource: true})
	}
	hidden := map[netip.AddrPort]bool{}
	for _, target := range v.Targets {
		hidden[target.To] = target.Masquerade
	}
	seen := map[netip.AddrPort]bool{}
	for n := 0; n < 10 || len(seen) < len(hidden); n++ {
		if n == 300 {
			return fmt.Errorf("reaches only %v in %d tries", seen, n)
		}
		a, err := s.bed.Ask(p, 5*time.Second)
		if err != nil {
			return err
		}
		masquerade, ok := hidden[a.At]
		switch {
		case !ok:
			return fmt.Errorf("reaches %s", a.At)
		case masquerade != (a.From.Addr() != p.From):
			return fmt.Errorf("reaches %s from %s", a.At, a.From.Addr())
		}
		seen[a.At] = true
	}
	if len(seen) == 0 {
		return errors.New("the model has no endpoint to send to")
	}
	return nil
}
