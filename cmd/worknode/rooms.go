package main

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"worknode/fault"
	"worknode/proxy"
)

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
