package config

import (
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	netutils "k8s.io/utils/net"

	"worknode/version"
)

// The words of mode and detectLocalMode.
const (
	ModeIPTables = "iptables"
	ModeIPVS     = "ipvs"
	ModeNFTables = "nftables"

	LocalClusterCIDR = "ClusterCIDR"
	LocalNodeCIDR    = "NodeCIDR"
	LocalBridge      = "BridgeInterface"
	LocalPrefix      = "InterfaceNamePrefix"

	NodePortPrimary   = "primary"
	NodePortLocalhost = "localhost"
	NodePortAll       = "all"
)

// checker collects what is wrong with values.
type checker struct {
	source string
	line   func(field string) int
	wrong  []Problem
}

func none(string) int { return 0 }

func (k *checker) bad(path, format string, args ...any) {
	k.wrong = append(k.wrong, Problem{k.source, k.line(path), path, fmt.Sprintf(format, args...)})
}

func (k *checker) bit(path string, v *int32) {
	if v != nil && (*v < 0 || *v > 31) {
		k.bad(path, "%d: must be a bit from 0 to 31", *v)
	}
}

func (k *checker) atLeastZero(path string, v int64) {
	if v < 0 {
		k.bad(path, "%d: must be zero or more", v)
	}
}

func (k *checker) notNegative(path string, v Duration) {
	if k.readable(path, v) && v.Duration < 0 {
		k.bad(path, "%s: must be zero or more", v)
	}
}

func (k *checker) positive(path string, v Duration) {
	if k.readable(path, v) && v.Duration <= 0 {
		k.bad(path, "%s: must be more than zero", v)
	}
}

func (k *checker) readable(path string, v Duration) bool {
	if v.wrong != "" {
		k.bad(path, "%s: want a duration with its unit, such as 30s or 1h30m", v.wrong)
	}
	return v.wrong == ""
}

func (k *checker) cidrs(path string, all []string) {
	for i, text := range all {
		if _, _, err := netutils.ParseCIDRSloppy(text); err != nil {
			k.bad(fmt.Sprintf("%s[%d]", path, i), "%q: want a prefix such as 10.244.0.0/16 or fd00:10:244::/56", text)
		}
	}
}

func (k *checker) hostPort(path, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		k.bad(path, "%q: want ADDRESS:PORT, such as 0.0.0.0:10256 or [::]:10256", addr)
		return
	}
	if netutils.ParseIPSloppy(host) == nil {
		k.bad(path, "%q: want an IP address before the port, not a name", host)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		k.bad(path, "%q: want a port from 1 to 65535", port)
	}
}

// check finds what kube-proxy would refuse, and says it with the names that are in the file.
// Source: pkg/proxy/apis/config/validation. Looser in one point: clusterCIDR may list any number of prefixes.
func (c *Configuration) check(k *checker) {
	wrong, _ := c.checkGates()
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		k.bad("featureGates."+name, "%s", wrong[name])
	}
	k.bit("iptables.masqueradeBit", c.IPTables.MasqueradeBit)
	switch c.Mode {
	case "", ModeIPTables:
		k.periods("iptables", c.IPTables.SyncPeriod, c.IPTables.MinSyncPeriod)
	case ModeNFTables:
		k.bit("nftables.masqueradeBit", c.NFTables.MasqueradeBit)
		k.periods("nftables", c.NFTables.SyncPeriod, c.NFTables.MinSyncPeriod)
	case ModeIPVS:
		if !c.Gate("KubeProxyIPVS") {
			k.bad("mode", "ipvs: the feature gate KubeProxyIPVS is off (choose nftables)")
		}
		k.periods("ipvs", c.IPVS.SyncPeriod, c.IPVS.MinSyncPeriod)
		k.notNegative("ipvs.tcpTimeout", c.IPVS.TCPTimeout)
		k.notNegative("ipvs.tcpFinTimeout", c.IPVS.TCPFinTimeout)
		k.notNegative("ipvs.udpTimeout", c.IPVS.UDPTimeout)
		k.cidrs("ipvs.excludeCIDRs", c.IPVS.ExcludeCIDRs)
	default:
		k.bad("mode", "%q: must be iptables, ipvs or nftables, or empty", c.Mode)
	}
	c.checkConntrack(k)
	if adj := c.OOMScoreAdj; adj != nil && (*adj < -1000 || *adj > 1000) {
		k.bad("oomScoreAdj", "%d: must be from -1000 to 1000", *adj)
	}
	k.atLeastZero("clientConnection.burst", int64(c.ClientConnection.Burst))
	k.positive("configSyncPeriod", c.ConfigSyncPeriod)
	if netutils.ParseIPSloppy(c.BindAddress) == nil {
		k.bad("bindAddress", "%q: want an IP address", c.BindAddress)
	}
	if c.HealthzBindAddress != "" {
		k.hostPort("healthzBindAddress", c.HealthzBindAddress)
	}
	if c.MetricsBindAddress != "" { // only --metrics-port=0 makes it so
		k.hostPort("metricsBindAddress", c.MetricsBindAddress)
	}
	c.checkNodePorts(k)
	if v, before := c.ShowHiddenMetricsForVersion, previousMinor(); v != "" && v != before {
		k.bad("showHiddenMetricsForVersion", "%q: must be %s, the version before this one, or not set", v, before)
	}
	c.checkLocal(k)
	c.checkLogging(k)
}

