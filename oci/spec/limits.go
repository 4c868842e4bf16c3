package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/kernel/cgroup"
)

// Limits translates linux.resources for the cgroup package, which refuses what this machine's hierarchies lack.
// What the spec calls deprecated and allows to be ignored is: memory.kernel, memory.useHierarchy, blockIO.leafWeight.
// Source: OCI config-linux.md, "Control groups".
func Limits(r *specs.LinuxResources) cgroup.Resources {
	var out cgroup.Resources
	if r == nil {
		return out
	}
	rare := &cgroup.Rare{}
	if c := r.CPU; c != nil {
		out.CPUShares, out.CPUPeriod = value(c.Shares), value(c.Period)
		out.CPUQuota = value(c.Quota)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
		rare.CPUBurst, rare.RTRuntime, rare.RTPeriod, rare.CPUIdle = c.Burst, c.RealtimeRuntime, c.RealtimePeriod, c.Idle
	}
	if m := r.Memory; m != nil {
		out.Memory, out.MemorySwap = m.Limit, m.Swap
		rare.MemoryReservation, rare.KernelTCP, rare.Swappiness = m.Reservation, m.KernelTCP, m.Swappiness
		rare.NoOOMKiller = value(m.DisableOOMKiller)
	}
	if p := r.Pids; p != nil {
		out.Pids = p.Limit
	}
	for _, h := range r.HugepageLimits {
		if out.Hugepages == nil {
			out.Hugepages = map[string]uint64{}
		}
		out.Hugepages[h.Pagesize] = h.Limit
	}
	out.Unified = r.Unified
	for _, d := range r.Devices {
		rule := cgroup.Device{Allow: d.Allow, Type: d.Type, Major: -1, Minor: -1, Access: d.Access}
		if d.Major != nil {
			rule.Major = *d.Major
		}
		if d.Minor != nil {
			rule.Minor = *d.Minor
		}
		out.Devices = append(out.Devices, rule)
	}
	if b := r.BlockIO; b != nil {
		blockIO(b, rare)
	}
	if n := r.Network; n != nil {
		rare.NetClass = n.ClassID
		for _, p := range n.Priorities {
			if rare.NetPriority == nil {
				rare.NetPriority = map[string]uint32{}
			}
			rare.NetPriority[p.Name] = p.Priority
		}
	}
	for device, limit := range r.Rdma {
		if rare.RDMA == nil {
			rare.RDMA = map[string]string{}
		}
		text := ""
		if limit.HcaHandles != nil {
			text = fmt.Sprintf("hca_handle=%d", *limit.HcaHandles)
		}
		if limit.HcaObjects != nil {
			text += fmt.Sprintf(" hca_object=%d", *limit.HcaObjects)
		}
		rare.RDMA[device] = text
	}
	out.Rare = rare
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func blockIO(b *specs.LinuxBlockIO, into *cgroup.Rare) {
	into.Weight = b.Weight
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			into.WeightDevice = append(into.WeightDevice, cgroup.DeviceRate{Major: d.Major, Minor: d.Minor, Rate: uint64(*d.Weight)})
		}
	}
	rates := func(list []specs.LinuxThrottleDevice) (out []cgroup.DeviceRate) {
		for _, d := range list {
			out = append(out, cgroup.DeviceRate{Major: d.Major, Minor: d.Minor, Rate: d.Rate})
		}
		return out
	}
	into.ReadBps, into.WriteBps = rates(b.ThrottleReadBpsDevice), rates(b.ThrottleWriteBpsDevice)
	into.ReadIOPS, into.WriteIOPS = rates(b.ThrottleReadIOPSDevice), rates(b.ThrottleWriteIOPSDevice)
}
