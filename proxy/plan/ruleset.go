package plan

import (
	"net/netip"

	"worknode/proxy/state"
)

// Rules is what the rules of one family depend on.
type Rules struct {
	Family        state.Family
	MasqueradeAll bool
	MarkBit       int
	Pods          []Cond         // a packet is a pod's if any of these holds
	AnyNodeIP     bool           // node ports answer on every address of this node but loopback's
	ServiceCIDRs  []netip.Prefix // of this family
	DropInvalid   bool
}

// RulesOf works out the rules' settings; serviceCIDRs are those that the API has.
func RulesOf(s *state.Settings, node *state.Node, serviceCIDRs []netip.Prefix, fam state.Family) Rules {
	r := Rules{Family: fam, MasqueradeAll: s.MasqueradeAll, MarkBit: s.MasqueradeBit, DropInvalid: s.DropInvalid}
	for _, l := range s.LocalPods {
		cidrs := l.CIDRs
		switch l.By {
		case state.ByBridge:
			r.Pods = append(r.Pods, Cond{Is: FromDevice, Device: l.Device})
			continue
		case state.ByInterfacePrefix:
			r.Pods = append(r.Pods, Cond{Is: FromDevices, Device: l.Device})
			continue
		case state.ByNodeCIDR:
			cidrs = node.PodCIDRs
		}
		for _, p := range ofFamily(cidrs, fam) {
			r.Pods = append(r.Pods, Cond{Is: From, Prefix: p})
		}
	}
	for _, p := range s.NodePorts.Ranges {
		r.AnyNodeIP = r.AnyNodeIP || p.Bits() == 0 && state.Of(p.Addr()) == fam
	}
	r.ServiceCIDRs = tidy(append(ofFamily(s.ServiceCIDRs, fam), ofFamily(serviceCIDRs, fam)...))
	return r
}

func ofFamily(list []netip.Prefix, fam state.Family) (out []netip.Prefix) {
	for _, p := range list {
		if state.Of(p.Addr()) == fam {
			out = append(out, p.Masked())
		}
	}
	return out
}

// Chains of the ruleset that only rules lead to.
const (
	chainOutside     Chain = "masquerade-outside"
	chainServices    Chain = "services"
	chainUnallocated Chain = "unallocated"
	chainFirewall    Chain = "firewall"
)

func on(c ...Cond) []Cond { return c }

