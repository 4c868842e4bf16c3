package runtime

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"worknode/fault"
	"worknode/runtime/cni"
	"worknode/runtime/config"
	"worknode/runtime/handler"
	"worknode/runtime/network"
	"worknode/runtime/verify"
)

// FromConfig turns a configuration, which Check has passed, into options.
// Errors: no monitor where the configuration, or our own place, says.
func FromConfig(c config.Config) (Options, error) {
	o := Options{
		Root: c.Root, Run: c.Run, Socket: c.Socket, Monitor: c.Monitor, CgroupRoot: c.Cgroup, Streaming: c.Streaming,
		ImageDir: c.Images.Folder, CertsDirs: c.Images.CertsDirs, PullStall: time.Duration(c.Images.ProgressTimeout),
		Pinned: c.Images.Pinned, Parallel: c.Images.Parallel, Metrics: c.Metrics.Address, Debug: c.Debug.Socket,
		CNI: cni.Config{ConfDir: c.Network.CNIConfDir, BinDirs: c.Network.CNIBinDirs}, CDIDirs: c.Devices.CDIDirs,
		NRI: NRI{Off: !c.NRI.Enabled, Socket: c.NRI.Socket, PluginDir: c.NRI.PluginDir, ConfigDir: c.NRI.ConfigDir,
			RegistrationTimeout: time.Duration(c.NRI.RegistrationTimeout), RequestTimeout: time.Duration(c.NRI.RequestTimeout)},
	}
	for _, h := range c.Handlers {
		o.Handlers = append(o.Handlers, handler.Config{Name: h.Name, Path: h.Path, Root: h.Root, Args: h.Args})
	}
	for _, v := range c.Images.Verify {
		o.Verify = append(o.Verify, verify.Rule(v))
	}
	if c.Network.Bridge != "" {
		subnet, err := netip.ParsePrefix(c.Network.PodCIDR)
		if err != nil {
			return o, fault.New(fault.Invalid, "field network.pod-cidr: %w", err)
		}
		o.Bridge = network.Config{Bridge: c.Network.Bridge, Subnet: subnet.Masked()}
	}
	if o.Monitor == "" {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("find worknode-monitor: %w", err)
		}
		o.Monitor = filepath.Join(filepath.Dir(self), "worknode-monitor")
	}
	if _, err := os.Stat(o.Monitor); err != nil {
		return o, fault.Hint(fmt.Errorf("container monitor: %w", err), "install worknode-monitor beside worknode, or name it with --monitor")
	}
	return o, nil
}
