package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// statsWithin bounds the runtime's reading of all cgroups.
const statsWithin = 10 * time.Second

// getSummary shows what the node and its pods use. The figures of pods are the runtime's, read for this request.
func (s *Server) getSummary(w http.ResponseWriter, r *http.Request) {
	pods, err := s.podStats(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	out := stats.Summary{Node: nodeStats(s.NodeName, s.RootDir, time.Now()), Pods: []stats.PodStats{}}
	for _, p := range pods {
		out.Pods = append(out.Pods, podSummary(p))
	}
	reply(w, out)
}

func (s *Server) podStats(ctx context.Context) ([]*cri.PodSandboxStats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsWithin)
	defer cancel()
	resp, err := s.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, kindOfCRI(err)
	}
	return slices.DeleteFunc(resp.GetStats(), func(p *cri.PodSandboxStats) bool {
		return p.GetLinux() == nil || p.GetAttributes().GetMetadata() == nil
	}), nil
}

func podSummary(p *cri.PodSandboxStats) stats.PodStats {
	meta, l := p.Attributes.Metadata, p.Linux
	out := stats.PodStats{
		PodRef:     stats.PodReference{Name: meta.Name, Namespace: meta.Namespace, UID: meta.Uid},
		CPU:        cpuStats(l.Cpu),
		Memory:     memoryStats(l.Memory),
		Network:    networkStats(l.Network),
		Containers: []stats.ContainerStats{},
	}
	if n := l.Process.GetProcessCount(); n != nil {
		out.ProcessStats = &stats.ProcessStats{ProcessCount: &n.Value}
	}
	for _, c := range l.Containers {
		cs := stats.ContainerStats{
			Name:   c.GetAttributes().GetMetadata().GetName(),
			CPU:    cpuStats(c.Cpu),
			Memory: memoryStats(c.Memory),
		}
		if fs := c.GetWritableLayer(); fs != nil {
			cs.Rootfs = &stats.FsStats{Time: nanos(fs.Timestamp), UsedBytes: number(fs.UsedBytes), InodesUsed: number(fs.InodesUsed)}
		}
		if sw := c.GetSwap(); sw != nil {
			cs.Swap = &stats.SwapStats{Time: nanos(sw.Timestamp), SwapAvailableBytes: number(sw.SwapAvailableBytes), SwapUsageBytes: number(sw.SwapUsageBytes)}
		}
		out.Containers = append(out.Containers, cs)
	}
	slices.SortFunc(out.Containers, func(a, b stats.ContainerStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func cpuStats(c *cri.CpuUsage) *stats.CPUStats {
	if c == nil {
		return nil
	}
	return &stats.CPUStats{Time: nanos(c.Timestamp), UsageCoreNanoSeconds: number(c.UsageCoreNanoSeconds), UsageNanoCores: number(c.UsageNanoCores)}
}

func memoryStats(m *cri.MemoryUsage) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	return &stats.MemoryStats{
		Time: nanos(m.Timestamp), WorkingSetBytes: number(m.WorkingSetBytes), AvailableBytes: number(m.AvailableBytes),
		UsageBytes: number(m.UsageBytes), RSSBytes: number(m.RssBytes),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorPageFaults),
	}
}

func networkStats(n *cri.NetworkUsage) *stats.NetworkStats {
	if n == nil {
		return nil
	}
	out := &stats.NetworkStats{Time: nanos(n.Timestamp)}
	if d := n.DefaultInterface; d != nil {
		out.InterfaceStats = interfaceStats(d)
	}
	for _, i := range n.Interfaces {
		out.Interfaces = append(out.Interfaces, interfaceStats(i))
	}
	return out
}

func interfaceStats(i *cri.NetworkInterfaceUsage) stats.InterfaceStats {
	return stats.InterfaceStats{Name: i.GetName(), RxBytes: number(i.RxBytes), RxErrors: number(i.RxErrors), TxBytes: number(i.TxBytes), TxErrors: number(i.TxErrors)}
}

func number(v *cri.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func nanos(t int64) metav1.Time { return metav1.NewTime(time.Unix(0, t)) }
