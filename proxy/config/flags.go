package config

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	netutils "k8s.io/utils/net"
	"sigs.k8s.io/yaml"

	"worknode/fault"
)

// Flags is kube-proxy's command line. With a configuration file, all that the file could say is taken from it alone,
// but for --hostname-override and the flags for logs; the flags that this leaves without effect are named in a notice.
type Flags struct {
	File    string // --config
	WriteTo string // --write-config-to
	Cleanup bool
	Init    bool // --init-only
	Lenient bool // take unknown fields as kube-proxy does, with a notice
	Master  string

	c                        Configuration
	maxPerCore, min, oom     int32
	bit                      int32
	localhost, masqueradeAll bool
	established, closeWait   time.Duration
	vmodule, gates           map[string]string
	healthzPort, metricsPort int
	fs                       *pflag.FlagSet
}

// fieldsOf says which fields a flag sets.
var fieldsOf = map[string][]string{
	"feature-gates": {"featureGates"}, "kubeconfig": {"clientConnection.kubeconfig"}, "kube-api-content-type": {"clientConnection.contentType"},
	"kube-api-burst": {"clientConnection.burst"}, "kube-api-qps": {"clientConnection.qps"}, "bind-address": {"bindAddress"},
	"healthz-bind-address": {"healthzBindAddress"}, "metrics-bind-address": {"metricsBindAddress"}, "healthz-port": {"healthzBindAddress"},
	"metrics-port": {"metricsBindAddress"}, "bind-address-hard-fail": {"bindAddressHardFail"}, "profiling": {"enableProfiling"},
	"show-hidden-metrics-for-version": {"showHiddenMetricsForVersion"}, "proxy-mode": {"mode"}, "iptables-masquerade-bit": {"iptables.masqueradeBit"},
	"masquerade-all": {"iptables.masqueradeAll", "nftables.masqueradeAll"}, "iptables-localhost-nodeports": {"iptables.localhostNodePorts"},
	"iptables-sync-period": {"iptables.syncPeriod", "nftables.syncPeriod"}, "iptables-min-sync-period": {"iptables.minSyncPeriod", "nftables.minSyncPeriod"},
	"ipvs-sync-period": {"ipvs.syncPeriod"}, "ipvs-min-sync-period": {"ipvs.minSyncPeriod"}, "ipvs-scheduler": {"ipvs.scheduler"},
	"ipvs-exclude-cidrs": {"ipvs.excludeCIDRs"}, "ipvs-strict-arp": {"ipvs.strictARP"}, "ipvs-tcp-timeout": {"ipvs.tcpTimeout"},
	"ipvs-tcpfin-timeout": {"ipvs.tcpFinTimeout"}, "ipvs-udp-timeout": {"ipvs.udpTimeout"}, "detect-local-mode": {"detectLocalMode"},
	"pod-bridge-interface": {"detectLocal.bridgeInterface"}, "pod-interface-name-prefix": {"detectLocal.interfaceNamePrefix"}, "cluster-cidr": {"clusterCIDR"},
	"nodeport-addresses": {"nodePortAddresses"}, "oom-score-adj": {"oomScoreAdj"}, "conntrack-max-per-core": {"conntrack.maxPerCore"},
	"conntrack-min": {"conntrack.min"}, "conntrack-tcp-timeout-established": {"conntrack.tcpEstablishedTimeout"},
	"conntrack-tcp-timeout-close-wait": {"conntrack.tcpCloseWaitTimeout"}, "conntrack-tcp-be-liberal": {"conntrack.tcpBeLiberal"},
	"conntrack-udp-timeout": {"conntrack.udpTimeout"}, "conntrack-udp-timeout-stream": {"conntrack.udpStreamTimeout"}, "config-sync-period": {"configSyncPeriod"},
}

