package act

import (
	"encoding/binary"
	"net/netip"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// mostElem is how much a key, its end and a value take at most: Allowed's are the longest, 40 bytes each.
const mostElem = 128

// Each field of a key takes whole four-byte words: an address one or four, a protocol and a port one each.

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

func appendProto(b []byte, p state.Proto) []byte { return append(b, byte(p), 0, 0, 0) }

func appendPort(b []byte, p uint16) []byte { return append(b, byte(p>>8), byte(p), 0, 0) }

// appendKey writes a key as the kernel stores it.
func appendKey(b []byte, k plan.Key) []byte {
	for _, f := range k.Set.Key() {
		switch f {
		case plan.Daddr:
			b = appendAddr(b, k.Addr)
		case plan.Saddr:
			if k.Set == plan.Allowed {
				b = appendAddr(b, k.From.Addr())
			} else {
				b = appendAddr(b, k.Addr)
			}
		case plan.Proto:
			b = appendProto(b, k.Proto)
		case plan.Dport:
			b = appendPort(b, k.Port)
		case plan.Slot:
			b = binary.NativeEndian.AppendUint32(b, uint32(k.Slot))
		}
	}
	return b
}

// appendKeyEnd writes the last key of a range.
func appendKeyEnd(b []byte, k plan.Key) []byte {
	b = appendPort(appendProto(appendAddr(b, k.Addr), k.Proto), k.Port)
	return appendAddr(b, last(k.From))
}

// last is the last address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i, m := range netmask(p) {
		b[i] |= ^m
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func appendTo(b []byte, to netip.AddrPort) []byte {
	return appendPort(appendAddr(b, to.Addr()), to.Port())
}

// reader takes fields off a key; ok turns false when it is too short.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.ok = false
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) addr(l *layout) netip.Addr {
	a, _ := netip.AddrFromSlice(r.take(int(l.bytes)))
	return a
}

func (r *reader) proto() state.Proto { return state.Proto(r.take(4)[0]) }

func (r *reader) port() uint16 { return binary.BigEndian.Uint16(r.take(4)) }

// readElem turns a dumped element into the plan's words; false if it is nothing we could have written.
func (l *layout) readElem(set plan.Set, e nft.Elem) (k plan.Key, v plan.Value, ok bool) {
	k.Set = set
	r := reader{e.Key, true}
	for _, f := range set.Key() {
		switch f {
		case plan.Daddr:
			k.Addr = r.addr(l)
		case plan.Saddr:
			from := r.addr(l)
			if set == plan.Allowed {
				if k.From, ok = l.readRange(from, e.KeyEnd); !ok {
					return k, v, false
				}
			} else {
				k.Addr = from
			}
		case plan.Proto:
			k.Proto = r.proto()
		case plan.Dport:
			k.Port = r.port()
		case plan.Slot:
			slot := binary.NativeEndian.Uint32(r.take(4))
			k.Slot = uint16(slot)
			r.ok = r.ok && slot < 1<<16
		}
	}
	ok = r.ok && len(r.b) == 0
	switch {
	case set.Data():
		to := reader{e.Data, true}
		v.To = netip.AddrPortFrom(to.addr(l), to.port())
		ok = ok && to.ok && len(to.b) == 0
	case set.Verdicts() && e.Verdict != nil && e.Verdict.Code == nft.Drop:
		v.Chain = plan.Drop
	case set.Verdicts():
		ok = ok && e.Verdict != nil && e.Verdict.Code == nft.Goto && e.Verdict.Chain != string(plan.Drop)
		if ok {
			v.Chain = plan.Chain(e.Verdict.Chain)
		}
	}
	// The same element written again must be the same bytes: hairpin's address stands twice, ranges have their end.
	return k, v, ok && string(appendKey(nil, k)) == string(e.Key)
}

// readRange turns the ends of a range of sources into a prefix; false if it is none.
func (l *layout) readRange(from netip.Addr, end []byte) (netip.Prefix, bool) {
	if len(end) < int(l.bytes) {
		return netip.Prefix{}, false
	}
	to, ok := netip.AddrFromSlice(end[len(end)-int(l.bytes):])
	if !ok {
		return netip.Prefix{}, false
	}
	a, b := from.AsSlice(), to.AsSlice()
	bits := 0
	for bits < from.BitLen() && a[bits/8]>>(7-bits%8)&1 == b[bits/8]>>(7-bits%8)&1 {
		bits++
	}
	p := netip.PrefixFrom(from, bits)
	return p, p.Masked() == p && last(p) == to
}
