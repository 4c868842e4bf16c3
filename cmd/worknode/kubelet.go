package main

import (
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"worknode/fault"
	"worknode/kubelet"
	"worknode/kubelet/config"
	"worknode/version"
)

// kubeletCommand is `worknode kubelet`; its flags are upstream's, as kubeadm, kind and systemd units pass them.
// Called by the name kubelet, the binary is this command alone (see main).
func kubeletCommand() *cobra.Command {
	var o kubelet.Options
	var from config.Sources
	var nodeIPs string
	var labels map[string]string
	var cleanup bool
	from.Flags = map[string]any{}
	c := &cobra.Command{
		Use: "kubelet", Short: "Run the kubelet", Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		// kubeadm parses exactly this. Source: kubeadm, preflight, kubelet version.
		Version: version.Kubernetes,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			daemon("kubelet")
			if o.Config, err = config.Load(from); err != nil {
				return err
			}
			if o.Labels, err = nodeLabels(labels); err != nil {
				return err
			}
			if nodeIPs != "" {
				o.NodeIPs = strings.Split(nodeIPs, ",")
			}
			if cleanup {
				return kubelet.Cleanup(o)
			}
			c.Flags().Visit(func(f *pflag.Flag) {
				if why := without[f.Name]; why != "" {
					slog.Warn("flag without effect", "flag", "--"+f.Name, "why", why)
				}
			})
			return kubelet.Run(c.Context(), o)
		},
	}
	c.SetVersionTemplate("Kubernetes {{.Version}}\n")
	f := c.Flags()
	f.StringVar(&from.File, "config", "", "KubeletConfiguration file")
	f.StringVar(&from.Folder, "config-dir", "", "folder of drop-in configuration files, *.conf")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	f.StringVar(&o.Bootstrap, "bootstrap-kubeconfig", "", "how to reach the API server to ask for the first certificate, when --kubeconfig is not there or has ended")
	f.StringVar(&o.CertDir, "cert-dir", "", "certificates that the kubelet gets for itself (default: pki below --root-dir)")
	f.StringVar(&o.NodeName, "hostname-override", hostname(), "name of the node")
	f.StringVar(&nodeIPs, "node-ip", "", "address of the node, or one per family with a comma")
	f.StringToStringVar(&labels, "node-labels", nil, "labels of the node object, a=b,c=d")
	f.StringVar(&o.RootDir, "root-dir", "/var/lib/kubelet", "volumes and other files of pods")
	f.StringVar(&o.LinkDir, "container-logs-dir", "/var/log/containers", "links to the logs for collectors; - for none")
	f.BoolVar(&cleanup, "cleanup", false, "unmount all volumes, remove the pods' cgroups, and exit")
	config.AddFlags(f, from.Flags)
	for name := range without {
		f.String(name, "", "without effect")
		f.Lookup(name).NoOptDefVal = "true"
		f.Lookup(name).Hidden = true
	}
	return c
}

// without are flags that units and tools still pass, and why they have no effect here.
var without = map[string]string{
	"v":                                        "WORKNODE_DEBUG=1 in the environment shows details",
	"vmodule":                                  "WORKNODE_DEBUG=1 in the environment shows details",
	"logging-format":                           "logs are text",
	"log-flush-frequency":                      "logs are not buffered",
	"cloud-provider":                           "the cloud's controller is told by --provider-id alone",
	"runtime-cgroups":                          "the runtime says where it runs",
	"pod-infra-container-image":                "a sandbox needs no image",
	"minimum-container-ttl-duration":           "dead containers go with their successor",
	"maximum-dead-containers":                  "dead containers go with their successor",
	"maximum-dead-containers-per-container":    "dead containers go with their successor",
	"experimental-mounter-path":                "upstream has removed it",
	"experimental-allocatable-ignore-eviction": "upstream has removed it",
	"lock-file":                                "a port in use says that another kubelet runs",
	"exit-on-lock-contention":                  "a port in use says that another kubelet runs",
}

// nodeLabels checks labels as upstream does: of the reserved namespaces only those that a kubelet may set itself.
// Source: KEP-279 (limit node access), NodeRestriction.
func nodeLabels(labels map[string]string) (map[string]string, error) {
	allowed := map[string]bool{
		"kubernetes.io/hostname": true, "topology.kubernetes.io/region": true, "topology.kubernetes.io/zone": true, "node.kubernetes.io/instance-type": true,
		"kubernetes.io/os": true, "kubernetes.io/arch": true, "failure-domain.beta.kubernetes.io/region": true, "failure-domain.beta.kubernetes.io/zone": true,
		"beta.kubernetes.io/instance-type": true, "beta.kubernetes.io/os": true, "beta.kubernetes.io/arch": true,
	}
	within := func(space, domain string) bool { return space == domain || strings.HasSuffix(space, "."+domain) }
	for key, value := range labels {
		for _, wrong := range append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...) {
			return nil, fault.New(fault.Invalid, "--node-labels %s=%s: %s", key, value, wrong)
		}
		space, _, hasSpace := strings.Cut(key, "/")
		if !hasSpace || !within(space, "kubernetes.io") && !within(space, "k8s.io") || within(space, "kubelet.kubernetes.io") || within(space, "node.kubernetes.io") || allowed[key] {
			continue
		}
		return nil, fault.New(fault.Invalid, "--node-labels %s: a kubelet may not set this label (use the prefix kubelet.kubernetes.io/ or node.kubernetes.io/, or set it as administrator)", key)
	}
	return labels, nil
}