// Add declares the flags. As with kube-proxy, underscores may stand for dashes.
func (f *Flags) Add(fs *pflag.FlagSet) {
	f.fs = fs
	d := Default()
	c := &f.c
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	fs.StringVar(&f.File, "config", "", "configuration file; flags that say the same are then ignored. The file is watched, and a change comes into force")
	fs.StringVar(&f.WriteTo, "write-config-to", "", "write the configuration, defaults filled in, to this file and exit")
	fs.BoolVar(&f.Cleanup, "cleanup", false, "remove all rules of this proxy and of kube-proxy in any mode, and exit")
	fs.BoolVar(&f.Init, "init-only", false, "do what needs all of root's rights (kernel settings) and exit; the proxy itself then needs CAP_NET_ADMIN alone")
	fs.BoolVar(&f.Lenient, "lenient-config", f.Lenient, "accept unknown fields in the configuration file, with a warning, as kube-proxy does")
	fs.StringToStringVar(&f.gates, "feature-gates", nil, "features by name=true|false")
	fs.StringVar(&c.ClientConnection.Kubeconfig, "kubeconfig", "", "how to reach the API; without it, the pod's service account")
	fs.StringVar(&f.Master, "master", "", "address of the API server, instead of the kubeconfig's")
	fs.StringVar(&c.ClientConnection.ContentType, "kube-api-content-type", d.ClientConnection.ContentType, "accepted, without effect")
	fs.Int32Var(&c.ClientConnection.Burst, "kube-api-burst", d.ClientConnection.Burst, "accepted, without effect")
	fs.Float32Var(&c.ClientConnection.QPS, "kube-api-qps", d.ClientConnection.QPS, "accepted, without effect")
	fs.StringVar(&c.HostnameOverride, "hostname-override", "", "name of the node (default: the host's); counts beside --config too")
	fs.StringVar(&c.BindAddress, "bind-address", d.BindAddress, "the node's address, if its Node object does not tell; nothing is bound to it")
	fs.StringVar(&c.HealthzBindAddress, "healthz-bind-address", "", "address of /healthz and /livez (default 0.0.0.0:10256)")
	fs.StringVar(&c.MetricsBindAddress, "metrics-bind-address", "", "address of /metrics (default 127.0.0.1:10249)")
	fs.IntVar(&f.healthzPort, "healthz-port", HealthzPort, "port of /healthz; 0 for none")
	fs.IntVar(&f.metricsPort, "metrics-port", MetricsPort, "port of /metrics; 0 for none")
	fs.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "exit if one of the servers' addresses is taken, instead of trying on")
	fs.BoolVar(&c.EnableProfiling, "profiling", false, "serve /debug/pprof with the metrics")
	fs.StringVar(&c.ShowHiddenMetricsForVersion, "show-hidden-metrics-for-version", "", "accepted, without effect: no metric is hidden")
	fs.StringVar(&c.Mode, "proxy-mode", "", "iptables (default), ipvs or nftables: all served by nftables; it decides which defaults hold")
	fs.Int32Var(&f.bit, "iptables-masquerade-bit", 14, "bit of the packet mark that asks for masquerading, in the modes iptables and ipvs")
	fs.BoolVar(&f.masqueradeAll, "masquerade-all", false, "hide the source of every connection to a ClusterIP")
	fs.BoolVar(&f.localhost, "iptables-localhost-nodeports", true, "serve NodePorts (TCP) on 127.0.0.1, in the mode iptables")
	fs.DurationVar(&c.IPTables.SyncPeriod.Duration, "iptables-sync-period", d.IPTables.SyncPeriod.Duration, "half the time after which a change that is not applied makes the proxy unhealthy")
	fs.DurationVar(&c.IPTables.MinSyncPeriod.Duration, "iptables-min-sync-period", 0, "least time between two changes of the rules (default: none; changes apply at once)")
	fs.DurationVar(&c.IPVS.SyncPeriod.Duration, "ipvs-sync-period", d.IPVS.SyncPeriod.Duration, "the same, in the mode ipvs")
	fs.DurationVar(&c.IPVS.MinSyncPeriod.Duration, "ipvs-min-sync-period", 0, "the same, in the mode ipvs")
	fs.StringVar(&c.IPVS.Scheduler, "ipvs-scheduler", "", "accepted, without effect")
	fs.StringSliceVar(&c.IPVS.ExcludeCIDRs, "ipvs-exclude-cidrs", nil, "accepted, without effect")
	fs.BoolVar(&c.IPVS.StrictARP, "ipvs-strict-arp", false, "accepted, without effect")
	fs.DurationVar(&c.IPVS.TCPTimeout.Duration, "ipvs-tcp-timeout", 0, "accepted, without effect")
	fs.DurationVar(&c.IPVS.TCPFinTimeout.Duration, "ipvs-tcpfin-timeout", 0, "accepted, without effect")
	fs.DurationVar(&c.IPVS.UDPTimeout.Duration, "ipvs-udp-timeout", 0, "accepted, without effect")
	fs.StringVar(&c.DetectLocalMode, "detect-local-mode", "", "how to tell connections of pods: ClusterCIDR (default), NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	fs.StringVar(&c.DetectLocal.BridgeInterface, "pod-bridge-interface", "", "the pods' bridge, for BridgeInterface")
	fs.StringVar(&c.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", "", "what the pods' interfaces begin with, for InterfaceNamePrefix")
	fs.StringVar(&c.ClusterCIDR, "cluster-cidr", "", "where the pods live, for ClusterCIDR; several with commas. Connections from there to a ClusterIP keep their source")
	fs.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "prefixes of the addresses that serve NodePorts, or primary, localhost, all (default: all; in the mode nftables, primary)")
	fs.Int32Var(&f.oom, "oom-score-adj", *d.OOMScoreAdj, "how soon the kernel may kill this process when memory runs out, from -1000 (never) to 1000")
	fs.Int32Var(&f.maxPerCore, "conntrack-max-per-core", *d.Conntrack.MaxPerCore, "connections to track per core; 0 leaves the limit as it is")
	fs.Int32Var(&f.min, "conntrack-min", *d.Conntrack.Min, "connections to track at least")
	fs.DurationVar(&f.established, "conntrack-tcp-timeout-established", d.Conntrack.TCPEstablishedTimeout.Duration, "how long an idle TCP connection is tracked; 0 leaves it as it is")
	fs.DurationVar(&f.closeWait, "conntrack-tcp-timeout-close-wait", d.Conntrack.TCPCloseWaitTimeout.Duration, "how long a half-closed TCP connection is tracked; 0 leaves it as it is")
	fs.BoolVar(&c.Conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", true, "keep translating TCP packets out of the window, rather than letting them pass untranslated")
	fs.DurationVar(&c.Conntrack.UDPTimeout.Duration, "conntrack-udp-timeout", 0, "how long an idle UDP flow without a reply is tracked; 0 leaves it as it is")
	fs.DurationVar(&c.Conntrack.UDPStreamTimeout.Duration, "conntrack-udp-timeout-stream", 0, "how long an idle UDP flow with replies is tracked; 0 leaves it as it is")
	fs.DurationVar(&c.ConfigSyncPeriod.Duration, "config-sync-period", d.ConfigSyncPeriod.Duration, "accepted, without effect")

	fs.StringVar(&c.Logging.Format, "logging-format", d.Logging.Format, "text or json")
	fs.Uint32VarP(&c.Logging.Verbosity, "v", "v", 0, "how much to log; from 4 on, every change")
	fs.StringToStringVar(&f.vmodule, "vmodule", nil, "accepted, without effect")
	fs.DurationVar(&c.Logging.FlushFrequency.Duration.Duration, "log-flush-frequency", d.Logging.FlushFrequency.Duration.Duration, "accepted, without effect: logs are not buffered")
	for format, o := range map[string]*Output{"text": &c.Logging.Options.Text, "json": &c.Logging.Options.JSON} {
		fs.BoolVar(&o.SplitStream, "log-"+format+"-split-stream", false, "accepted, without effect")
		fs.Var(quantity{o}, "log-"+format+"-info-buffer-size", "accepted, without effect")
	}
	// What does nothing is accepted, and not shown: the help is for people.
	fs.VisitAll(func(flag *pflag.Flag) { flag.Hidden = strings.HasPrefix(flag.Usage, "accepted, ") })
}

// Load returns the configuration that the file or the flags ask for. Errors: Invalid.
func (f *Flags) Load() (*Loaded, error) {
	name, err := nodeName(f.c.HostnameOverride)
	if err != nil {
		return nil, err
	}
	if f.File == "" {
		return f.loadFlags(name)
	}
	l, err := Load(f.File, f.Lenient)
	if err != nil {
		return nil, err
	}
	if name != "" {
		l.HostnameOverride = name
	}
	if err := f.logging(&l.Logging); err != nil {
		return nil, err
	}
	var ignored []string
	f.fs.Visit(func(flag *pflag.Flag) {
		if _, isField := fieldsOf[flag.Name]; isField {
			ignored = append(ignored, "--"+flag.Name)
		}
	})
	if len(ignored) > 0 {
		l.Notices = append(l.Notices, "ignored, as the configuration file decides: "+strings.Join(ignored, ", "))
	}
	k := &checker{source: "command line", line: none}
	if l.checkLogging(k); len(k.wrong) > 0 {
		return nil, fail(k.wrong)
	}
	return l, nil
}

func (f *Flags) loadFlags(name string) (*Loaded, error) {
	l := &Loaded{Configuration: f.c, Source: "command line", set: map[string]bool{}}
	c := &l.Configuration
	c.Kind, c.APIVersion = Kind, APIVersion
	c.HostnameOverride = name
	c.OOMScoreAdj, c.Conntrack.MaxPerCore, c.Conntrack.Min = &f.oom, &f.maxPerCore, &f.min
	c.IPTables.MasqueradeBit, c.IPTables.LocalhostNodePorts = &f.bit, &f.localhost
	c.IPTables.MasqueradeAll, c.NFTables.MasqueradeAll = f.masqueradeAll, f.masqueradeAll
	c.NFTables.SyncPeriod, c.NFTables.MinSyncPeriod = c.IPTables.SyncPeriod, c.IPTables.MinSyncPeriod
	c.Conntrack.TCPEstablishedTimeout = &Duration{Duration: f.established}
	c.Conntrack.TCPCloseWaitTimeout = &Duration{Duration: f.closeWait}
	c.Logging = Logging{}
	if err := f.logging(&c.Logging); err != nil {
		return nil, err
	}
	c.FeatureGates = map[string]bool{}
	for gate, text := range f.gates {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "--feature-gates %s=%s: want true or false", gate, text)
		}
		c.FeatureGates[gate] = on
	}
	f.fs.Visit(func(flag *pflag.Flag) {
		for _, field := range fieldsOf[flag.Name] {
			l.set[field] = true
		}
	})
	for flag, addr := range map[string]*string{"healthz": &c.HealthzBindAddress, "metrics": &c.MetricsBindAddress} {
		if *addr != "" && netutils.ParseIPSloppy(*addr) == nil {
			if _, _, err := net.SplitHostPort(*addr); err != nil {
				return nil, fault.New(fault.Invalid, "--%s-bind-address %s: want an IP address, or ADDRESS:PORT", flag, *addr)
			}
		}
	}
	off := f.ports(c)
	if err := l.complete(); err != nil {
		return nil, err
	}
	for _, addr := range off {
		*addr = ""
	}
	return l, nil
}

