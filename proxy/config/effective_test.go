package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"worknode/proxy/state"
)

// What each mode and section comes to.
func TestEffective(t *testing.T) {
	say := func(e Effective) string {
		s := e.Settings
		var pods []string
		for _, p := range s.LocalPods {
			pods = append(pods, fmt.Sprint(p.By, p.CIDRs, p.Device))
		}
		return fmt.Sprintf("bit=%d all=%v pods=%s primary=%v ports=%v local=%v min=%s stale=%s liberal=%v noexternal=%v",
			s.MasqueradeBit, s.MasqueradeAll, strings.Join(pods, ";"), s.NodePorts.Primary, s.NodePorts.Ranges, e.Localhost, s.MinSync, e.StaleAfter, e.BeLiberal, e.NoExternalIPs)
	}
	const all = "[0.0.0.0/0 ::/0]"
	for _, c := range []struct{ name, text, want string }{
		{"nothing said", "", "bit=14 all=false pods= primary=false ports=" + all + " local=[127.0.0.1] min=0s stale=1m0s liberal=true noexternal=false"},
		{"nftables", "mode: nftables", "bit=14 all=false pods= primary=true ports=[] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"sections by mode", "mode: nftables\nnftables: {masqueradeBit: 3, masqueradeAll: true, syncPeriod: 10s, minSyncPeriod: 1s}\niptables: {masqueradeBit: 5}",
			"bit=3 all=true pods= primary=true ports=[] local=[] min=1s stale=20s liberal=true noexternal=false"},
		{"ipvs takes the bit from iptables", "mode: ipvs\niptables: {masqueradeBit: 5, masqueradeAll: true}\nipvs: {syncPeriod: 5s}",
			"bit=5 all=true pods= primary=false ports=" + all + " local=[] min=0s stale=10s liberal=true noexternal=false"},
		{"prefixes of both families", "clusterCIDR: 10.1.0.0/16, fd00:1::/48,10.2.0.0/16",
			"bit=14 all=false pods=0 [10.1.0.0/16 fd00:1::/48 10.2.0.0/16] primary=false ports=" + all + " local=[127.0.0.1] min=0s stale=1m0s liberal=true noexternal=false"},
		{"pods by node", "mode: nftables\ndetectLocalMode: NodeCIDR", "bit=14 all=false pods=1 [] primary=true ports=[] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"pods by bridge", "mode: nftables\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
			"bit=14 all=false pods=2 []cni0 primary=true ports=[] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"pods by prefix", "mode: nftables\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
			"bit=14 all=false pods=3 []veth primary=true ports=[] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"loopback by name", "mode: nftables\nnodePortAddresses: [primary, localhost]",
			"bit=14 all=false pods= primary=true ports=[127.0.0.0/8 ::1/128] local=[127.0.0.1 ::1] min=0s stale=1m0s liberal=true noexternal=false"},
		{"everything is not loopback by name", "mode: nftables\nnodePortAddresses: [all]",
			"bit=14 all=false pods= primary=false ports=" + all + " local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"loopback with the gate off", "mode: nftables\nnodePortAddresses: [localhost]\nfeatureGates: {KubeProxyNFTablesLocalhostNodePorts: false}",
			"bit=14 all=false pods= primary=false ports=[127.0.0.0/8 ::1/128] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"no loopback in iptables mode", "iptables: {localhostNodePorts: false}",
			"bit=14 all=false pods= primary=false ports=" + all + " local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"own prefixes leave loopback out", "nodePortAddresses: [192.0.2.0/24]",
			"bit=14 all=false pods= primary=false ports=[192.0.2.0/24] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"the node's address is given", "mode: nftables\nbindAddress: 192.0.2.7",
			"bit=14 all=false pods= primary=true ports=[192.0.2.7/32] local=[] min=0s stale=1m0s liberal=true noexternal=false"},
		{"a no is a no", "mode: nftables\nconntrack: {tcpBeLiberal: false}\nfeatureGates: {AllowServiceExternalIPs: false}",
			"bit=14 all=false pods= primary=true ports=[] local=[] min=0s stale=1m0s liberal=false noexternal=true"},
	} {
		l, err := Parse("f", []byte(head+c.text), false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := say(l.Effective("n")); got != c.want {
			t.Errorf("%s:\n got  %s\n want %s", c.name, got, c.want)
		}
	}
	// Flags too: nobody asked for a pause between transactions, unless somebody did.
	for args, want := range map[string]time.Duration{"": 0, "--iptables-min-sync-period=2s": 2 * time.Second, "--proxy-mode=nftables --iptables-min-sync-period=3s": 3 * time.Second} {
		l, err := parseFlags(strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Effective("n").Settings.MinSync; got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
	if state.DefaultSettings("n").MasqueradeBit != 14 {
		t.Error("the dataplane's own default is another")
	}
}
