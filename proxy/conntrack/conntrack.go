// Package conntrack ends UDP flows whose endpoint is gone. TCP heals itself with resets and is never touched.
// It reads the kernel's table as a stream and keeps nothing.
package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/state"
)

// Source: linux nfnetlink_conntrack.h; x/sys has no names for these.
const (
	msgGet    = 1
	msgDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterProtoNum      = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM
)

// Flow is one tracked connection.
type Flow struct {
	proto       state.Proto
	src, dst    netip.AddrPort // as the client sent it
	replySource netip.AddrPort // who really answers
	tuple       []byte         // the original tuple's attributes, as the kernel wrote them
	id          []byte
}

// Clean deletes the UDP flows of fronts (addresses, with their ports) that are answered by somebody else than the
// endpoints given for the front. It returns how many it deleted.
// Errors: of the first dump; a flow that ended by itself meanwhile is none. Repeat: safe.
func Clean(conn *nft.Conn, fam state.Family, fronts map[netip.AddrPort][]netip.AddrPort) (deleted int, err error) {
	if len(fronts) == 0 {
		return 0, nil
	}
	family := nft.IPv4
	if fam == state.V6 {
		family = nft.IPv6
	}
	var stale []Flow
	each := func(body []byte) {
		f, ok := decode(body)
		if !ok || f.proto != state.UDP {
			return
		}
		if good, ours := fronts[f.dst]; ours && !contains(good, f.replySource) {
			f.tuple, f.id = append([]byte(nil), f.tuple...), append([]byte(nil), f.id...)
			stale = append(stale, f)
		}
	}
	reset := func() { stale = stale[:0] }
	err = conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgGet, family, true, onlyUDP, reset, each)
	if fault.Is(err, fault.Unsupported) || err != nil && !fault.Is(err, fault.Temporary) {
		// Kernels before 5.8 have no filter and may refuse it: take everything.
		err = conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgGet, family, true, nil, reset, each)
	}
	if err != nil {
		return 0, fmt.Errorf("conntrack: dump UDP flows: %w", err)
	}
	for _, f := range stale {
		derr := conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgDelete, family, false, func(r *nft.Request) {
			r.Bytes(ctaTupleOrig|unix.NLA_F_NESTED, f.tuple)
			if f.id != nil {
				r.Bytes(ctaID, f.id) // never a newer flow that has the same tuple
			}
		}, nil, func([]byte) {})
		switch {
		case derr == nil:
			deleted++
		case !fault.Is(derr, fault.NotFound) && err == nil:
			err = fmt.Errorf("conntrack: delete flow %v -> %v: %w", f.src, f.dst, derr)
		}
	}
	return deleted, err
}

// onlyUDP asks the kernel to leave out other protocols.
func onlyUDP(r *nft.Request) {
	r.Nest(ctaTupleOrig, func() {
		r.Nest(ctaTupleProto, func() { r.Bytes(ctaProtoNum, []byte{byte(state.UDP)}) })
	})
	r.Nest(ctaFilter, func() {
		r.Bytes(ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, filterProtoNum))
		r.Bytes(ctaFilterReplyFlags, binary.NativeEndian.AppendUint32(nil, 0))
	})
}

func decode(body []byte) (f Flow, ok bool) {
	nft.Attrs(body, func(a nft.Attr) {
		switch a.Type {
		case ctaTupleOrig:
			f.tuple = a.Data
			f.src, f.dst, f.proto = tuple(a.Data)
		case ctaTupleReply:
			f.replySource, _, _ = tuple(a.Data)
		case ctaID:
			f.id = a.Data
		}
	})
	return f, f.dst.IsValid() && f.replySource.IsValid()
}

func tuple(b []byte) (src, dst netip.AddrPort, proto state.Proto) {
	var from, to netip.Addr
	var sport, dport uint16
	nft.Attrs(b, func(a nft.Attr) {
		nft.Attrs(a.Data, func(in nft.Attr) {
			switch a.Type<<8 | in.Type {
			case ctaTupleIP<<8 | ctaIPv4Src, ctaTupleIP<<8 | ctaIPv6Src:
				from, _ = netip.AddrFromSlice(in.Data)
			case ctaTupleIP<<8 | ctaIPv4Dst, ctaTupleIP<<8 | ctaIPv6Dst:
				to, _ = netip.AddrFromSlice(in.Data)
			case ctaTupleProto<<8 | ctaProtoNum:
				proto = state.Proto(in.Data[0])
			case ctaTupleProto<<8 | ctaProtoSrcPort:
				sport = binary.BigEndian.Uint16(in.Data)
			case ctaTupleProto<<8 | ctaProtoDstPort:
				dport = binary.BigEndian.Uint16(in.Data)
			}
		})
	})
	return netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), proto
}

func contains(list []netip.AddrPort, a netip.AddrPort) bool {
	for _, x := range list {
		if x == a {
			return true
		}
	}
	return false
}
