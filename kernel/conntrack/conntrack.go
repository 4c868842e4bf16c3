// Package conntrack ends tracked UDP flows that lead where they no longer should: translation is decided by a flow's
// first packet, and a UDP client that keeps sending keeps its flow alive. TCP heals itself with resets and is never
// touched. It reads the kernel's table as a stream and keeps nothing.
// Source: linux nfnetlink_conntrack.h; x/sys has no names for its constants.
package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
)

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
	filterDst           = 1 << 1 // CTA_FILTER_F_CTA_IP_DST
	filterProtoNum      = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM
	filterDstPort       = 1 << 5 // CTA_FILTER_F_CTA_PROTO_DST_PORT
)

// Flow is one tracked connection.
type Flow struct {
	Src, Dst netip.AddrPort // as the client sent it
	Answers  netip.AddrPort // who really answers

	proto     uint8
	tuple, id []byte // the original tuple's attributes and the flow's number, as the kernel wrote them
}

// EndUDP deletes the UDP flows of one family that stale picks, and returns how many it deleted. A flow is judged when it is
// found, and again just before its end.
// Errors: of the dump, or of the first deletion that failed; a flow that ended by itself meanwhile is none. Repeat: safe.
func EndUDP(conn *nft.Conn, family nft.Family, stale func(Flow) bool) (deleted int, err error) {
	found, err := find(conn, family, netip.AddrPort{}, stale)
	if err != nil {
		return 0, err
	}
	ended, err := end(conn, family, found, stale)
	return len(ended), err
}

// fewFronts is up to how many destinations are asked for one by one. The kernel walks all its flows for each question, but
// that is a tenth of the time that it takes to tell them all.
const fewFronts = 6

// EndUDPTo is EndUDP for flows that were sent to one of to. It returns those that it has deleted.
func EndUDPTo(conn *nft.Conn, family nft.Family, to []netip.AddrPort, stale func(Flow) bool) (ended []Flow, err error) {
	var found []Flow
	if len(to) > fewFronts {
		if found, err = find(conn, family, netip.AddrPort{}, stale); err != nil {
			return nil, err
		}
		to = nil
	}
	for _, front := range to {
		some, err := find(conn, family, front, func(f Flow) bool { return f.Dst == front && stale(f) })
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return end(conn, family, found, stale)
}

// find dumps the UDP flows that stale picks, of those to one destination if to is valid.
func find(conn *nft.Conn, family nft.Family, to netip.AddrPort, stale func(Flow) bool) (found []Flow, err error) {
	each := func(body []byte) {
		if f, ok := decode(body); ok && f.proto == unix.IPPROTO_UDP && stale(f) {
			f.tuple, f.id = slices.Clone(f.tuple), slices.Clone(f.id)
			found = append(found, f)
		}
	}
	reset := func() { found = found[:0] }
	dump := func(filter func(*nft.Request)) error {
		return conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgGet, family, true, filter, reset, each)
	}
	err = dump(func(r *nft.Request) { onlyUDP(r, to) })
	if fault.Is(err, fault.Unsupported) || err != nil && !fault.Is(err, fault.Temporary) {
		err = dump(nil) // kernels before 5.8 have no filter and may refuse it: take everything
	}
	if err != nil {
		return nil, fmt.Errorf("conntrack: dump UDP flows: %w", err)
	}
	return found, nil
}

// end deletes those of the flows that are stale still.
func end(conn *nft.Conn, family nft.Family, flows []Flow, stale func(Flow) bool) (ended []Flow, err error) {
	for _, f := range flows {
		if !stale(f) {
			continue
		}
		gone := conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgDelete, family, false, func(r *nft.Request) {
			r.Bytes(ctaTupleOrig|unix.NLA_F_NESTED, f.tuple)
			if f.id != nil {
				r.Bytes(ctaID, f.id) // never a newer flow that has the same tuple
			}
		}, nil, func([]byte) {})
		switch {
		case gone == nil:
			ended = append(ended, f)
		case !fault.Is(gone, fault.NotFound) && err == nil:
			err = fmt.Errorf("conntrack: delete flow %v -> %v: %w", f.Src, f.Dst, gone)
		}
	}
	return ended, err
}

