package act

import (
	"encoding/binary"
	"net/netip"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

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
	switch k.Set {
	case plan.ClusterIPs, plan.NodeIPs:
		return appendAddr(b, k.Addr)
	case plan.Hairpin:
		b = appendAddr(appendAddr(b, k.Addr), k.Addr)
	case plan.Endpoints, plan.Frontends, plan.Refused:
		b = appendAddr(b, k.Addr)
	}
	b = appendPort(appendProto(b, k.Proto), k.Port)
	if k.Set == plan.Endpoints || k.Set == plan.NodeEndpoints {
		b = binary.NativeEndian.AppendUint32(b, uint32(k.Slot))
	}
	return b
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
func (l *layout) readElem(set plan.Set, e nft.Elem) (plan.Key, plan.Value, bool) {
	k := plan.Key{Set: set}
	r := reader{e.Key, true}
	switch set {
	case plan.ClusterIPs, plan.NodeIPs:
		k.Addr = r.addr(l)
		return k, plan.Value{}, r.ok && len(r.b) == 0
	case plan.Hairpin:
		k.Addr = r.addr(l)
		if r.addr(l) != k.Addr {
			return k, plan.Value{}, false
		}
	case plan.Endpoints, plan.Frontends, plan.Refused:
		k.Addr = r.addr(l)
	}
	k.Proto, k.Port = r.proto(), r.port()
	if set == plan.Endpoints || set == plan.NodeEndpoints {
		slot := binary.NativeEndian.Uint32(r.take(4))
		if slot >= 1<<16 {
			return k, plan.Value{}, false
		}
		k.Slot = uint16(slot)
		to := reader{e.Data, true}
		v := plan.Value{To: netip.AddrPortFrom(to.addr(l), to.port())}
		return k, v, r.ok && to.ok
	}
	if set == plan.Hairpin {
		return k, plan.Value{}, r.ok
	}
	if e.Verdict == nil || e.Verdict.Code != nft.Goto {
		return k, plan.Value{}, false
	}
	v := plan.Value{Chain: chainOf(e.Verdict.Chain)}
	return k, v, r.ok && v.Chain.Kind != plan.None
}
