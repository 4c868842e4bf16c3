package nft

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// Expr is one step of a rule. Steps read and write registers; a step that does not match ends the rule.
type Expr struct {
	Name   string // the kernel's name of the expression, as in CONFIG_NFT_*
	encode func(*encoder)
}

// Reg is a four-byte register; sixteen of them in a row are R0 .. R0+15. A value takes as many as it needs.
// Source: linux nf_tables.h, enum nft_registers (NFT_REG32_00 ..).
type Reg uint32

// R0 is the first register.
const R0 Reg = unix.NFT_REG32_00

// Payload loads n bytes of a header into reg. base is NetworkHeader or TransportHeader.
func Payload(base, offset, n uint32, reg Reg) Expr {
	return Expr{"payload", func(e *encoder) {
		e.u32(unix.NFTA_PAYLOAD_DREG, uint32(reg))
		e.u32(unix.NFTA_PAYLOAD_BASE, base)
		e.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		e.u32(unix.NFTA_PAYLOAD_LEN, n)
	}}
}

// Header bases for Payload.
const (
	NetworkHeader   = 1
	TransportHeader = 2
)

// L4Proto loads the transport protocol's number.
func L4Proto(reg Reg) Expr { return meta(unix.NFT_META_L4PROTO, reg) }

// Mark loads the packet's mark.
func Mark(reg Reg) Expr { return meta(unix.NFT_META_MARK, reg) }

func meta(key uint32, reg Reg) Expr {
	return Expr{"meta", func(e *encoder) {
		e.u32(unix.NFTA_META_DREG, uint32(reg))
		e.u32(unix.NFTA_META_KEY, key)
	}}
}

// SetMark writes the packet's mark from reg.
func SetMark(reg Reg) Expr {
	return Expr{"meta", func(e *encoder) {
		e.u32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		e.u32(unix.NFTA_META_SREG, uint32(reg))
	}}
}

// CtState and CtStatus load a packet's connection tracking state (bits 1<<state) and status.
func CtState(reg Reg) Expr  { return ct(unix.NFT_CT_STATE, reg) }
func CtStatus(reg Reg) Expr { return ct(unix.NFT_CT_STATUS, reg) }

// Bits of CtState and CtStatus. Source: linux nf_conntrack_common.h.
const (
	StateInvalid = 0x1
	StateNew     = 0x8
	StatusDNAT   = 0x20
)

func ct(key uint32, reg Reg) Expr {
	return Expr{"ct", func(e *encoder) {
		e.u32(unix.NFTA_CT_DREG, uint32(reg))
		e.u32(unix.NFTA_CT_KEY, key)
	}}
}

// Bitwise computes reg = (reg & mask) ^ xor; mask and xor have the value's length.
func Bitwise(reg Reg, mask, xor []byte) Expr {
	return Expr{"bitwise", func(e *encoder) {
		e.u32(unix.NFTA_BITWISE_SREG, uint32(reg))
		e.u32(unix.NFTA_BITWISE_DREG, uint32(reg))
		e.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		e.value(unix.NFTA_BITWISE_MASK, mask)
		e.value(unix.NFTA_BITWISE_XOR, xor)
	}}
}

// Equal and NotEqual go on only if reg does, or does not, hold v.
func Equal(reg Reg, v []byte) Expr    { return cmp(0, reg, v) }
func NotEqual(reg Reg, v []byte) Expr { return cmp(1, reg, v) }

func cmp(how uint32, reg Reg, v []byte) Expr {
	return Expr{"cmp", func(e *encoder) {
		e.u32(unix.NFTA_CMP_SREG, uint32(reg))
		e.u32(unix.NFTA_CMP_OP, how)
		e.value(unix.NFTA_CMP_DATA, v)
	}}
}

// AnyBit goes on only if reg, a number in host order, has a bit of mask. It overwrites reg.
func AnyBit(reg Reg, mask uint32) []Expr {
	return []Expr{Bitwise(reg, Host32(mask), Host32(0)), NotEqual(reg, Host32(0))}
}

// Host32 is v as the four bytes of a register in host order.
func Host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// In goes on only if the key that starts at reg is in the set.
func In(set string, reg Reg) Expr { return lookup(set, reg, nil) }

// NotIn goes on only if the key that starts at reg is not in the set.
func NotIn(set string, reg Reg) Expr {
	return Expr{"lookup", func(e *encoder) {
		e.str(unix.NFTA_LOOKUP_SET, set)
		e.u32(unix.NFTA_LOOKUP_SREG, uint32(reg))
		e.u32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
	}}
}

