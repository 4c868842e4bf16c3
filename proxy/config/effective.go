package config

import (
	"net/netip"
	"slices"
	"time"

	netutils "k8s.io/utils/net"

	"worknode/proxy/state"
)

// Effective is what the parts of the proxy are to do, whatever mode and section it was said in.
type Effective struct {
	Settings state.Settings
	// Localhost are the loopback addresses on which node ports answer, by a listener in user space; TCP only.
	Localhost  []netip.Addr
	StaleAfter time.Duration // a change that waits longer than this makes the proxy unhealthy
	// NoExternalIPs turns spec.externalIPs off (gate AllowServiceExternalIPs).
	NoExternalIPs bool
	// BeLiberal sets net.netfilter.nf_conntrack_tcp_be_liberal.
	BeLiberal bool
}

var everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// Effective resolves the mode. Where it leaves kube-proxy, docs/proxy.md says why.
func (l *Loaded) Effective(node string) Effective {
	e := Effective{Settings: state.DefaultSettings(node), NoExternalIPs: !l.Gate("AllowServiceExternalIPs")}
	s := &e.Settings
	section, sync, least := l.periods()
	e.StaleAfter = 2 * sync.Duration
	// kube-proxy waits a second between two passes because its passes are long. Ours are not: only who asks waits.
	if l.asked[section+".minSyncPeriod"] {
		s.MinSync = least.Duration
	}
	s.MasqueradeAll, s.MasqueradeBit = l.IPTables.MasqueradeAll, int(*l.IPTables.MasqueradeBit)
	if l.Mode == ModeNFTables {
		s.MasqueradeAll, s.MasqueradeBit = l.NFTables.MasqueradeAll, int(*l.NFTables.MasqueradeBit)
	}
	s.LocalPods = l.localPods()
	s.NodePorts, e.Localhost = l.nodePorts()
	// Packets that connection tracking takes for invalid pass a node untranslated: the client sees the endpoint's own
	// address and resets the connection (kubernetes issue 74839). To be liberal is to translate them; kube-proxy drops
	// them in its iptables mode, which breaks others (117924). So liberal it is, unless somebody says no.
	e.BeLiberal = l.Conntrack.TCPBeLiberal || !l.Set("conntrack.tcpBeLiberal")
	return e
}

// periods are those of the mode, and the section that they stand in.
func (l *Loaded) periods() (section string, sync, least Duration) {
	switch l.Mode {
	case ModeNFTables:
		return ModeNFTables, l.NFTables.SyncPeriod, l.NFTables.MinSyncPeriod
	case ModeIPVS:
		return ModeIPVS, l.IPVS.SyncPeriod, l.IPVS.MinSyncPeriod
	}
	return ModeIPTables, l.IPTables.SyncPeriod, l.IPTables.MinSyncPeriod
}

func (l *Loaded) localPods() []state.LocalPods {
	switch l.DetectLocalMode {
	case LocalNodeCIDR:
		return []state.LocalPods{{By: state.ByNodeCIDR}}
	case LocalBridge:
		return []state.LocalPods{{By: state.ByBridge, Device: l.DetectLocal.BridgeInterface}}
	case LocalPrefix:
		return []state.LocalPods{{By: state.ByInterfacePrefix, Device: l.DetectLocal.InterfaceNamePrefix}}
	}
	cidrs := prefixes(l.clusterCIDRs())
	if len(cidrs) == 0 {
		return nil
	}
	return []state.LocalPods{{By: state.ByClusterCIDR, CIDRs: cidrs}}
}

// nodePorts expands nodePortAddresses. Without any, the mode iptables serves all addresses, loopback too, as its users
// are used to; the mode nftables serves the Node's own.
func (l *Loaded) nodePorts() (at state.NodePortAddrs, local []netip.Addr) {
	words := l.NodePortAddresses
	if len(words) == 0 {
		words = []string{NodePortAll}
		if l.Mode == ModeNFTables {
			words = []string{NodePortPrimary}
		}
	}
	for _, word := range words {
		switch word {
		case NodePortPrimary:
			at.Primary = true
			if ip, err := netip.ParseAddr(l.BindAddress); err == nil && !ip.IsUnspecified() { // it overrides the Node's
				at.Ranges = append(at.Ranges, netip.PrefixFrom(ip, ip.BitLen()))
			}
		case NodePortLocalhost:
			at.Ranges = append(at.Ranges, loopback...)
		case NodePortAll:
			at.Ranges = append(at.Ranges, everywhere...)
		default:
			at.Ranges = append(at.Ranges, prefixes([]string{word})...)
		}
	}
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	covers := func(ip netip.Addr) bool {
		return slices.ContainsFunc(at.Ranges, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	switch on, set := l.gateSet("KubeProxyNFTablesLocalhostNodePorts"); {
	case l.Mode == ModeNFTables && (on || !set): // who lists loopback by name wants it; a range of everything does not say so
		for _, ip := range []netip.Addr{v4, v6} {
			if slices.ContainsFunc(at.Ranges, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(ip) }) {
				local = append(local, ip)
			}
		}
	case (l.Mode == "" || l.Mode == ModeIPTables) && *l.IPTables.LocalhostNodePorts && covers(v4): // never IPv6: kube-proxy has it so
		local = append(local, v4)
	}
	return at, local
}

// prefixes parses what the check has accepted; like it, it takes numbers with leading zeros.
func prefixes(texts []string) (all []netip.Prefix) {
	for _, text := range texts {
		_, n, err := netutils.ParseCIDRSloppy(text)
		if err != nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		all = append(all, netip.PrefixFrom(ip, bits))
	}
	return all
}