// Ruleset lists the chains that are always there, in an order in which they can be made: those that are led to come first.
// Nothing here depends on how many Services there are, and no chain is longer for more of them.
func (r Rules) Ruleset() []ChainRules {
	fresh := Cond{Is: New}
	in := func(s Set) Cond { return Cond{Is: In, Set: s} }
	nodePort := on(in(NodeIPs))
	if r.AnyNodeIP {
		// Loopback never: the kernel does not route its replies to other hosts.
		nodePort = on(Cond{Is: ToHere}, Cond{Is: To, Not: true, Prefix: loopback(r.Family)})
	}
	refused := []Rule{{When: on(fresh), Do: Follow, Set: Refused}}
	unallocated := Rule{When: on(fresh), Do: Jump, Chain: chainUnallocated}
	services := []Rule{
		{When: on(in(ClusterIPs)), Do: Jump, Chain: chainOutside},
		{Do: Follow, Set: Fronts},
		{When: nodePort, Do: Follow, Set: NodePorts},
	}
	forward := append(refused[:1:1], unallocated)
	if r.DropInvalid {
		forward = append([]Rule{{When: on(Cond{Is: Invalid}), Do: Discard}}, forward...)
	}
	return []ChainRules{
		// A reset, as ICMP is limited to a few a second for each client: the next one would wait for a retransmission.
		{Name: Refuse, Rules: []Rule{{When: on(Cond{Is: TCP}), Do: Reset}, {Do: Reject}}},
		{Name: External, Rules: []Rule{r.mark(), {Do: Follow, Set: FrontsAll}}},
		{Name: NodePort, Rules: []Rule{r.mark(), {Do: Follow, Set: NodePortsAll}}},
		{Name: ExternalLocal, Rules: r.tell(FrontsAll, FrontsLocal)},
		{Name: NodePortLocal, Rules: r.tell(NodePortsAll, NodePortsLocal)},
		{Name: chainOutside, Rules: r.outside()},
		{Name: chainServices, Rules: services},
		{Name: chainUnallocated, Rules: r.unallocated()},
		{Name: chainFirewall, Rules: []Rule{{When: on(in(Firewalled), Cond{Is: In, Set: Allowed, Not: true}), Do: Discard}}},
		{Name: "firewall-prerouting", Hook: FirewallPrerouting, Rules: []Rule{{When: on(fresh), Do: Jump, Chain: chainFirewall}}},
		{Name: "firewall-output", Hook: FirewallOutput, Rules: []Rule{{When: on(fresh), Do: Jump, Chain: chainFirewall}}},
		{Name: "nat-prerouting", Hook: TranslatePrerouting, Rules: []Rule{{Do: Jump, Chain: chainServices}}},
		{Name: "nat-output", Hook: TranslateOutput, Rules: []Rule{{Do: Jump, Chain: chainServices}}},
		{Name: "nat-postrouting", Hook: TranslatePostrouting, Rules: []Rule{
			{When: on(Cond{Is: Marked, Bit: r.MarkBit}), Do: Masquerade, N: r.MarkBit},
			{When: on(Cond{Is: Translated}, in(Hairpin)), Do: Masquerade, N: r.MarkBit},
		}},
		{Name: "filter-input", Hook: FilterInput, Rules: append(refused[:1:1],
			Rule{When: append(on(fresh), nodePort...), Do: Follow, Set: RefusedNode})},
		{Name: "filter-forward", Hook: FilterForward, Rules: forward},
		{Name: "filter-output", Hook: FilterOutput, Rules: append(refused[:1:1], unallocated)},
	}
}

func (r Rules) mark() Rule { return Rule{Do: Mark, N: r.MarkBit} }

func loopback(fam state.Family) netip.Prefix {
	if fam == state.V6 {
		return netip.MustParsePrefix("::1/128")
	}
	return netip.MustParsePrefix("127.0.0.0/8")
}

// tell sends connections to an external address under externalTrafficPolicy Local on: those of pods and of this node go
// to any endpoint, as if they had left the cluster and come back through a load balancer; the node's are masqueraded, as
// the address they came from may be the load balancer's own. All others keep their source and stay on this node.
func (r Rules) tell(all, local Set) (out []Rule) {
	for _, pod := range r.Pods {
		out = append(out, Rule{When: on(pod), Do: Follow, Set: all})
	}
	here := on(Cond{Is: FromHere})
	return append(out, Rule{When: here, Do: Mark, N: r.MarkBit}, Rule{When: here, Do: Follow, Set: all}, Rule{Do: Follow, Set: local})
}

// outside marks connections to ClusterIPs whose replies would not come back this way: those from outside of the cluster,
// as far as we can tell.
func (r Rules) outside() (out []Rule) {
	if r.MasqueradeAll {
		return []Rule{r.mark()}
	}
	for _, pod := range r.Pods {
		out = append(out, Rule{When: on(pod), Do: Return})
	}
	if len(out) > 0 {
		out = append(out, r.mark())
	}
	return out
}

// unallocated refuses ports that a ClusterIP does not have, and drops what goes to addresses that no Service has.
func (r Rules) unallocated() []Rule {
	out := []Rule{{When: on(Cond{Is: In, Set: ClusterIPs}), Do: Goto, Chain: Refuse}}
	for _, p := range r.ServiceCIDRs {
		out = append(out, Rule{When: on(Cond{Is: To, Prefix: p}), Do: Discard})
	}
	return out
}

// sizedRules is what a chain that picks has.
func sizedRules(c Chain) (ChainRules, bool) {
	from, n, ok := c.Sized()
	return ChainRules{Name: c, Rules: []Rule{{Do: Pick, Set: from, N: n}}}, ok
}
