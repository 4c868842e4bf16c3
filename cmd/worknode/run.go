package main

import (
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"worknode/fault"
	"worknode/standalone"
	"worknode/version"
)

// runCommand is `worknode run DIR`: a standalone node.
func runCommand() *cobra.Command {
	o := standalone.Options{Build: version.Build}
	var publish []string
	var pods, services string
	c := &cobra.Command{
		Use: "run DIR", Short: "Run a standalone node from a folder of manifests and images",
		Long: `Runs a node without a cluster: DIR holds manifests (*.yaml, *.yml, *.json, also in DIR/manifests) and images
(DIR/images/*.tar, as docker save or OCI layouts). Manifests are applied, and kept applied as files change, appear and
go. The node answers kubectl; the kubeconfig's place is printed at the start.

Ctrl-C ends the pods gracefully and removes what the node left on the machine, except its state. A node that was killed
goes on where it was: start it again.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fault.New(fault.Invalid, "run wants one folder of manifests (for example: worknode run ./example)")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			daemon("worknode")
			o.Dir = args[0]
			for _, text := range publish {
				p, err := standalone.ParsePublish(text)
				if err != nil {
					return err
				}
				o.Publish = append(o.Publish, p)
			}
			if len(o.Publish) > 0 && !o.Isolated {
				return fault.New(fault.Invalid, "--publish carries ports out of an isolated node (add --isolated; without it NodePorts answer on the machine's own address)")
			}
			var err error
			if o.PodCIDR, err = prefix("--pod-cidr", pods); err != nil {
				return err
			}
			if o.ServiceCIDR, err = prefix("--service-cidr", services); err != nil {
				return err
			}
			return standalone.Run(c.Context(), o)
		},
	}
	host, err := os.Hostname()
	if err != nil {
		host = "worknode"
	}
	f := c.Flags()
	f.StringVar(&o.Root, "root", os.Getenv("WORKNODE_ROOT"), "keep state and sockets below this folder, instead of /var/lib/worknode and /run/worknode")
	f.BoolVar(&o.Isolated, "isolated", false, "put the whole node into a network namespace of its own, without uplink")
	f.StringArrayVar(&publish, "publish", nil, "HOSTPORT:NODEPORT of an isolated node, to answer on 127.0.0.1 of the machine (repeatable)")
	f.StringVar(&o.NodeName, "node-name", strings.ToLower(host), "name of the node")
	f.IntVar(&o.APIPort, "api-port", 6443, "port of the API on loopback")
	f.IntVar(&o.KubeletPort, "kubelet-port", 10250, "port of the kubelet's server")
	f.IntVar(&o.HealthPorts[0], "kubelet-healthz-port", 10248, "port of the kubelet's /healthz on loopback")
	f.IntVar(&o.HealthPorts[1], "proxy-healthz-port", 10256, "port of the proxy's /healthz")
	f.StringVar(&pods, "pod-cidr", "10.88.0.0/16", "addresses of the pods")
	f.StringVar(&services, "service-cidr", "10.96.0.0/16", "addresses of the Services")
	f.StringVar(&o.Bridge, "bridge", "worknode0", "name of the bridge that the pods are on")
	return c
}

func prefix(flag, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p.Bits() > 28 {
		return netip.Prefix{}, fault.New(fault.Invalid, "%s %s: want an IPv4 prefix of at most 28 bits, such as 10.88.0.0/16", flag, text)
	}
	return p.Masked(), nil
}
