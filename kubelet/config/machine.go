package config

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Machine refuses a machine that the configuration does not want: one with cgroup v1, or with swap in use.
// Source: KubeletConfiguration, failCgroupV1 and failSwapOn.
func Machine(c *Configuration) error {
	if *c.FailCgroupV1 && cgroupV1() {
		return fault.Hint(fault.New(fault.Unsupported, "kubelet configuration: failCgroupV1: this machine has cgroup v1"),
			"boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or set failCgroupV1: false")
	}
	if *c.FailSwapOn {
		// The first line is a title. Source: proc_swaps(5).
		swaps, err := os.ReadFile("/proc/swaps")
		if err == nil && bytes.Count(bytes.TrimSpace(swaps), []byte("\n")) > 0 {
			return fault.Hint(fault.New(fault.Unsupported, "kubelet configuration: failSwapOn: this machine uses swap"),
				"turn it off with swapoff -a, or set failSwapOn: false")
		}
	}
	return nil
}

func cgroupV1() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type != unix.CGROUP2_SUPER_MAGIC
}
