package standalone

import (
	"net"
	"net/netip"

	"worknode/fault"
)

// ownAddress is the address that this machine would use towards the outside: the default route's, else any that is not
// loopback. Nothing is sent: connecting a UDP socket only asks the routing table.
func ownAddress() (netip.Addr, error) {
	if conn, err := net.Dial("udp4", "192.0.2.1:9"); err == nil {
		defer conn.Close()
		return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fault.New(fault.NotFound, "this machine has no IPv4 address but loopback's (give it one, or run the node with --isolated)")
}
