package act

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// layout writes plan's rules in one family's words. Registers: R0 upwards, a value's four-byte words in a row, so that
// consecutive loads make a concatenated key.
type layout struct {
	fam   nft.Family
	addr  nft.Type
	words nft.Reg // of an address
	bytes uint32
	saddr uint32 // offsets in the IP header
	daddr uint32
}

func newLayout(fam state.Family) *layout {
	l := &layout{fam: nft.IPv4, addr: nft.TypeIPv4, words: 1, bytes: 4, saddr: 12, daddr: 16}
	if fam == state.V6 {
		l.fam, l.addr, l.words, l.bytes, l.saddr, l.daddr = nft.IPv6, nft.TypeIPv6, 4, 16, 8, 24
	}
	return l
}

func (l *layout) source(r nft.Reg) nft.Expr {
	return nft.Payload(nft.NetworkHeader, l.saddr, l.bytes, r)
}
func (l *layout) dest(r nft.Reg) nft.Expr { return nft.Payload(nft.NetworkHeader, l.daddr, l.bytes, r) }

// field returns the type of a key's part, how many registers it takes, and the step that loads it into r. The destination
// port is at the same place in TCP, UDP and SCTP. Protocols that have no ports put something else there; the protocol in
// the key keeps them out.
func (l *layout) field(f plan.Field, r nft.Reg) (nft.Type, nft.Reg, nft.Expr) {
	switch f {
	case plan.Daddr:
		return l.addr, l.words, l.dest(r)
	case plan.Saddr:
		return l.addr, l.words, l.source(r)
	case plan.Proto:
		return nft.TypeProto, 1, nft.L4Proto(r)
	case plan.Dport:
		return nft.TypePort, 1, nft.Payload(nft.TransportHeader, 2, 2, r)
	}
	return nft.TypeMark, 1, nft.Expr{} // Slot: the rule brings it
}

// key loads a set's key, but its slot, from R0 on; next is the register behind it.
func (l *layout) key(s plan.Set) (load []nft.Expr, next nft.Reg) {
	next = nft.R0
	for _, f := range s.Key() {
		if f == plan.Slot {
			break
		}
		_, n, x := l.field(f, next)
		load = append(load, x)
		next += n
	}
	return load, next
}

func (l *layout) sets() (out []nft.Set) {
	for s := plan.Set(0); s < plan.Sets; s++ {
		set := nft.Set{Name: s.String(), Verdicts: s.Verdicts(), Ranges: s == plan.Allowed}
		for _, f := range s.Key() {
			t, _, _ := l.field(f, nft.R0)
			set.Key = append(set.Key, t)
		}
		if s.Data() {
			set.Data = []nft.Type{l.addr, nft.TypePort}
		}
		out = append(out, set)
	}
	return out
}

// mostClients bounds the clients that one Service port with affinity remembers; the clients beyond are served without.
const mostClients = 1 << 16

// clients is a map of affinity.
func (l *layout) clients(name string) nft.Set {
	return nft.Set{Name: name, Key: []nft.Type{l.addr}, Data: []nft.Type{l.addr, nft.TypePort}, Dynamic: true, Size: mostClients}
}

// hooks says where and when the kernel calls a chain: translation where the field expects it (Kubernetes documents
// dstnat, srcnat and filter priorities as kube-proxy's), source ranges just before addresses change.
var hooks = map[plan.Hook]nft.Hook{
	plan.FirewallPrerouting:   {Type: "filter", Num: unix.NF_INET_PRE_ROUTING, Priority: -110},
	plan.FirewallOutput:       {Type: "filter", Num: unix.NF_INET_LOCAL_OUT, Priority: -110},
	plan.TranslatePrerouting:  {Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: -100},
	plan.TranslateOutput:      {Type: "nat", Num: unix.NF_INET_LOCAL_OUT, Priority: -100},
	plan.TranslatePostrouting: {Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: 100},
	plan.FilterInput:          {Type: "filter", Num: unix.NF_INET_LOCAL_IN, Priority: 0},
	plan.FilterForward:        {Type: "filter", Num: unix.NF_INET_FORWARD, Priority: 0},
	plan.FilterOutput:         {Type: "filter", Num: unix.NF_INET_LOCAL_OUT, Priority: 0},
}

