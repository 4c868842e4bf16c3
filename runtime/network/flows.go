package network

import (
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"worknode/kernel/conntrack"
	"worknode/kernel/nft"
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
	stale := func(f conntrack.Flow) bool {
		return slices.ContainsFunc(mappings, func(m Mapping) bool {
			if f.Dst.Port() != m.HostPort || !m.any() && f.Dst.Addr() != m.HostIP {
				return false
			}
			if gone {
				return f.Answers == m.To
			}
			a := f.Dst.Addr()
			return f.Answers != m.To && a.Is4() == m.To.Addr().Is4() && (a.IsLoopback() || slices.Contains(local, a))
		})
	}
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		if _, err := conntrack.EndUDP(p.conn, fam, stale); err != nil {
			slog.Warn("UDP flows of host ports not ended", "error", err)
		}
	}
}
