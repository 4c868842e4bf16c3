package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"worknode/fault"
	"worknode/kubelet"
	"worknode/proxy"
	"worknode/runtime"
)

// runtimeCommand is `worknode runtime`: CRI over a unix socket.
func runtimeCommand() *cobra.Command {
	var o runtime.Options
	var bridge, pods string
	var cleanup bool
	c := &cobra.Command{
		Use: "runtime", Short: "Run the container runtime (CRI v1 over a unix socket)", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			daemon("runtime")
			if bridge != "" {
				subnet, err := prefix("--pod-cidr", pods)
				if err != nil {
					return err
				}
				o.Bridge.Bridge, o.Bridge.Subnet = bridge, subnet
			}
			if o.Monitor == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find worknode-monitor: %w", err)
				}
				o.Monitor = filepath.Join(filepath.Dir(self), "worknode-monitor")
			}
			if _, err := os.Stat(o.Monitor); err != nil {
				return fault.Hint(fmt.Errorf("container monitor: %w", err), "install worknode-monitor beside worknode, or name it with --monitor")
			}
			if cleanup {
				return runtime.Cleanup(c.Context(), o)
			}
			return runtime.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Root, "root", "/var/lib/worknode/runtime", "images and writable layers")
	f.StringVar(&o.Run, "run", "/run/worknode/runtime", "live records and sockets; best on tmpfs")
	f.StringVar(&o.Socket, "socket", "/run/worknode/runtime.sock", "CRI socket")
	f.StringVar(&o.Monitor, "monitor", "", "path of worknode-monitor (default: beside this binary)")
	f.StringVar(&o.ImageDir, "images", "", "folder of image tar files to import, watched")
	f.StringSliceVar(&o.CertsDirs, "certs-dir", nil, "folders of HOST/hosts.toml for registries (default: /etc/containerd/certs.d, /etc/docker/certs.d)")
	f.DurationVar(&o.PullStall, "pull-progress-timeout", time.Minute, "give a pull up that gets no byte for so long")
	f.StringSliceVar(&o.Pinned, "pinned-image", nil, "images that are not to be cleaned up: names, or patterns such as registry.example/base/*")
	f.StringVar(&o.CgroupRoot, "cgroup", "/worknode", "cgroup of pods whose creator names none")
	f.StringVar(&o.CNI.ConfDir, "cni-conf-dir", "/etc/cni/net.d", "configurations of the CNI plugins that connect pods; the first by name is in force, changes too")
	f.StringSliceVar(&o.CNI.BinDirs, "cni-bin-dir", []string{"/opt/cni/bin"}, "folders of CNI plugins (repeatable)")
	f.StringVar(&bridge, "bridge", "", "serve pods with the built-in bridge of this name, not by CNI plugins")
	f.StringVar(&pods, "pod-cidr", "10.88.0.0/16", "addresses of the pods on the built-in bridge")
	f.BoolVar(&cleanup, "cleanup", false, "end all containers, remove all that the runtime made on the machine except images, and exit")
	return c
}

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
