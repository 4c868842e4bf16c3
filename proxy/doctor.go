package proxy

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/act"
	"worknode/proxy/leftover"
)

// Finding is one thing that the doctor looked at.
type Finding struct {
	About  string `json:"about"`
	State  string `json:"state"` // good, warning, bad
	Says   string `json:"says"`
	Remedy string `json:"remedy,omitempty"`
}

// The states of a finding.
const (
	Good    = "good"
	Warning = "warning"
	Bad     = "bad"
)

// facts is what the doctor sees of a network namespace.
type facts struct {
	running  int  // pid of the proxy; zero: none
	squat    bool // somebody who is not root has its lock
	missing  string
	tables   map[string]bool // nftables tables of kube-proxy and ours, "ip kube-proxy"
	owned    map[string]bool // those that a living process owns
	chains   []string        // iptables programs that know of kube-proxy's chains
	ipvs     bool            // kube-ipvs0 is there
	settings map[string]int  // by sysctl; missing ones are not there
	bridges  []bridge
}

type bridge struct {
	name        string
	promiscuous bool
	noHairpin   []string // ports without the flag
}

const (
	sysForward4 = "net/ipv4/ip_forward"
	sysForward6 = "net/ipv6/conf/all/forwarding"
	sysBridge   = "net/bridge/bridge-nf-call-iptables"
	sysMax      = "net/netfilter/nf_conntrack_max"
	sysCount    = "net/netfilter/nf_conntrack_count"
	sysLiberal  = "net/netfilter/nf_conntrack_tcp_be_liberal"
	sysNoV6     = "net/ipv6/conf/all/disable_ipv6"
)

// Examine looks at the network namespace of the process: who serves Services there, and what would keep them from
// working. It changes nothing.
func Examine(ctx context.Context) []Finding { return judge(examine(ctx)) }

func examine(ctx context.Context) facts {
	f := facts{tables: map[string]bool{}, owned: map[string]bool{}, settings: map[string]int{}}
	if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
		if cred, err := peer(c); err == nil {
			f.running, f.squat = int(cred.Pid), cred.Uid != 0
		}
		c.Close()
	}
	conn, err := nft.Open()
	if err != nil {
		f.missing = err.Error()
	} else {
		defer conn.Close()
		for word, fam := range map[string]nft.Family{"ip": nft.IPv4, "ip6": nft.IPv6} {
			if err := conn.Missing(fam); err != nil && word == "ip" {
				f.missing = err.Error()
			}
			for _, name := range []string{act.TableName, "kube-proxy"} {
				if t, err := conn.Table(fam, name); err == nil {
					f.tables[word+" "+name] = true
					f.owned[word+" "+name] = t.Owner != 0
				} else if !fault.Is(err, fault.NotFound) && word == "ip" && f.missing == "" {
					f.missing = err.Error()
				}
			}
		}
	}
	f.chains = leftover.Found(ctx)
	for _, name := range []string{sysForward4, sysForward6, sysBridge, sysMax, sysCount, sysLiberal, sysNoV6} {
		if text, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			if v, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				f.settings[name] = v
			}
		}
	}
	devices, _ := net.Interfaces()
	for _, d := range devices {
		f.ipvs = f.ipvs || d.Name == "kube-ipvs0"
		if b, ok := bridgeOf(d.Name); ok {
			f.bridges = append(f.bridges, b)
		}
	}
	return f
}

// bridgeOf reads a bridge's ports from /sys, which shows the network namespace that it was mounted in; a device that is
// not there is no bridge to us.
func bridgeOf(name string) (bridge, bool) {
	ports, err := os.ReadDir(filepath.Join("/sys/class/net", name, "brif"))
	if err != nil {
		return bridge{}, false
	}
	b := bridge{name: name}
	if text, err := os.ReadFile(filepath.Join("/sys/class/net", name, "flags")); err == nil {
		flags, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
		b.promiscuous = flags&0x100 != 0 // IFF_PROMISC
	}
	for _, p := range ports {
		if text, err := os.ReadFile(filepath.Join("/sys/class/net", name, "brif", p.Name(), "hairpin_mode")); err == nil && strings.TrimSpace(string(text)) == "0" {
			b.noHairpin = append(b.noHairpin, p.Name())
		}
	}
	return b, true
}

