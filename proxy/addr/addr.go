// Package addr watches this node's own addresses through rtnetlink, so that node ports follow them at once.
// It reports what there is; which of them node ports answer on is Choose, a pure function.
package addr

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/proxy/state"
)

// Local is what the kernel says of this node.
type Local struct {
	Addrs []netip.Addr // all addresses but loopback's and link-local ones, sorted
	Route []netip.Addr // those that the default route prefers, one a family; may be empty
}

// Watch calls report at once and after every change of addresses, in the network namespace of the calling thread,
// until ctx ends. Errors: of the subscription only; a lost message leads to a new look.
func Watch(ctx context.Context, report func(Local)) error {
	changes := make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	lost := make(chan error, 1)
	err := netlink.AddrSubscribeWithOptions(changes, done, netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case lost <- err:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("subscribe to address changes: %w", err)
	}
	var last Local
	for first := true; ; first = false {
		now, err := Look()
		if err != nil {
			return err
		}
		if first || !slices.Equal(now.Addrs, last.Addrs) || !slices.Equal(now.Route, last.Route) {
			last = now
			report(now)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fault.New(fault.Temporary, "address changes: %w", err)
		case _, ok := <-changes:
			if !ok {
				return fault.New(fault.Temporary, "address changes: the subscription ended")
			}
		}
	}
}

// Look reads the addresses of the calling thread's network namespace.
func Look() (Local, error) {
	var out Local
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return out, fmt.Errorf("list local addresses: %w", err)
	}
	byLink := map[int][]netip.Addr{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		out.Addrs = append(out.Addrs, ip)
		byLink[a.LinkIndex] = append(byLink[a.LinkIndex], ip)
	}
	slices.SortFunc(out.Addrs, netip.Addr.Compare)
	out.Addrs = slices.Compact(out.Addrs)
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// Only main-table default routes; a failure here costs the preference, not the addresses.
		routes, err := netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			continue
		}
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		if ip, ok := preferred(routes, byLink, fam == netlink.FAMILY_V4); ok {
			out.Route = append(out.Route, ip)
		}
	}
	return out, nil
}

func preferred(routes []netlink.Route, byLink map[int][]netip.Addr, v4 bool) (netip.Addr, bool) {
	for _, r := range routes {
		if ip, ok := netip.AddrFromSlice(r.Src); ok {
			return ip.Unmap(), true
		}
		for _, ip := range byLink[r.LinkIndex] {
			if ip.Is4() == v4 {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

// Choose returns the addresses on which node ports answer, sorted: the local ones in the ranges; and with "primary", those
// the Node object names; before there is one, those of the default route; in a namespace without an uplink, all local
// ones. A selection of nothing means primary. Loopback never answers: the kernel does not route its replies to other hosts.
// Source: kube-proxy nodePortAddresses, nftables mode.
func Choose(local Local, which state.NodePortAddrs, node []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range local.Addrs {
		if slices.ContainsFunc(which.Ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	if which.Primary || len(which.Ranges) == 0 {
		switch {
		case len(node) > 0:
			out = append(out, node...)
		case len(local.Route) > 0:
			out = append(out, local.Route...)
		default:
			out = append(out, local.Addrs...)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// DeviceTo is the device behind which an address is, by the routes of the calling thread's network namespace.
func DeviceTo(a netip.Addr) (string, error) {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return "", fmt.Errorf("no route to %s: %w", a, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("device to %s: %w", a, err)
	}
	return link.Attrs().Name, nil
}
