package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
)

// Sets of the table of host ports.
const (
	setAt      = "at"      // address . protocol . port → pod: ports of one address
	setAny     = "any"     // protocol . port → pod: ports of every address of the node
	setHairpin = "hairpin" // pod . pod . protocol . port: a pod that reaches itself by its host port
	setTurn    = "turn"    // in device . out device . pod . protocol . port: a neighbour of the pod does
	setWires   = "wires"   // devices with route_localnet, IPv4 only
)

// Priorities. Services come first: both translate at -100, and a NodePort should win over a hostPort of the same number,
// as it does where both are made by iptables.
const (
	prioGuard = -300 // before connection tracking gives answers to 127.0.0.1 their address back
	prioDNAT  = -99
	prioSNAT  = 99
)

// content is what is in a table's sets: element by set and key.
type content map[string]nft.Elem

func (c content) add(set string, key, data []byte) {
	c[set+"\x00"+string(key)] = nft.Elem{Key: key, Data: data}
}

// compile turns the mappings into the elements of one family's table.
func (p *Ports) compile(fam nft.Family) content {
	out := content{}
	for _, list := range p.bySbx {
		for _, m := range list {
			if m.To.Addr().Is4() != (fam == nft.IPv4) {
				continue
			}
			pod := m.To.Addr().AsSlice()
			to := join(pod, port(m.To.Port()))
			front, target := join(proto(m.Proto), port(m.HostPort)), join(proto(m.Proto), port(m.To.Port()))
			if m.any() {
				out.add(setAny, front, to)
			} else {
				out.add(setAt, join(m.HostIP.AsSlice(), front), to)
			}
			out.add(setHairpin, join(pod, pod, target), nil)
			if p.sharing {
				device := nft.Host32(m.device)
				out.add(setTurn, join(device, device, pod, target), nil)
			}
			if fam == nft.IPv4 {
				p.wires[m.device] = true
			}
		}
	}
	if fam == nft.IPv4 {
		for w := range p.wires {
			out.add(setWires, nft.Host32(w), nil)
		}
	}
	return out
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
func proto(p uint8) []byte        { return []byte{p, 0, 0, 0} }
func port(p uint16) []byte        { return []byte{byte(p >> 8), byte(p), 0, 0} }
func host32(b []byte) uint32      { return binary.NativeEndian.Uint32(b) }

// apply brings the tables to what the mappings say.
func (p *Ports) apply() error {
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		want := p.compile(fam)
		have, made := p.have[fam]
		if !made && !serves(want) {
			continue
		}
		err := p.change(fam, have, want)
		if !made || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Exists) { // somebody else was at our table
			_, missing := p.conn.Table(fam, p.table)
			err = p.replace(fam, missing == nil, want)
		}
		if err != nil {
			return fmt.Errorf("host ports: %w", err)
		}
	}
	return p.openWires()
}

// serves tells whether there is a port to serve; wires alone need no table to be made.
func serves(c content) bool {
	for key := range c {
		if !strings.HasPrefix(key, setWires) {
			return true
		}
	}
	return false
}

// change writes the difference as one transaction.
func (p *Ports) change(fam nft.Family, have, want content) error {
	if have == nil {
		return nil
	}
	b := nft.NewBatch(fam, p.table)
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if e, same := want[key]; !same || !bytes.Equal(e.Data, have[key].Data) {
			b.DelElems(setOf(key), []nft.Elem{have[key]})
		}
	}
	addMissing(b, have, want)
	if err := p.conn.Commit(b); err != nil {
		return err
	}
	p.have[fam] = want
	return nil
}

func addMissing(b *nft.Batch, have, want content) {
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if e, same := have[key]; !same || !bytes.Equal(e.Data, want[key].Data) {
			b.AddElems(setOf(key), []nft.Elem{want[key]})
		}
	}
}

func setOf(key string) string {
	set, _, _ := strings.Cut(key, "\x00")
	return set
}

// replace puts a new table with this content in the place of an old one, or of none, in one transaction.
func (p *Ports) replace(fam nft.Family, exists bool, want content) error {
	write := func(flags uint32) error {
		b := nft.NewBatch(fam, p.table)
		if exists {
			b.AddTable(flags, "") // claim it: an owned table obeys nobody else
			b.DelTable()
		}
		b.AddTable(flags, "worknode: host ports of pods")
		p.rules(fam, b)
		addMissing(b, nil, want)
		return p.conn.Commit(b)
	}
	err := write(nft.FlagOwner | nft.FlagPersist) // as the bridge's table
	if err != nil && !fault.Is(err, fault.Denied) {
		err = write(0)
	}
	switch {
	case fault.Is(err, fault.NotFound), fault.Is(err, fault.Unsupported), errors.Is(err, unix.EINVAL):
		return fault.Hint(fault.New(fault.Unsupported, "%w", err), "the kernel needs nftables with CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_CT and CONFIG_NFT_FIB_IPV4/6")
	case fault.Is(err, fault.Denied):
		return fault.Hint(err, "either CAP_NET_ADMIN is missing, or another runtime serves host ports under this name")
	case err == nil:
		p.have[fam] = want
	}
	return err
}