// judge says what the facts mean.
func judge(f facts) (all []Finding) {
	say := func(about, state, says, remedy string) { all = append(all, Finding{about, state, says, remedy}) }
	if f.missing != "" {
		say("kernel", Bad, f.missing, "use a kernel with nf_tables and what is named; nothing serves Services without")
	} else {
		say("kernel", Good, "nftables has all that the rules use", "")
	}
	judgeOwner(f, say)
	judgeSettings(f, say)
	if f.settings[sysBridge] == 1 {
		for _, b := range f.bridges {
			if len(b.noHairpin) > 0 && !b.promiscuous {
				say("bridge "+b.name, Warning, fmt.Sprintf("a pod behind it does not reach itself through a Service: ports %v do not send frames back where they came from, and br_netfilter translates inside the bridge", b.noHairpin),
					"have the CNI plugin set hairpin mode (bridge plugin: hairpinMode: true), or `bridge link set dev PORT hairpin on`")
			} else {
				say("bridge "+b.name, Good, "pods behind it reach themselves through a Service", "")
			}
		}
	}
	return all
}

func judgeOwner(f facts, say func(about, state, says, remedy string)) {
	ours := f.tables["ip "+act.TableName] || f.tables["ip6 "+act.TableName]
	theirs := f.tables["ip kube-proxy"] || f.tables["ip6 kube-proxy"]
	switch {
	case f.squat:
		say("proxy", Bad, fmt.Sprintf("process %d, which is not root's, has the lock %s: no proxy can start here", f.running, socket), "end that process")
	case f.running != 0 && ours:
		say("proxy", Good, fmt.Sprintf("worknode proxy runs as process %d and serves Services", f.running), "")
	case f.running != 0:
		say("proxy", Bad, fmt.Sprintf("worknode proxy runs as process %d and has no table yet", f.running), "look into its log: does it reach the API?")
	case ours:
		say("proxy", Warning, "no worknode proxy runs; its table serves Services as they were when it ended", "start it, or remove the table with --cleanup")
	case theirs || len(f.chains) > 0:
		say("proxy", Good, "kube-proxy serves Services here, not worknode", "")
	default:
		say("proxy", Bad, "nobody serves Services in this network namespace", "start worknode proxy")
	}
	if ours && f.running != 0 {
		if f.owned["ip "+act.TableName] || f.owned["ip6 "+act.TableName] {
			say("tables", Good, "our tables are owned: no other program can change them", "")
		} else {
			say("tables", Warning, "our tables are open to other programs: what they change is repaired within milliseconds", "kernel 6.9 has owned tables")
		}
	}
	if ours && theirs {
		say("kube-proxy", Bad, "the table kube-proxy is there beside ours: both translate, and each misses what the other knows", "end kube-proxy; the running worknode proxy then removes its table when it starts, and --cleanup does at any time")
	}
	if ours && len(f.chains) > 0 {
		say("kube-proxy", Bad, fmt.Sprintf("chains of kube-proxy are there beside our table, by %s", strings.Join(f.chains, ", ")), "end kube-proxy and start worknode proxy again, which removes them")
	}
	if ours && f.ipvs {
		say("kube-proxy", Bad, "kube-ipvs0, the device of kube-proxy's ipvs mode, has the Services' addresses", "end kube-proxy; `ip link del kube-ipvs0; ipvsadm -C`")
	}
}

func judgeSettings(f facts, say func(about, state, says, remedy string)) {
	if f.settings[sysForward4] == 0 {
		say("ip_forward", Bad, "the kernel forwards no IPv4: only processes of the node itself reach endpoints elsewhere", "sysctl -w net.ipv4.ip_forward=1")
	} else {
		say("ip_forward", Good, "the kernel forwards IPv4", "")
	}
	if v6, has := f.settings[sysForward6]; has && f.settings[sysNoV6] == 0 && v6 == 0 {
		say("IPv6 forwarding", Warning, "the kernel forwards no IPv6", "sysctl -w net.ipv6.conf.all.forwarding=1, if pods have IPv6 addresses")
	}
	if limit, has := f.settings[sysMax]; has && limit > 0 {
		count := f.settings[sysCount]
		says := fmt.Sprintf("%d of %d connections are tracked", count, limit)
		if count > limit/10*9 {
			say("conntrack", Bad, says+": new ones are dropped when it is full", "raise conntrack.maxPerCore or conntrack.min")
		} else {
			say("conntrack", Good, says, "")
		}
	}
	if v, has := f.settings[sysLiberal]; has && v == 0 {
		say("tcp_be_liberal", Warning, "TCP packets out of the window are dropped as invalid", "leave conntrack.tcpBeLiberal unset, or sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1")
	} else if has {
		say("tcp_be_liberal", Good, "TCP packets out of the window are translated like others", "")
	}
}

// Worst is the worst state among findings.
func Worst(all []Finding) string {
	order := []string{Good, Warning, Bad}
	worst := 0
	for _, f := range all {
		worst = max(worst, slices.Index(order, f.State))
	}
	return order[worst]
}
