package cri

import (
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodMetrics compares what the runtime says of a container with what the container does.
func TestPodMetrics(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("busy", "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; sleep 1000 & sleep 1000 & end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done; echo ready; sleep 1000; true")
	c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
	before := time.Now().Unix()
	id := n.run(pod, box, c)
	n.until("the container's work", func() bool { return readLog(t, n.status(id).LogPath) == "ready\n" })
	list, err := n.cri.ListPodSandboxMetrics(n.ctx(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.PodMetrics) != 1 || list.PodMetrics[0].PodSandboxId != pod || len(list.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("metrics of %v, want one pod with one container", list)
	}
	got := map[string]uint64{}
	for _, m := range append(list.PodMetrics[0].Metrics, list.PodMetrics[0].ContainerMetrics[0].Metrics...) {
		got[m.Name] = m.Value.GetValue()
	}
	if v := got["container_processes"]; v != 4 {
		t.Errorf("%d processes, want the shell and three sleeps", v)
	}
	for name, limits := range map[string][2]uint64{
		"container_cpu_cfs_throttled_periods_total": {1, 1000},
		"container_cpu_usage_seconds_total":         {0, 3},
		"container_memory_max_usage_bytes":          {1 << 20, 64 << 20},
		"container_spec_memory_limit_bytes":         {64 << 20, 64 << 20},
		"container_spec_cpu_quota":                  {50000, 50000},
		"container_fs_usage_bytes":                  {3 << 20, 4 << 20},
		"container_fs_limit_bytes":                  {1 << 20, 1 << 62},
		"container_file_descriptors":                {12, 100},
		"container_threads":                         {4, 4},
		"container_start_time_seconds":              {uint64(before), uint64(time.Now().Unix())},
		"container_network_transmit_errors_total":   {0, 0},
	} {
		if v, ok := got[name]; !ok || v < limits[0] || v > limits[1] {
			t.Errorf("%s = %d (%v), want %d to %d", name, v, ok, limits[0], limits[1])
		}
	}
	if _, err := n.cri.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if list, err := n.cri.ListPodSandboxMetrics(n.ctx(), &cri.ListPodSandboxMetricsRequest{}); err != nil || len(list.PodMetrics) != 0 {
		t.Errorf("a stopped pod still has metrics: %v %v", list, err)
	}
}