// shape is where an address family keeps what the rules read.
type shape struct {
	addr       nft.Type
	words      nft.Reg
	bytes      uint32
	saddr, dst uint32
}

func shapeOf(fam nft.Family) shape {
	if fam == nft.IPv4 {
		return shape{nft.TypeIPv4, 1, 4, sourceAt, destinationAt}
	}
	return shape{nft.TypeIPv6, 4, 16, 8, 24} // RFC 8200, section 3
}

func (s shape) source(r nft.Reg) nft.Expr { return nft.Payload(nft.NetworkHeader, s.saddr, s.bytes, r) }
func (s shape) dest(r nft.Reg) nft.Expr   { return nft.Payload(nft.NetworkHeader, s.dst, s.bytes, r) }

// destPort loads protocol and destination port, which is at the same place in TCP, UDP and SCTP.
func destPort(r nft.Reg) []nft.Expr {
	return []nft.Expr{nft.L4Proto(r), nft.Payload(nft.TransportHeader, 2, 2, r+1)}
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

func (p *Ports) rules(fam nft.Family, b *nft.Batch) {
	s := shapeOf(fam)
	front := []nft.Type{nft.TypeProto, nft.TypePort}
	to := []nft.Type{s.addr, nft.TypePort}
	b.AddSet(nft.Set{Name: setAt, Key: slices.Concat([]nft.Type{s.addr}, front), Data: to})
	b.AddSet(nft.Set{Name: setAny, Key: front, Data: to})
	b.AddSet(nft.Set{Name: setHairpin, Key: slices.Concat([]nft.Type{s.addr, s.addr}, front)})
	b.AddSet(nft.Set{Name: setTurn, Key: slices.Concat([]nft.Type{nft.TypeMark, nft.TypeMark, s.addr}, front)})

	dnat := nft.DNAT(fam, nft.R0, nft.R0+s.words)
	b.AddChain("ports", nil)
	b.AddRule("ports", slices.Concat([]nft.Expr{s.dest(nft.R0)}, destPort(nft.R0+s.words), []nft.Expr{nft.Find(setAt, nft.R0, nft.R0), dnat})...)
	b.AddRule("ports", slices.Concat(nft.Local(nft.R0), destPort(nft.R0), []nft.Expr{nft.Find(setAny, nft.R0, nft.R0), dnat})...)
	for name, hook := range map[string]uint32{"nat-prerouting": unix.NF_INET_PRE_ROUTING, "nat-output": unix.NF_INET_LOCAL_OUT} {
		b.AddChain(name, &nft.Hook{Type: "nat", Num: hook, Priority: prioDNAT})
		b.AddRule(name, nft.To(nft.Verdict{Code: nft.Jump, Chain: "ports"}))
	}
	translated := append([]nft.Expr{nft.CtStatus(nft.R0)}, nft.AnyBit(nft.R0, nft.StatusDNAT)...)
	b.AddChain("nat-postrouting", &nft.Hook{Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: prioSNAT})
	b.AddRule("nat-postrouting", slices.Concat(translated, []nft.Expr{s.source(nft.R0), s.dest(nft.R0 + s.words)},
		destPort(nft.R0+2*s.words), []nft.Expr{nft.In(setHairpin, nft.R0), nft.Masquerade()})...)
	b.AddRule("nat-postrouting", slices.Concat(translated, []nft.Expr{nft.InDevice(nft.R0), nft.OutDevice(nft.R0 + 1), s.dest(nft.R0 + 2)},
		destPort(nft.R0+2+s.words), []nft.Expr{nft.In(setTurn, nft.R0), nft.Masquerade()})...)
	if fam == nft.IPv4 {
		loopbackRules(b, translated)
	}
}

// loopbackRules let 127.0.0.1 reach pods, and keep pods from reaching 127.0.0.1 (the class of CVE-2020-8558).
func loopbackRules(b *nft.Batch, translated []nft.Expr) {
	b.AddSet(nft.Set{Name: setWires, Key: []nft.Type{nft.TypeMark}})
	b.AddRule("nat-postrouting", slices.Concat(translated, inside(sourceAt, loopback, true),
		[]nft.Expr{nft.OutDevice(nft.R0), nft.In(setWires, nft.R0), nft.Masquerade()})...)
	b.AddChain("guard", &nft.Hook{Type: "filter", Num: unix.NF_INET_PRE_ROUTING, Priority: prioGuard})
	b.AddRule("guard", slices.Concat(inside(destinationAt, loopback, true),
		[]nft.Expr{nft.InDevice(nft.R0), nft.In(setWires, nft.R0), nft.To(nft.Verdict{Code: nft.Drop})})...)
}
