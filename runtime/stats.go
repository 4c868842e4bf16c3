package runtime

import (
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/cgroup"
	"worknode/runtime/act"
	"worknode/runtime/network"
	"worknode/runtime/state"
)

// ContainerStats reads what a container uses now. What cannot be read (it is just ending) is left out.
func (l *loop) ContainerStats(c *state.Container) *cri.ContainerStats {
	out := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
		Id: c.ID, Metadata: c.Meta(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
	}}
	if use, err := l.hands.Tree.Stats(c.Cgroup); err == nil {
		out.Cpu, out.Memory = cpuUsage(use), memoryUsage(use)
		out.Swap = &cri.SwapUsage{Timestamp: use.At.UnixNano(), SwapUsageBytes: number(use.Swap)}
		if use.IO != nil {
			out.Io = &cri.IoUsage{Timestamp: use.At.UnixNano(), Psi: pressure(use.IO)}
		}
	}
	bytes, files := l.written(c)
	out.WritableLayer = usage(time.Now().UnixNano(), l.opt.Root, bytes, files)
	return out
}

// SandboxStats reads what a pod uses: its cgroup as a whole, its network, and each running container.
func (l *loop) SandboxStats(s *state.Sandbox) *cri.PodSandboxStats {
	linux := &cri.LinuxPodSandboxStats{}
	if use, err := l.hands.Tree.Stats(s.CgroupParent); err == nil {
		linux.Cpu, linux.Memory = cpuUsage(use), memoryUsage(use)
		linux.Process = &cri.ProcessUsage{Timestamp: use.At.UnixNano(), ProcessCount: number(use.Pids)}
		if use.IO != nil {
			linux.Io = &cri.IoUsage{Timestamp: use.At.UnixNano(), Psi: pressure(use.IO)}
		}
	}
	for _, c := range l.store.Containers(s.ID) {
		if c.State != state.Running {
			continue
		}
		linux.Containers = append(linux.Containers, l.ContainerStats(c))
		if linux.Network == nil && !s.HostNetwork {
			linux.Network = traffic(act.ReadTraffic(c.Pid))
		}
	}
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{Id: s.ID, Metadata: s.Meta(), Labels: s.Config.GetLabels(), Annotations: s.Config.GetAnnotations()},
		Linux:      linux,
	}
}

// written is the size of a container's writable layer.
func (l *loop) written(c *state.Container) (bytes, inodes uint64) {
	return l.sizes.Of(filepath.Join(l.hands.Layer(c.ID), "upper"))
}

func number(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

func cpuUsage(u cgroup.Stats) *cri.CpuUsage {
	return &cri.CpuUsage{Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: number(u.CPUNanos), Psi: pressure(u.CPU)}
}

func memoryUsage(u cgroup.Stats) *cri.MemoryUsage {
	out := &cri.MemoryUsage{
		Timestamp: u.At.UnixNano(), WorkingSetBytes: number(u.MemoryWorking), UsageBytes: number(u.MemoryUsage), RssBytes: number(u.MemoryRSS),
		PageFaults: number(u.PageFaults), MajorPageFaults: number(u.MajorPageFaults), Psi: pressure(u.Memory),
	}
	if u.MemoryLimit > u.MemoryWorking {
		out.AvailableBytes = number(u.MemoryLimit - u.MemoryWorking)
	}
	return out
}

func pressure(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	return &cri.PsiStats{Some: stall(p.Some), Full: stall(p.Full)}
}

// stall turns one line of PSI into CRI's, whose total is in nanoseconds.
func stall(s cgroup.Stall) *cri.PsiData {
	return &cri.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

func traffic(list []act.Traffic) *cri.NetworkUsage {
	if len(list) == 0 {
		return nil
	}
	out := &cri.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, t := range list {
		u := &cri.NetworkInterfaceUsage{Name: t.Device, RxBytes: number(t.RxBytes), RxErrors: number(t.RxErrors), TxBytes: number(t.TxBytes), TxErrors: number(t.TxErrors)}
		if t.Device == network.Interface {
			out.DefaultInterface = u
			continue
		}
		out.Interfaces = append(out.Interfaces, u)
	}
	return out
}
