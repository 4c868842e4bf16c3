// Package island makes the network that an isolated node lives in: a network namespace with one address and no way out.
// Service addresses have a route, so that they reach the rules that translate them, by a gateway that does not exist:
// what is not translated vanishes there, without waiting for ARP. The rest of the world is unreachable, which programs
// are told at once: a registry or resolver out there fails in no time instead of timing out.
package island

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"worknode/kernel/netns"
)

// The device pair: the node's address is on the near end; the far end only gives it a carrier.
const near, far = "uplink", "nowhere"

// gatewayMAC is locally administered and belongs to nobody.
var gatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0xfe}

// Path is the network namespace of the island that is kept in dir.
func Path(dir string) string { return dir + "/net" }

// Make ensures the namespace pinned below dir and its addresses, and returns the path of the pin.
// Repeat: safe, what exists is kept. Crash: repeat, or Remove.
func Make(dir string, addr netip.Prefix, gateway netip.Addr, services netip.Prefix) (string, error) {
	path := Path(dir)
	if !netns.Pinned(path) {
		if err := netns.Unpin(dir); err != nil {
			return "", err
		}
		if err := netns.Create(dir, "", netns.Net); err != nil {
			return "", err
		}
	}
	err := netns.Do(path, func() error { return furnish(addr, gateway, services) })
	if err != nil {
		return "", fmt.Errorf("isolated network %s: %w", dir, err)
	}
	return path, nil
}

// Remove lets go of the namespace; it ends with its last process, and its devices with it.
func Remove(dir string) error { return netns.Unpin(dir) }

func furnish(addr netip.Prefix, gateway netip.Addr, services netip.Prefix) error {
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: far})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("device %s: %w", near, err)
	}
	for _, name := range []string{far, near} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("device %s up: %w", name, err)
		}
	}
	link, err := netlink.LinkByName(near)
	if err != nil {
		return fmt.Errorf("device %s: %w", near, err)
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}}
	if err := netlink.AddrReplace(link, own); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: gatewayMAC, State: unix.NUD_PERMANENT}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("gateway %s: %w", gateway, err)
	}
	to := services.Masked()
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("route to %s by %s: %w", to, gateway, err)
	}
	return nil
}