// Find goes on only if the key at reg is in the map, and loads its data into to.
func Find(set string, reg, to Reg) Expr { return lookup(set, reg, &to) }

// Follow takes the verdict that the map has for the key at reg, and goes on if there is none.
func Follow(set string, reg Reg) Expr {
	to := Reg(unix.NFT_REG_VERDICT)
	return lookup(set, reg, &to)
}

func lookup(set string, reg Reg, to *Reg) Expr {
	return Expr{"lookup", func(e *encoder) {
		e.str(unix.NFTA_LOOKUP_SET, set)
		e.u32(unix.NFTA_LOOKUP_SREG, uint32(reg))
		if to != nil {
			e.u32(unix.NFTA_LOOKUP_DREG, uint32(*to))
		}
	}}
}

// Remember adds an element to a map made Dynamic, which vanishes after a time: the key at reg, the data at data. If the
// key is there, it keeps its data and its time begins anew. If the map is full, the rule ends here.
// The kernel counts in milliseconds.
func Remember(set string, reg, data Reg, keep time.Duration) Expr {
	return Expr{"dynset", func(e *encoder) {
		e.str(unix.NFTA_DYNSET_SET_NAME, set)
		e.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		e.u32(unix.NFTA_DYNSET_SREG_KEY, uint32(reg))
		e.u32(unix.NFTA_DYNSET_SREG_DATA, uint32(data))
		e.bytes(unix.NFTA_DYNSET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(keep.Milliseconds())))
	}}
}

// Random loads a number in 0..n-1, in host order.
func Random(n uint32, reg Reg) Expr {
	return Expr{"numgen", func(e *encoder) {
		e.u32(unix.NFTA_NG_DREG, uint32(reg))
		e.u32(unix.NFTA_NG_MODULUS, n)
		e.u32(unix.NFTA_NG_TYPE, unix.NFT_NG_RANDOM)
		e.u32(unix.NFTA_NG_OFFSET, 0)
	}}
}

// DNAT rewrites the destination to the address at addr and the port at port, and accepts.
func DNAT(fam Family, addr, port Reg) Expr {
	return Expr{"nat", func(e *encoder) {
		e.u32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		e.u32(unix.NFTA_NAT_FAMILY, uint32(fam))
		e.u32(unix.NFTA_NAT_REG_ADDR_MIN, uint32(addr))
		e.u32(unix.NFTA_NAT_REG_PROTO_MIN, uint32(port))
	}}
}

// Masquerade rewrites the source to the outgoing interface's address, with a fully random port (the kernel's
// sequential choice loses races between CPUs: two flows get one port and the second packet is dropped).
func Masquerade() Expr {
	return Expr{"masq", func(e *encoder) { e.u32(unix.NFTA_MASQ_FLAGS, 0x10) }} // NF_NAT_RANGE_PROTO_RANDOM_FULLY
}

// Reject answers with ICMP port unreachable, which a connecting TCP socket sees as ECONNREFUSED. The kernel sends only
// a few of them a second to one host (net.ipv4.icmp_ratelimit).
func Reject(fam Family) Expr {
	code := byte(3) // ICMP_PORT_UNREACH
	if fam == IPv6 {
		code = 4 // ICMPV6_PORT_UNREACH
	}
	return Expr{"reject", func(e *encoder) {
		e.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMP_UNREACH)
		e.bytes(unix.NFTA_REJECT_ICMP_CODE, []byte{code})
	}}
}

// Reset answers a TCP packet with a reset; only for rules that match TCP alone.
func Reset() Expr {
	return Expr{"reject", func(e *encoder) {
		e.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST)
		e.bytes(unix.NFTA_REJECT_ICMP_CODE, []byte{0})
	}}
}

// Load puts bytes, at most sixteen, into the registers from reg on.
func Load(reg Reg, v []byte) Expr {
	return Expr{"immediate", func(e *encoder) {
		e.u32(unix.NFTA_IMMEDIATE_DREG, uint32(reg))
		e.value(unix.NFTA_IMMEDIATE_DATA, v)
	}}
}

// To ends the rule with a verdict.
func To(v Verdict) Expr {
	return Expr{"immediate", func(e *encoder) {
		e.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		e.verdict(unix.NFTA_IMMEDIATE_DATA, v)
	}}
}