func (k *checker) periods(section string, sync, least Duration) {
	k.positive(section+".syncPeriod", sync)
	k.notNegative(section+".minSyncPeriod", least)
	if least.Duration > sync.Duration {
		k.bad(section+".syncPeriod", "%s: must be at least %s.minSyncPeriod, which is %s", sync, section, least)
	}
}

func (c *Configuration) checkConntrack(k *checker) {
	ct := &c.Conntrack
	if ct.MaxPerCore != nil {
		k.atLeastZero("conntrack.maxPerCore", int64(*ct.MaxPerCore))
	}
	if ct.Min != nil {
		k.atLeastZero("conntrack.min", int64(*ct.Min))
	}
	if ct.TCPEstablishedTimeout != nil {
		k.notNegative("conntrack.tcpEstablishedTimeout", *ct.TCPEstablishedTimeout)
	}
	if ct.TCPCloseWaitTimeout != nil {
		k.notNegative("conntrack.tcpCloseWaitTimeout", *ct.TCPCloseWaitTimeout)
	}
	k.notNegative("conntrack.udpTimeout", ct.UDPTimeout)
	k.notNegative("conntrack.udpStreamTimeout", ct.UDPStreamTimeout)
}

func (c *Configuration) checkNodePorts(k *checker) {
	seen := map[string]bool{}
	for i, text := range c.NodePortAddresses {
		path := fmt.Sprintf("nodePortAddresses[%d]", i)
		switch text {
		case NodePortPrimary, NodePortLocalhost, NodePortAll:
			if seen[text] {
				k.bad(path, "%q: it is there already (remove one)", text)
			}
			seen[text] = true
		default:
			if _, _, err := netutils.ParseCIDRSloppy(text); err != nil {
				k.bad(path, "%q: want a prefix such as 192.0.2.0/24, or primary, localhost or all", text)
			}
		}
	}
}

func (c *Configuration) checkLocal(k *checker) {
	switch c.DetectLocalMode {
	case "", LocalClusterCIDR:
		k.cidrs("clusterCIDR", c.clusterCIDRs())
	case LocalNodeCIDR:
	case LocalBridge:
		if c.DetectLocal.BridgeInterface == "" {
			k.bad("detectLocal.bridgeInterface", "it is not set, and detectLocalMode BridgeInterface needs it (name the pods' bridge)")
		}
	case LocalPrefix:
		if c.DetectLocal.InterfaceNamePrefix == "" {
			k.bad("detectLocal.interfaceNamePrefix", "it is not set, and detectLocalMode InterfaceNamePrefix needs it (give what the names of the pods' interfaces begin with)")
		}
	default:
		k.bad("detectLocalMode", "%q: must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix, or empty", c.DetectLocalMode)
	}
}

// clusterCIDRs are the prefixes of clusterCIDR.
func (c *Configuration) clusterCIDRs() (all []string) {
	if c.ClusterCIDR == "" {
		return nil
	}
	for one := range strings.SplitSeq(c.ClusterCIDR, ",") {
		all = append(all, strings.TrimSpace(one))
	}
	return all
}

func (c *Configuration) checkLogging(k *checker) {
	l := &c.Logging
	k.positive("logging.flushFrequency", l.FlushFrequency.Duration)
	if l.Format != "text" && l.Format != "json" {
		k.bad("logging.format", "%q: must be text or json", l.Format)
	}
	if l.Verbosity > math.MaxInt32 {
		k.bad("logging.verbosity", "%d: must be at most %d", l.Verbosity, math.MaxInt32)
	}
	if len(l.VModule) > 0 && l.Format == "json" {
		k.bad("logging.vmodule", "it works with the format text only (remove it)")
	}
	for i, one := range l.VModule {
		path := fmt.Sprintf("logging.vmodule[%d]", i)
		if one.FilePattern == "" || strings.ContainsAny(one.FilePattern, "=,") {
			k.bad(path, "filePattern %q: must name source files, without an equal sign or a comma", one.FilePattern)
		}
		if one.Verbosity > math.MaxInt32 {
			k.bad(path, "verbosity %d: must be at most %d", one.Verbosity, math.MaxInt32)
		}
	}
	for format, o := range map[string]Output{"text": l.Options.Text, "json": l.Options.JSON} {
		if (o.SplitStream || !o.InfoBufferSize.IsZero()) && !c.Gate("LoggingAlphaOptions") {
			k.bad("logging.options."+format, "the feature gate LoggingAlphaOptions is off (remove these options)")
		}
	}
}

// previousMinor is the Kubernetes version before ours, as MAJOR.MINOR.
func previousMinor() string {
	var major, minor int
	_, _ = fmt.Sscanf(version.Kubernetes, "v%d.%d", &major, &minor)
	return fmt.Sprintf("%d.%d", major, minor-1)
}