// cond writes a question: the rule ends where the answer is no.
func (l *layout) cond(c plan.Cond) []nft.Expr {
	differs := nft.Equal
	if c.Not {
		differs = nft.NotEqual
	}
	switch c.Is {
	case plan.New:
		return append([]nft.Expr{nft.CtState(nft.R0)}, nft.AnyBit(nft.R0, nft.StateNew)...)
	case plan.Invalid:
		return append([]nft.Expr{nft.CtState(nft.R0)}, nft.AnyBit(nft.R0, nft.StateInvalid)...)
	case plan.Translated:
		return append([]nft.Expr{nft.CtStatus(nft.R0)}, nft.AnyBit(nft.R0, nft.StatusDNAT)...)
	case plan.Marked:
		return append([]nft.Expr{nft.Mark(nft.R0)}, nft.AnyBit(nft.R0, 1<<c.Bit)...)
	case plan.TCP:
		return []nft.Expr{nft.L4Proto(nft.R0), nft.Equal(nft.R0, []byte{byte(state.TCP)})}
	case plan.In:
		load, _ := l.key(c.Set)
		if c.Not {
			return append(load, nft.NotIn(c.Set.String(), nft.R0))
		}
		return append(load, nft.In(c.Set.String(), nft.R0))
	case plan.From, plan.To:
		load := l.source(nft.R0)
		if c.Is == plan.To {
			load = l.dest(nft.R0)
		}
		return []nft.Expr{load, nft.Bitwise(nft.R0, netmask(c.Prefix), make([]byte, l.bytes)), differs(nft.R0, c.Prefix.Addr().AsSlice())}
	case plan.FromHere:
		return nft.FromLocal(nft.R0)
	case plan.ToHere:
		return nft.Local(nft.R0)
	case plan.FromDevice:
		return nft.FromDevice(c.Device, nft.R0)
	case plan.FromDevices:
		return nft.FromDevices(c.Device, nft.R0)
	}
	panic(fmt.Sprintf("act: no words for condition %v", c))
}

func netmask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// endpoint loads an address into r and a port behind it.
func (l *layout) endpoint(to netip.AddrPort, r nft.Reg) []nft.Expr {
	return []nft.Expr{nft.Load(r, to.Addr().AsSlice()), nft.Load(r+l.words, []byte{byte(to.Port() >> 8), byte(to.Port())})}
}

// do writes what a rule does. Our mark bit only is changed: other bits belong to others.
func (l *layout) do(r *plan.Rule) []nft.Expr {
	verdict := func(code int32) []nft.Expr {
		return []nft.Expr{nft.To(nft.Verdict{Code: code, Chain: string(r.Chain)})}
	}
	bit := uint32(1) << r.N
	mark := func(xor uint32) []nft.Expr {
		return []nft.Expr{nft.Mark(nft.R0), nft.Bitwise(nft.R0, nft.Host32(^bit), nft.Host32(xor)), nft.SetMark(nft.R0)}
	}
	switch r.Do {
	case plan.Goto:
		return verdict(nft.Goto)
	case plan.Jump:
		return verdict(nft.Jump)
	case plan.Return:
		return verdict(nft.Return)
	case plan.Discard:
		return verdict(nft.Drop)
	case plan.Follow:
		load, _ := l.key(r.Set)
		return append(load, nft.Follow(r.Set.String(), nft.R0))
	case plan.Mark:
		return mark(bit)
	case plan.Masquerade:
		return append(mark(0), nft.Masquerade())
	case plan.Reset:
		return []nft.Expr{nft.Reset()}
	case plan.Reject:
		return []nft.Expr{nft.Reject(l.fam)}
	case plan.Pick:
		load, slot := l.key(r.Set)
		return append(load, nft.Random(uint32(r.N), slot), nft.Find(r.Set.String(), nft.R0, nft.R0), nft.DNAT(l.fam, nft.R0, nft.R0+l.words))
	case plan.Send:
		return append(l.endpoint(r.To, nft.R0), nft.DNAT(l.fam, nft.R0, nft.R0+l.words))
	case plan.Recall:
		found, fill := nft.R0+l.words, nft.R0+2*l.words+1
		out := append([]nft.Expr{l.source(nft.R0), nft.Find(r.Map, nft.R0, found)}, l.endpoint(r.To, fill)...)
		return append(out, nft.Remember(r.Map, nft.R0, fill, r.Keep), nft.DNAT(l.fam, found, found+l.words))
	case plan.Remember:
		out := append([]nft.Expr{l.source(nft.R0)}, l.endpoint(r.To, nft.R0+l.words)...)
		return append(out, nft.Remember(r.Map, nft.R0, nft.R0+l.words, r.Keep))
	}
	panic("act: no words for " + r.String())
}

// chain writes a chain's rules. The first one bears the hash, by which a look tells whether they are ours.
func (l *layout) chain(b *nft.Batch, c *plan.ChainRules) {
	note := noteOf(c)
	for i := range c.Rules {
		r := &c.Rules[i]
		if r.Do == plan.Choose {
			to := make([]string, len(r.Chains))
			for i, c := range r.Chains {
				to[i] = string(c)
			}
			b.AddChoice(string(c.Name), note, to)
		} else {
			var x []nft.Expr
			for _, w := range r.When {
				x = append(x, l.cond(w)...)
			}
			b.AddRuleNoted(string(c.Name), note, append(x, l.do(r)...)...)
		}
		note = ""
	}
}

func noteOf(c *plan.ChainRules) string {
	return fmt.Sprintf("worknode %016x/%d", c.Hash(), len(c.Rules))
}

func readNote(s string) (hash uint64, rules int) {
	if n, err := fmt.Sscanf(s, "worknode %x/%d", &hash, &rules); n != 2 || err != nil {
		return 0, 0
	}
	return hash, rules
}
