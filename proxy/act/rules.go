package act

import (
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// TableName is our table's name in every family.
const TableName = "worknode-proxy"

// Static is what the rules depend on besides Services. A change of it replaces the whole table.
type Static struct {
	Pods          []netip.Prefix // where pods live; connections to a ClusterIP from elsewhere are masqueraded
	MasqueradeAll bool           // masquerade those from pods too
	MarkBit       int            // of the packet mark, which says "masquerade me" between our own rules
}

// setNames are the sets' names in the table, by plan.Set.
var setNames = [plan.Sets]string{
	plan.Endpoints: "ep", plan.NodeEndpoints: "epnp", plan.Hairpin: "hairpin", plan.ClusterIPs: "cluster-ips",
	plan.NodeIPs: "node-ips", plan.NodePortsAll: "np-all", plan.NodePorts: "np", plan.Frontends: "svc",
	plan.Refused: "noep", plan.RefusedNode: "noep-np",
}

const (
	chainRefuse      = "refuse"
	chainNodeCluster = "np-ext-all"
)

// chainName is the table's name of a chain.
func chainName(c plan.Chain) string {
	switch c.Kind {
	case plan.Pick:
		return "c" + strconv.Itoa(int(c.N))
	case plan.PickNode:
		return "n" + strconv.Itoa(int(c.N))
	case plan.NodePortCluster:
		return chainNodeCluster
	case plan.Refuse:
		return chainRefuse
	}
	panic("act: a verdict without a chain")
}

// chainOf reads chainName backwards; None if the name is not one of ours.
func chainOf(name string) plan.Chain {
	switch name {
	case chainNodeCluster:
		return plan.Chain{Kind: plan.NodePortCluster}
	case chainRefuse:
		return plan.Chain{Kind: plan.Refuse}
	case "":
		return plan.Chain{}
	}
	kind := map[byte]plan.ChainKind{'c': plan.Pick, 'n': plan.PickNode}[name[0]]
	n, err := strconv.ParseUint(name[1:], 10, 16)
	if err != nil || kind == plan.None || n == 0 {
		return plan.Chain{}
	}
	return plan.Chain{Kind: kind, N: uint16(n)}
}

// layout writes the table's fixed parts and the chains that pick. Registers: R0 upwards, a value's four-byte words in
// a row, so that consecutive loads make a concatenated key.
type layout struct {
	fam    nft.Family
	addr   nft.Type
	words  nft.Reg // of an address
	bytes  uint32
	saddr  uint32 // offsets in the IP header
	daddr  uint32
	static Static
	pods   []netip.Prefix // of this family
}

func newLayout(fam state.Family, static Static) *layout {
	l := &layout{fam: nft.IPv4, addr: nft.TypeIPv4, words: 1, bytes: 4, saddr: 12, daddr: 16, static: static}
	if fam == state.V6 {
		l.fam, l.addr, l.words, l.bytes, l.saddr, l.daddr = nft.IPv6, nft.TypeIPv6, 4, 16, 8, 24
	}
	for _, p := range static.Pods {
		if state.Of(p.Addr()) == fam {
			l.pods = append(l.pods, p.Masked())
		}
	}
	return l
}

func (l *layout) source(r nft.Reg) nft.Expr {
	return nft.Payload(nft.NetworkHeader, l.saddr, l.bytes, r)
}
func (l *layout) dest(r nft.Reg) nft.Expr { return nft.Payload(nft.NetworkHeader, l.daddr, l.bytes, r) }

// port loads the destination port, which is at the same place in TCP, UDP and SCTP. Protocols that have no ports put
// something else there; the protocol in the key keeps them out.
func port(r nft.Reg) nft.Expr { return nft.Payload(nft.TransportHeader, 2, 2, r) }

// tuple loads address, protocol and port; the next free register is R0+words+2.
func (l *layout) tuple() []nft.Expr {
	return []nft.Expr{l.dest(nft.R0), nft.L4Proto(nft.R0 + l.words), port(nft.R0 + l.words + 1)}
}

func nodeTuple() []nft.Expr { return []nft.Expr{nft.L4Proto(nft.R0), port(nft.R0 + 1)} }

func rule(parts ...any) []nft.Expr {
	var out []nft.Expr
	for _, p := range parts {
		switch p := p.(type) {
		case nft.Expr:
			out = append(out, p)
		case []nft.Expr:
			out = append(out, p...)
		}
	}
	return out
}

func (l *layout) mark() uint32 { return 1 << l.static.MarkBit }

// setMark and clearMark change our bit only: other bits belong to others.
func (l *layout) setMark() []nft.Expr {
	return []nft.Expr{nft.Mark(nft.R0), nft.Bitwise(nft.R0, nft.Host32(^l.mark()), nft.Host32(l.mark())), nft.SetMark(nft.R0)}
}

func (l *layout) clearMark() []nft.Expr {
	return []nft.Expr{nft.Mark(nft.R0), nft.Bitwise(nft.R0, nft.Host32(^uint32(0)), nft.Host32(l.mark())), nft.SetMark(nft.R0)}
}

func (l *layout) sets() []nft.Set {
	front := []nft.Type{l.addr, nft.TypeProto, nft.TypePort}
	node := []nft.Type{nft.TypeProto, nft.TypePort}
	to := []nft.Type{l.addr, nft.TypePort}
	with := func(key []nft.Type, last nft.Type) []nft.Type { return append(key[:len(key):len(key)], last) }
	sets := [plan.Sets]nft.Set{
		plan.Endpoints:     {Key: with(front, nft.TypeMark), Data: to},
		plan.NodeEndpoints: {Key: with(node, nft.TypeMark), Data: to},
		plan.Hairpin:       {Key: append([]nft.Type{l.addr}, front...)},
		plan.ClusterIPs:    {Key: []nft.Type{l.addr}},
		plan.NodeIPs:       {Key: []nft.Type{l.addr}},
		plan.NodePortsAll:  {Key: node, Verdicts: true},
		plan.NodePorts:     {Key: node, Verdicts: true},
		plan.Frontends:     {Key: front, Verdicts: true},
		plan.Refused:       {Key: front, Verdicts: true},
		plan.RefusedNode:   {Key: node, Verdicts: true},
	}
	for i := range sets {
		sets[i].Name = setNames[i]
	}
	return sets[:]
}

// chain is one static chain and its rules.
type chain struct {
	name  string
	hook  *nft.Hook
	rules [][]nft.Expr
}

// chains lists the static chains in the order in which they can be made: those that are jumped to come first.
func (l *layout) chains() []chain {
	name := func(s plan.Set) string { return setNames[s] }
	hook := func(kind string, num uint32, prio int32) *nft.Hook {
		return &nft.Hook{Type: kind, Num: num, Priority: prio}
	}
	jump := func(to string) nft.Expr { return nft.To(nft.Verdict{Code: nft.Jump, Chain: to}) }
	fresh := rule(nft.CtState(nft.R0), nft.AnyBit(nft.R0, nft.StateNew))

	refuseFront := rule(fresh, l.tuple(), nft.Follow(name(plan.Refused), nft.R0))
	refuseNode := rule(fresh, l.dest(nft.R0), nft.In(name(plan.NodeIPs), nft.R0), nodeTuple(), nft.Follow(name(plan.RefusedNode), nft.R0))
	refuseRest := rule(fresh, l.dest(nft.R0), nft.In(name(plan.ClusterIPs), nft.R0), nft.To(nft.Verdict{Code: nft.Goto, Chain: chainRefuse}))
	hairpin := rule(nft.CtStatus(nft.R0), nft.AnyBit(nft.R0, nft.StatusDNAT), l.source(nft.R0), l.dest(nft.R0+l.words),
		nft.L4Proto(nft.R0+2*l.words), port(nft.R0+2*l.words+1), nft.In(name(plan.Hairpin), nft.R0), nft.Masquerade())

	return []chain{
		// A reset, as ICMP is limited to a few a second for each client: the next one would wait for a retransmission.
		{chainRefuse, nil, [][]nft.Expr{
			{nft.L4Proto(nft.R0), nft.Equal(nft.R0, []byte{byte(state.TCP)}), nft.Reset()},
			{nft.Reject(l.fam)},
		}},
		{chainNodeCluster, nil, [][]nft.Expr{l.setMark(), rule(nodeTuple(), nft.Follow(name(plan.NodePortsAll), nft.R0))}},
		{"services", nil, l.services()},
		{"nat-prerouting", hook("nat", unix.NF_INET_PRE_ROUTING, -100), [][]nft.Expr{{jump("services")}}},
		{"nat-output", hook("nat", unix.NF_INET_LOCAL_OUT, -100), [][]nft.Expr{{jump("services")}}},
		{"nat-postrouting", hook("nat", unix.NF_INET_POST_ROUTING, 100), [][]nft.Expr{
			rule(nft.Mark(nft.R0), nft.AnyBit(nft.R0, l.mark()), l.clearMark(), nft.Masquerade()),
			hairpin,
		}},
		{"filter-input", hook("filter", unix.NF_INET_LOCAL_IN, 0), [][]nft.Expr{refuseFront, refuseNode}},
		{"filter-forward", hook("filter", unix.NF_INET_FORWARD, 0), [][]nft.Expr{refuseFront, refuseRest}},
		{"filter-output", hook("filter", unix.NF_INET_LOCAL_OUT, 0), [][]nft.Expr{refuseFront, refuseRest}},
	}
}

// services are the rules that every new connection passes. Nothing here depends on how many Services there are.
func (l *layout) services() [][]nft.Expr {
	var rules [][]nft.Expr
	toService := rule(l.dest(nft.R0), nft.In(setNames[plan.ClusterIPs], nft.R0))
	switch {
	case l.static.MasqueradeAll:
		rules = append(rules, rule(toService, l.setMark()))
	case len(l.pods) > 0:
		outside := rule(toService)
		for _, p := range l.pods {
			outside = append(outside, l.source(nft.R0), nft.Bitwise(nft.R0, netmask(p), make([]byte, l.bytes)),
				nft.NotEqual(nft.R0, p.Addr().AsSlice()))
		}
		rules = append(rules, rule(outside, l.setMark()))
	}
	return append(rules,
		rule(l.tuple(), nft.Follow(setNames[plan.Frontends], nft.R0)),
		rule(l.dest(nft.R0), nft.In(setNames[plan.NodeIPs], nft.R0), nodeTuple(), nft.Follow(setNames[plan.NodePorts], nft.R0)),
	)
}

func netmask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// pick is the one rule of a chain that chooses among N slots.
func (l *layout) pick(c plan.Chain) []nft.Expr {
	key, set := l.tuple(), setNames[plan.Endpoints]
	slot := nft.R0 + l.words + 2
	if c.Kind == plan.PickNode {
		key, set, slot = nodeTuple(), setNames[plan.NodeEndpoints], nft.R0+2
	}
	return rule(key, nft.Random(uint32(c.N), slot), nft.Find(set, nft.R0, nft.R0), nft.DNAT(l.fam, nft.R0, nft.R0+l.words))
}

// write makes everything static, in an existing empty table.
func (l *layout) write(b *nft.Batch) {
	for _, s := range l.sets() {
		b.AddSet(s)
	}
	for _, c := range l.chains() {
		b.AddChain(c.name, c.hook)
		for _, r := range c.rules {
			b.AddRule(c.name, r...)
		}
	}
}
