package runtime

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/runtime/act"
	"worknode/runtime/metrics"
	"worknode/runtime/state"
)

// SandboxMetrics reads a pod's metrics: its network, and each running container. Nothing runs between two calls.
func (l *loop) SandboxMetrics(s *state.Sandbox) *cri.PodSandboxMetrics {
	out := &cri.PodSandboxMetrics{PodSandboxId: s.ID}
	labels := metrics.Labels{ID: s.CgroupParent, Name: s.ID, Namespace: s.Meta().GetNamespace(), Pod: s.Meta().GetName()}
	disk := act.ReadDisk(l.opt.Root)
	for _, c := range l.store.Containers(s.ID) {
		if c.State != state.Running {
			continue
		}
		if out.Metrics == nil && !s.HostNetwork {
			out.Metrics = metrics.Pod(&metrics.Sample{Labels: labels, Network: interfaces(act.ReadTraffic(c.Pid))})
		}
		own := labels
		own.ID, own.Name, own.Image, own.Container = c.Cgroup, c.ID, c.Config.GetImage().GetImage(), c.Meta().GetName()
		if sample, ok := l.sample(c, own, disk); ok {
			out.ContainerMetrics = append(out.ContainerMetrics, &cri.ContainerMetrics{ContainerId: c.ID, Metrics: metrics.Container(sample)})
		}
	}
	return out
}

// sample reads one container; false if it has just ended.
func (l *loop) sample(c *state.Container, labels metrics.Labels, disk act.Disk) (*metrics.Sample, bool) {
	use, err := l.hands.Tree.Detail(c.Cgroup)
	if err != nil {
		return nil, false
	}
	held := l.hands.ReadHeld(c.Cgroup, c.Pid)
	bytes, _ := l.written(c)
	out := &metrics.Sample{
		Labels: labels, Now: time.Now(), Start: c.Started, Use: use, Spec: c.Config.GetLinux().GetResources(),
		Files: held.Files, Socks: held.Sockets, Procs: held.Processes, NoFile: held.FileLimit,
		Device: disk.Device, FsUsage: bytes, FsLimit: disk.Bytes, Inodes: disk.Inodes, InodesFree: disk.InodesFree,
	}
	for _, d := range use.Devices {
		out.Blocks = append(out.Blocks, metrics.Block{Name: act.BlockName(d.Major, d.Minor), DeviceIO: d})
	}
	return out, true
}

func interfaces(list []act.Traffic) []metrics.Interface {
	out := make([]metrics.Interface, 0, len(list))
	for _, t := range list {
		out = append(out, metrics.Interface{
			Name: t.Device, RxBytes: t.RxBytes, RxPackets: t.RxPackets, RxErrors: t.RxErrors, RxDropped: t.RxDropped,
			TxBytes: t.TxBytes, TxPackets: t.TxPackets, TxErrors: t.TxErrors, TxDropped: t.TxDropped,
		})
	}
	return out
}
