package network

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
)

// Source: linux nfnetlink_conntrack.h; x/sys has no names for these.
const (
	ctGet    = 1
	ctDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
)

// endFlows ends tracked UDP flows that go another way than the mappings now say: translation is decided by a flow's first
// packet, and a UDP client that keeps sending keeps its flow alive. TCP heals itself with resets.
// gone: the mappings have ended, and so do the flows that they led to the pods. Otherwise they are new, and flows to their
// ports that lead elsewhere end. What cannot be ended is logged: it ends by itself once its client is silent for a while.
func (p *Ports) endFlows(mappings []Mapping, gone bool) {
	mappings = slices.DeleteFunc(slices.Clone(mappings), func(m Mapping) bool { return m.Proto != unix.IPPROTO_UDP })
	if len(mappings) == 0 {
		return
	}
	var local []netip.Addr // a flow to port 53 of somebody else's machine is none of ours
	if !gone {
		all, err := p.links.Addresses()
		if err != nil {
			slog.Warn("UDP flows to new host ports not looked at", "error", err)
			return
		}
		for _, a := range all {
			local = append(local, a.Prefix.Addr())
		}
	}
	stale := func(f flow) bool {
		return slices.ContainsFunc(mappings, func(m Mapping) bool {
			if f.dst.Port() != m.HostPort || !m.any() && f.dst.Addr() != m.HostIP {
				return false
			}
			if gone {
				return f.answers == m.To
			}
			a := f.dst.Addr()
			return f.answers != m.To && a.Is4() == m.To.Addr().Is4() && (a.IsLoopback() || slices.Contains(local, a))
		})
	}
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := p.endFamily(fam, stale); err != nil {
			slog.Warn("UDP flows of host ports not ended", "error", err)
		}
	}
}

func (p *Ports) endFamily(fam nft.Family, stale func(flow) bool) error {
	var found []flow
	err := p.conn.Request(unix.NFNL_SUBSYS_CTNETLINK, ctGet, fam, true, nil, func() { found = found[:0] }, func(body []byte) {
		if f, ok := decodeFlow(body); ok && f.proto == unix.IPPROTO_UDP && stale(f) {
			f.tuple, f.id = slices.Clone(f.tuple), slices.Clone(f.id)
			found = append(found, f)
		}
	})
	if err != nil {
		return err
	}
	for _, f := range found {
		err := p.conn.Request(unix.NFNL_SUBSYS_CTNETLINK, ctDelete, fam, false, func(r *nft.Request) {
			r.Bytes(ctaTupleOrig|unix.NLA_F_NESTED, f.tuple)
			if f.id != nil {
				r.Bytes(ctaID, f.id) // never a newer flow that has the same tuple
			}
		}, nil, func([]byte) {})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// flow is one tracked connection.
type flow struct {
	proto     uint8
	dst       netip.AddrPort // as the client sent it
	answers   netip.AddrPort // who really answers
	tuple, id []byte         // the kernel's words for it
}

func decodeFlow(body []byte) (f flow, ok bool) {
	nft.Attrs(body, func(a nft.Attr) {
		switch a.Type {
		case ctaTupleOrig:
			f.tuple = a.Data
			_, f.dst, f.proto = decodeTuple(a.Data)
		case ctaTupleReply:
			f.answers, _, _ = decodeTuple(a.Data)
		case ctaID:
			f.id = a.Data
		}
	})
	return f, f.dst.IsValid() && f.answers.IsValid()
}

func decodeTuple(b []byte) (src, dst netip.AddrPort, proto uint8) {
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
