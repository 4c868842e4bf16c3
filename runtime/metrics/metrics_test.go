package metrics

import (
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/cgroup"
)

// full is a sample in which every metric has a value.
func full() *Sample {
	p := &cgroup.Pressure{Some: cgroup.Stall{Total: 3 * time.Second}, Full: cgroup.Stall{Total: 2 * time.Second}}
	return &Sample{
		Labels: Labels{"/pods/c", "c", "img", "ns", "web", "main"}, Now: time.Unix(100, 0), Start: time.Unix(50, 0),
		Use: cgroup.Detail{
			Stats:     cgroup.Stats{CPUNanos: 2_900_000_000, MemoryUsage: 7, CPU: p, Memory: p, IO: p},
			Hugepages: []cgroup.Hugepage{{Size: "2MB", Usage: 4, Max: 8}},
		},
		Spec: &cri.LinuxContainerResources{CpuQuota: 5, MemorySwapLimitInBytes: -1}, Device: "/dev/vda",
		Blocks:  []Block{{"/dev/vda", cgroup.DeviceIO{Major: 8, Minor: 1, ReadBytes: 11}}},
		Network: []Interface{{Name: "eth0", RxBytes: 12}},
	}
}

// TestEveryValueFitsItsDescriptor: a kubelet drops a metric whose labels are not those announced.
func TestEveryValueFitsItsDescriptor(t *testing.T) {
	keys := map[string][]string{}
	for _, d := range Descriptors() {
		if keys[d.Name] != nil {
			t.Errorf("%s is announced twice", d.Name)
		}
		if d.Help == "" {
			t.Errorf("%s has no help", d.Name)
		}
		keys[d.Name] = d.LabelKeys
	}
	seen := map[string]bool{}
	for _, m := range append(Container(full()), Pod(full())...) {
		seen[m.Name] = true
		if len(m.LabelValues) != len(keys[m.Name]) {
			t.Errorf("%s: labels %v for keys %v", m.Name, m.LabelValues, keys[m.Name])
		}
	}
	for name := range keys {
		if !seen[name] {
			t.Errorf("%s is announced, but a full sample has no value for it", name)
		}
	}
}

func TestValues(t *testing.T) {
	type key struct{ name, extra string }
	got := map[key]uint64{}
	for _, m := range append(Container(full()), Pod(full())...) {
		extra := ""
		if len(m.LabelValues) > len(common) {
			extra = m.LabelValues[len(m.LabelValues)-1]
		}
		got[key{m.Name, extra}] = m.Value.GetValue()
	}
	for k, want := range map[key]uint64{
		{"container_cpu_usage_seconds_total", "total"}:          2,
		{"container_memory_usage_bytes", ""}:                    7,
		{"container_hugetlb_max_usage_bytes", "2MB"}:            8,
		{"container_blkio_device_usage_total", "Read"}:          11,
		{"container_network_receive_bytes_total", "eth0"}:       12,
		{"container_pressure_memory_waiting_seconds_total", ""}: 3,
		{"container_pressure_io_stalled_seconds_total", ""}:     2,
		{"container_spec_memory_swap_limit_bytes", ""}:          0, // -1 is no limit
		{"container_start_time_seconds", ""}:                    50,
	} {
		if v, ok := got[k]; !ok || v != want {
			t.Errorf("%v: %d (%v), want %d", k, v, ok, want)
		}
	}
}

// TestNothingIsInvented: without a quota, PSI or traffic there is no point that would graph as zero.
func TestNothingIsInvented(t *testing.T) {
	for _, m := range append(Container(&Sample{Device: "/dev/vda"}), Pod(&Sample{})...) {
		switch m.Name {
		case "container_cpu_cfs_periods_total", "container_spec_cpu_quota", "container_pressure_cpu_waiting_seconds_total", "container_fs_reads_total", "container_network_receive_bytes_total":
			t.Errorf("%s has a value", m.Name)
		}
	}
}
