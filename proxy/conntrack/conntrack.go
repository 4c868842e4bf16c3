// Package conntrack ends UDP flows whose endpoint is gone.
package conntrack

import (
	"maps"
	"net/netip"
	"slices"

	"worknode/kernel/conntrack"
	"worknode/kernel/nft"
	"worknode/proxy/state"
)

// Clean deletes the UDP flows of fronts (addresses, with their ports) that stale picks by where they were sent to and who
// answers them. stale is asked again right before a flow is deleted. It returns how many it deleted.
// Errors: of the first dump; a flow that ended by itself meanwhile is none. Repeat: safe.
func Clean(conn *nft.Conn, fam state.Family, fronts map[netip.AddrPort][]netip.AddrPort, stale func(to, answers netip.AddrPort) bool) (deleted int, err error) {
	if len(fronts) == 0 {
		return 0, nil
	}
	family := nft.IPv4
	if fam == state.V6 {
		family = nft.IPv6
	}
	to := slices.Collect(maps.Keys(fronts))
	return conntrack.EndUDPTo(conn, family, to, func(f conntrack.Flow) bool { return stale(f.Dst, f.Answers) })
}
