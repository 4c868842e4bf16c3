// Package conntrack ends UDP flows whose endpoint is gone.
package conntrack

import (
	"net/netip"

	"worknode/kernel/conntrack"
	"worknode/kernel/nft"
	"worknode/proxy/state"
)

// Late are flows that were cut before anything was translated: answers to them may still be on their way.
type Late = []conntrack.Flow

func family(fam state.Family) nft.Family {
	if fam == state.V6 {
		return nft.IPv6
	}
	return nft.IPv4
}

// Clean deletes the UDP flows that were sent to one of to and that stale picks by where they were sent and who answers. It
// asks stale when it finds a flow, and again just before it ends it. It returns how many it deleted, and those of them that
// Finish is to look after when their answers have had time to come.
// Errors: of the first dump; a flow that ended by itself meanwhile is none. Repeat: safe.
func Clean(conn *nft.Conn, fam state.Family, to []netip.AddrPort, stale func(to, answers netip.AddrPort) bool) (deleted int, late Late, err error) {
	if len(to) == 0 {
		return 0, nil, nil
	}
	ended, err := conntrack.EndUDPTo(conn, family(fam), to, func(f conntrack.Flow) bool { return stale(f.Dst, f.Answers) })
	for _, f := range ended {
		if !f.Translated() {
			late = append(late, f)
		}
	}
	return len(ended), late, err
}

// Finish ends what late answers have begun, and returns those flows for which there was something: they want another look.
func Finish(conn *nft.Conn, fam state.Family, late Late) (Late, error) {
	return conntrack.EndTurned(conn, family(fam), late)
}