// Translated tells whether the flow goes elsewhere than to where it was sent.
func (f Flow) Translated() bool { return f.Answers != f.Dst }

// EndTurned deletes the flows that run the other way round than those given, where there are any. An answer that was on its
// way while its flow was ended begins a flow of its own; what the client sends next counts as the answer to that, and is not
// translated. It returns those of flows that had one: another answer may have been on its way just then, so ask again.
// Errors: of the first that failed; a flow that is not there is none. Repeat: safe.
func EndTurned(conn *nft.Conn, family nft.Family, flows []Flow) (had []Flow, err error) {
	for _, f := range flows {
		gone := conn.Request(unix.NFNL_SUBSYS_CTNETLINK, msgDelete, family, false, func(r *nft.Request) {
			r.Nest(ctaTupleOrig, func() {
				src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
				if f.Dst.Addr().Is6() {
					src, dst = ctaIPv6Src, ctaIPv6Dst
				}
				r.Nest(ctaTupleIP, func() {
					r.Bytes(src, f.Dst.Addr().AsSlice())
					r.Bytes(dst, f.Src.Addr().AsSlice())
				})
				r.Nest(ctaTupleProto, func() {
					r.Bytes(ctaProtoNum, []byte{f.proto})
					r.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, f.Dst.Port()))
					r.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, f.Src.Port()))
				})
			})
		}, nil, func([]byte) {})
		switch {
		case gone == nil:
			had = append(had, f)
		case !fault.Is(gone, fault.NotFound) && err == nil:
			err = fmt.Errorf("conntrack: delete flow %v -> %v: %w", f.Dst, f.Src, gone)
		}
	}
	return had, err
}

// onlyUDP asks the kernel to leave out other protocols, and other destinations if to is valid.
func onlyUDP(r *nft.Request, to netip.AddrPort) {
	flags := uint32(filterProtoNum)
	r.Nest(ctaTupleOrig, func() {
		if to.IsValid() {
			flags |= filterDstPort
		}
		if to.Addr().Is4() {
			// For IPv6 the kernel has its comparison the wrong way round and leaves out just what we ask for (seen on
			// 6.18, ctnetlink_filter_match_tuple): there the port has to do.
			flags |= filterDst
			r.Nest(ctaTupleIP, func() { r.Bytes(ctaIPv4Dst, to.Addr().AsSlice()) })
		}
		r.Nest(ctaTupleProto, func() {
			r.Bytes(ctaProtoNum, []byte{unix.IPPROTO_UDP})
			if to.IsValid() {
				r.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, to.Port()))
			}
		})
	})
	r.Nest(ctaFilter, func() {
		r.Bytes(ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, flags))
		r.Bytes(ctaFilterReplyFlags, binary.NativeEndian.AppendUint32(nil, 0))
	})
}

func decode(body []byte) (f Flow, ok bool) {
	nft.Attrs(body, func(a nft.Attr) {
		switch a.Type {
		case ctaTupleOrig:
			f.tuple = a.Data
			f.Src, f.Dst, f.proto = tuple(a.Data)
		case ctaTupleReply:
			f.Answers, _, _ = tuple(a.Data)
		case ctaID:
			f.id = a.Data
		}
	})
	return f, f.Dst.IsValid() && f.Answers.IsValid()
}

func tuple(b []byte) (src, dst netip.AddrPort, proto uint8) {
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
				if len(in.Data) > 0 {
					proto = in.Data[0]
				}
			case ctaTupleProto<<8 | ctaProtoSrcPort, ctaTupleProto<<8 | ctaProtoDstPort:
				if len(in.Data) < 2 {
					return
				}
				if n := binary.BigEndian.Uint16(in.Data); in.Type == ctaProtoSrcPort {
					sport = n
				} else {
					dport = n
				}
			}
		})
	})
	return netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), proto
}
