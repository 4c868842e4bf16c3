package main

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"worknode/fault"
	"worknode/kubelet"
	"worknode/proxy"
)

// kubeletCommand is `worknode kubelet`; the flags that upstream has too have upstream's names.
func kubeletCommand() *cobra.Command {
	var o kubelet.Options
	var healthz int
	var cleanup bool
	c := &cobra.Command{
		Use: "kubelet", Short: "Run the kubelet", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			daemon("kubelet")
			if healthz > 0 {
				o.HealthzAddr = net.JoinHostPort("127.0.0.1", strconv.Itoa(healthz))
			}
			if cleanup {
				return kubelet.Cleanup(o)
			}
			return kubelet.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach the API")
	f.StringVar(&o.NodeName, "hostname-override", hostname(), "name of the node")
	f.StringSliceVar(&o.NodeIPs, "node-ip", nil, "address of the node (one per family)")
	f.StringVar(&o.RuntimeSocket, "container-runtime-endpoint", "unix:///run/worknode/runtime.sock", "CRI socket")
	f.StringVar(&o.RootDir, "root-dir", "/var/lib/kubelet", "volumes and other files of pods")
	f.StringVar(&o.LogDir, "pod-logs-dir", "/var/log/pods", "logs of containers")
	f.StringVar(&o.LinkDir, "container-logs-dir", "/var/log/containers", "links to the logs for collectors; - for none")
	f.StringVar(&o.CgroupRoot, "cgroup-root", "/kubepods", "cgroup of all pods")
	f.StringVar(&o.Address, "address", "0.0.0.0", "address of the server")
	f.IntVar(&o.Port, "port", 10250, "port of the server")
	f.IntVar(&healthz, "healthz-port", 10248, "port of /healthz on loopback; 0 for none")
	f.StringVar(&o.ServingCert, "tls-cert-file", "", "certificate of the server")
	f.StringVar(&o.ServingKey, "tls-private-key-file", "", "its key")
	f.StringVar(&o.ClientCA, "client-ca-file", "", "authority of those who may use the server")
	f.StringSliceVar(&o.ClusterDNS, "cluster-dns", nil, "addresses of the DNS server for pods")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "", "DNS domain of Services")
	f.StringVar(&o.ResolvConf, "resolv-conf", "/etc/resolv.conf", "resolver configuration of the machine")
	f.StringVar(&o.PodCIDR, "pod-cidr", "", "addresses of the pods, for the node object")
	f.IntVar(&o.MaxPods, "max-pods", 110, "most pods to admit")
	f.Int64Var(&o.PodPidsLimit, "pod-max-pids", 4096, "most processes in a pod; 0 for no bound")
	f.BoolVar(&cleanup, "cleanup", false, "unmount all volumes, remove the pods' cgroups, and exit")
	return c
}

// proxyCommand is `worknode proxy`.
func proxyCommand() *cobra.Command {
	var o proxy.Options
	var healthz, metrics int
	var cleanup bool
	c := &cobra.Command{
		Use: "proxy", Short: "Run the service proxy", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			daemon("proxy")
			if cleanup {
				return proxy.Cleanup()
			}
			if healthz > 0 {
				o.HealthzAddr = net.JoinHostPort("0.0.0.0", strconv.Itoa(healthz))
			}
			if metrics > 0 {
				o.MetricsAddr = net.JoinHostPort("127.0.0.1", strconv.Itoa(metrics))
			}
			for _, text := range o.ClusterCIDR {
				if _, err := netip.ParsePrefix(text); err != nil {
					return fault.New(fault.Invalid, "--cluster-cidr %s: want a prefix such as 10.88.0.0/16", text)
				}
			}
			return proxy.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach the API")
	f.StringVar(&o.NodeName, "hostname-override", hostname(), "name of the node")
	f.StringSliceVar(&o.ClusterCIDR, "cluster-cidr", nil, "where the pods live: connections from there keep their source")
	f.StringSliceVar(&o.NodePortAddresses, "nodeport-addresses", nil, `prefixes of the addresses that serve NodePorts, or "primary" (default), or "all"`)
	f.BoolVar(&o.MasqueradeAll, "masquerade-all", false, "hide the source of every connection to a Service")
	f.IntVar(&healthz, "healthz-port", 10256, "port of /healthz; 0 for none")
	f.IntVar(&metrics, "metrics-port", 10249, "port of /metrics on loopback; 0 for none")
	f.BoolVar(&cleanup, "cleanup", false, "remove the proxy's table, and exit")
	return c
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "worknode"
	}
	return strings.ToLower(name)
}