// ports applies the old flags for ports alone. It returns the addresses that are to be empty in the end: a server that
// is switched off cannot be written in a file, where empty means the default.
func (f *Flags) ports(c *Configuration) (off []*string) {
	for _, s := range []struct {
		flag string
		port int
		addr *string
		host string
	}{
		{"healthz-port", f.healthzPort, &c.HealthzBindAddress, "0.0.0.0"},
		{"metrics-port", f.metricsPort, &c.MetricsBindAddress, "127.0.0.1"},
	} {
		switch {
		case !f.fs.Changed(s.flag):
		case s.port == 0:
			off = append(off, s.addr)
		case *s.addr == "":
			*s.addr = net.JoinHostPort(s.host, strconv.Itoa(s.port))
		default:
			*s.addr = withPort(*s.addr, s.port)
		}
	}
	return off
}

// logging puts the flags for logs that were given over what is there.
func (f *Flags) logging(to *Logging) error {
	from := &f.c.Logging
	var err error
	f.fs.Visit(func(flag *pflag.Flag) {
		switch flag.Name {
		case "v":
			to.Verbosity = from.Verbosity
		case "logging-format":
			to.Format = from.Format
		case "log-flush-frequency":
			to.FlushFrequency = from.FlushFrequency
		case "log-text-split-stream":
			to.Options.Text.SplitStream = from.Options.Text.SplitStream
		case "log-json-split-stream":
			to.Options.JSON.SplitStream = from.Options.JSON.SplitStream
		case "log-text-info-buffer-size":
			to.Options.Text.InfoBufferSize = from.Options.Text.InfoBufferSize
		case "log-json-info-buffer-size":
			to.Options.JSON.InfoBufferSize = from.Options.JSON.InfoBufferSize
		case "vmodule":
			for pattern, text := range f.vmodule {
				n, bad := strconv.ParseUint(text, 10, 31)
				if bad != nil {
					err = fault.New(fault.Invalid, "--vmodule %s=%s: want a whole number", pattern, text)
				}
				to.VModule = append([]VModule{{pattern, uint32(n)}}, to.VModule...)
			}
		}
	})
	return err
}

// nodeName is a name as the API has it; empty stays empty.
func nodeName(text string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(text))
	if name == "" && text != "" {
		return "", fault.New(fault.Invalid, "--hostname-override: it is blank (name the Node object, or leave the flag out)")
	}
	return name, nil
}

// NodeName is the name of the Node object: hostnameOverride, or the host's own name.
func (c *Configuration) NodeName() (string, error) {
	name := c.HostnameOverride
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("name of this node: %w", err)
		}
	}
	if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
		return "", fault.New(fault.Invalid, "the name of this node is blank (set hostnameOverride)")
	}
	return name, nil
}

// Write writes the configuration as YAML, for --write-config-to.
func (c *Configuration) Write(file string) error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
