package proxy

import (
	"strings"
	"testing"

	"worknode/proxy/act"
)

// What the doctor says of what it sees: the state of one finding, and a word of its remedy.
func TestDoctor(t *testing.T) {
	healthy := func(change func(*facts)) facts {
		f := facts{running: 7, tables: map[string]bool{"ip " + act.TableName: true}, owned: map[string]bool{"ip " + act.TableName: true},
			settings: map[string]int{sysForward4: 1, sysForward6: 1, sysMax: 1000, sysCount: 10, sysLiberal: 1}}
		change(&f)
		return f
	}
	for _, c := range []struct {
		name                 string
		change               func(*facts)
		about, state, remedy string
	}{
		{"all is well", func(*facts) {}, "proxy", Good, ""},
		{"a kernel without nftables", func(f *facts) { f.missing = "CONFIG_NF_TABLES is missing" }, "kernel", Bad, "nf_tables"},
		{"nobody", func(f *facts) { f.running, f.tables = 0, nil }, "proxy", Bad, "start worknode proxy"},
		{"the proxy has ended", func(f *facts) { f.running = 0 }, "proxy", Warning, "--cleanup"},
		{"the proxy does not reach the API", func(f *facts) { f.tables = nil }, "proxy", Bad, "log"},
		{"somebody else has the lock", func(f *facts) { f.squat = true }, "proxy", Bad, "end that process"},
		{"kube-proxy alone", func(f *facts) { f.running, f.tables = 0, map[string]bool{"ip kube-proxy": true} }, "proxy", Good, ""},
		{"kube-proxy in its iptables mode", func(f *facts) { f.running, f.tables, f.chains = 0, nil, []string{"iptables-nft"} }, "proxy", Good, ""},
		{"both at once", func(f *facts) { f.tables["ip6 kube-proxy"] = true }, "kube-proxy", Bad, "end kube-proxy"},
		{"both, by iptables", func(f *facts) { f.chains = []string{"iptables-legacy"} }, "kube-proxy", Bad, "end kube-proxy"},
		{"both, by ipvs", func(f *facts) { f.ipvs = true }, "kube-proxy", Bad, "kube-ipvs0"},
		{"an old kernel", func(f *facts) { f.owned = nil }, "tables", Warning, "6.9"},
		{"no forwarding", func(f *facts) { f.settings[sysForward4] = 0 }, "ip_forward", Bad, "net.ipv4.ip_forward=1"},
		{"no IPv6 forwarding", func(f *facts) { f.settings[sysForward6] = 0 }, "IPv6 forwarding", Warning, "forwarding=1"},
		{"conntrack is nearly full", func(f *facts) { f.settings[sysCount] = 950 }, "conntrack", Bad, "maxPerCore"},
		{"strict TCP", func(f *facts) { f.settings[sysLiberal] = 0 }, "tcp_be_liberal", Warning, "tcpBeLiberal"},
		{"a bridge that does not reflect", func(f *facts) {
			f.settings[sysBridge], f.bridges = 1, []bridge{{name: "cni0", noHairpin: []string{"veth1"}}}
		}, "bridge cni0", Warning, "hairpin"},
		{"a promiscuous bridge", func(f *facts) {
			f.settings[sysBridge], f.bridges = 1, []bridge{{name: "cni0", promiscuous: true, noHairpin: []string{"veth1"}}}
		}, "bridge cni0", Good, ""},
	} {
		all := judge(healthy(c.change))
		found := false
		for _, f := range all {
			if f.About == c.about {
				found = true
				if f.State != c.state || !strings.Contains(f.Remedy, c.remedy) || (f.State != Good) != (f.Remedy != "") {
					t.Errorf("%s: %+v", c.name, f)
				}
			}
		}
		if !found {
			t.Errorf("%s: nothing about %s in %+v", c.name, c.about, all)
		}
		if got := Worst(all); got != c.state {
			t.Errorf("%s: the worst is %s, want %s", c.name, got, c.state)
		}
	}
	// A bridge without br_netfilter needs no flag.
	for _, f := range judge(healthy(func(f *facts) { f.bridges = []bridge{{name: "b", noHairpin: []string{"v"}}} })) {
		if strings.HasPrefix(f.About, "bridge") {
			t.Errorf("%+v", f)
		}
	}
}
