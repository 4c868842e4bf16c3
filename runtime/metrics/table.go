package metrics

import (
	"strconv"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/cgroup"
)

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// Both tables are built when first asked for: most runtimes are never asked.

// container is what each running container has. Rows without a value for it (no quota, no PSI) give no point.
var container = sync.OnceValue(func() []metric {
	return []metric{
		{"container_cpu_usage_seconds_total", "CPU time used, in seconds.", counter, []string{"cpu"}, func(s *Sample) []point {
			return []point{{s.Use.CPUNanos / uint64(time.Second), []string{"total"}}}
		}},
		{"container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counter, nil, func(s *Sample) []point { return seconds(s.Use.UserNanos) }},
		{"container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", counter, nil, func(s *Sample) []point { return seconds(s.Use.SystemNanos) }},
		{"container_cpu_cfs_periods_total", "Enforcement periods of the CPU limit that have passed.", counter, nil, quota(func(s *Sample) uint64 { return s.Use.Periods })},
		{"container_cpu_cfs_throttled_periods_total", "Enforcement periods in which the CPU limit held tasks back.", counter, nil, quota(func(s *Sample) uint64 { return s.Use.Throttled })},
		{"container_cpu_cfs_throttled_seconds_total", "Time that tasks were held back by the CPU limit, in seconds.", counter, nil,
			quota(func(s *Sample) uint64 { return s.Use.ThrottledNanos / uint64(time.Second) })},

		{"container_memory_usage_bytes", "Memory in use, page cache included.", gauge, nil, func(s *Sample) []point { return one(s.Use.MemoryUsage) }},
		{"container_memory_working_set_bytes", "Memory in use less inactive page cache; what eviction and the OOM killer look at.", gauge, nil,
			func(s *Sample) []point { return one(s.Use.MemoryWorking) }},
		{"container_memory_rss", "Anonymous memory.", gauge, nil, func(s *Sample) []point { return one(s.Use.MemoryRSS) }},
		{"container_memory_cache", "Page cache.", gauge, nil, func(s *Sample) []point { return one(s.Use.Cache) }},
		{"container_memory_mapped_file", "Memory-mapped files.", gauge, nil, func(s *Sample) []point { return one(s.Use.Mapped) }},
		{"container_memory_swap", "Swap in use.", gauge, nil, func(s *Sample) []point { return one(s.Use.Swap) }},
		{"container_memory_kernel_usage", "Kernel memory.", gauge, nil, func(s *Sample) []point { return one(s.Use.Kernel) }},
		{"container_memory_max_usage_bytes", "The highest memory use so far.", gauge, nil, func(s *Sample) []point { return one(s.Use.MemoryMax) }},
		{"container_memory_failcnt", "How often the memory limit was hit.", counter, nil, func(s *Sample) []point { return one(s.Use.MemoryFailures) }},
		{"container_memory_failures_total", "Page faults.", counter, []string{"failure_type", "scope"}, func(s *Sample) []point {
			return []point{
				{s.Use.OwnFaults, []string{"pgfault", "container"}}, {s.Use.OwnMajorFaults, []string{"pgmajfault", "container"}},
				{s.Use.PageFaults, []string{"pgfault", "hierarchy"}}, {s.Use.MajorPageFaults, []string{"pgmajfault", "hierarchy"}},
			}
		}},
		{"container_oom_events_total", "Processes that the OOM killer chose.", counter, nil, func(s *Sample) []point { return one(s.Use.OOMKills) }},
		{"container_hugetlb_usage_bytes", "Huge pages in use.", gauge, []string{"pagesize"}, func(s *Sample) (out []point) {
			for _, h := range s.Use.Hugepages {
				out = append(out, point{h.Usage, []string{h.Size}})
			}
			return out
		}},
		{"container_hugetlb_max_usage_bytes", "The highest use of huge pages so far.", gauge, []string{"pagesize"}, func(s *Sample) (out []point) {
			for _, h := range s.Use.Hugepages {
				out = append(out, point{h.Max, []string{h.Size}})
			}
			return out
		}},

		{"container_blkio_device_usage_total", "Bytes moved between the container and a block device.", counter, []string{"device", "major", "minor", "operation"}, func(s *Sample) (out []point) {
			for _, b := range s.Blocks {
				major, minor := strconv.FormatUint(b.Major, 10), strconv.FormatUint(b.Minor, 10)
				out = append(out, point{b.ReadBytes, []string{b.Name, major, minor, "Read"}}, point{b.WriteBytes, []string{b.Name, major, minor, "Write"}})
			}
			return out
		}},
		{"container_fs_reads_bytes_total", "Bytes read from a block device.", counter, []string{"device"}, blocks(func(b Block) uint64 { return b.ReadBytes })},
		{"container_fs_reads_total", "Reads from a block device.", counter, []string{"device"}, blocks(func(b Block) uint64 { return b.Reads })},
		{"container_fs_writes_bytes_total", "Bytes written to a block device.", counter, []string{"device"}, blocks(func(b Block) uint64 { return b.WriteBytes })},
		{"container_fs_writes_total", "Writes to a block device.", counter, []string{"device"}, blocks(func(b Block) uint64 { return b.Writes })},
		{"container_fs_usage_bytes", "Bytes of the writable layer.", gauge, []string{"device"}, disk(func(s *Sample) uint64 { return s.FsUsage })},
		{"container_fs_limit_bytes", "Bytes of the file system that the writable layer lies on.", gauge, []string{"device"}, disk(func(s *Sample) uint64 { return s.FsLimit })},
		{"container_fs_inodes_free", "Free inodes of the file system that the writable layer lies on.", gauge, []string{"device"}, disk(func(s *Sample) uint64 { return s.InodesFree })},
		{"container_fs_inodes_total", "Inodes of the file system that the writable layer lies on.", gauge, []string{"device"}, disk(func(s *Sample) uint64 { return s.Inodes })},

		{"container_processes", "Processes.", gauge, nil, func(s *Sample) []point { return one(s.Procs) }},
		{"container_threads", "Threads.", gauge, nil, func(s *Sample) []point { return one(s.Use.Pids) }},
		{"container_threads_max", "The most threads there may be; 0 without a limit.", gauge, nil, func(s *Sample) []point { return one(s.Use.PidsMax) }},
		{"container_file_descriptors", "Open file descriptors.", gauge, nil, func(s *Sample) []point { return one(s.Files) }},
		{"container_sockets", "Open sockets.", gauge, nil, func(s *Sample) []point { return one(s.Socks) }},
		{"container_ulimits_soft", "Soft limits of the container's first process.", gauge, []string{"ulimit"}, func(s *Sample) []point {
			return []point{{s.NoFile, []string{"max_open_files"}}}
		}},
		{"container_last_seen", "When these numbers were read, in seconds since 1970.", gauge, nil, func(s *Sample) []point { return one(uint64(s.Now.Unix())) }},
		{"container_start_time_seconds", "When the container started, in seconds since 1970.", gauge, nil, func(s *Sample) []point { return one(uint64(s.Start.Unix())) }},

		{"container_spec_cpu_period", "The CPU limit's period, in microseconds.", gauge, nil, spec((*cri.LinuxContainerResources).GetCpuPeriod)},
		{"container_spec_cpu_quota", "The CPU limit's quota in each period, in microseconds.", gauge, nil, quota(func(s *Sample) uint64 { return positive(s.Spec.GetCpuQuota()) })},
		{"container_spec_cpu_shares", "CPU shares.", gauge, nil, spec((*cri.LinuxContainerResources).GetCpuShares)},
		{"container_spec_memory_limit_bytes", "The memory limit; 0 without one.", gauge, nil, spec((*cri.LinuxContainerResources).GetMemoryLimitInBytes)},
		{"container_spec_memory_swap_limit_bytes", "The limit of memory and swap together; 0 without one.", gauge, nil, spec((*cri.LinuxContainerResources).GetMemorySwapLimitInBytes)},
		// Kubernetes sets no soft limit, and neither do we.
		{"container_spec_memory_reservation_limit_bytes", "The soft memory limit; always 0.", gauge, nil, func(*Sample) []point { return one(0) }},

		{"container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU, in seconds.", counter, nil, waiting(func(s *Sample) *cgroup.Pressure { return s.Use.CPU })},
		{"container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU, in seconds.", counter, nil, stalled(func(s *Sample) *cgroup.Pressure { return s.Use.CPU })},
		{"container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory, in seconds.", counter, nil, waiting(func(s *Sample) *cgroup.Pressure { return s.Use.Memory })},
		{"container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", counter, nil, stalled(func(s *Sample) *cgroup.Pressure { return s.Use.Memory })},
		{"container_pressure_io_waiting_seconds_total", "Time in which some task waited for I/O, in seconds.", counter, nil, waiting(func(s *Sample) *cgroup.Pressure { return s.Use.IO })},
		{"container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O, in seconds.", counter, nil, stalled(func(s *Sample) *cgroup.Pressure { return s.Use.IO })},
	}
})

// pod is what the containers of a pod share.
var pod = sync.OnceValue(func() []metric {
	return []metric{
		{"container_network_receive_bytes_total", "Bytes received.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.RxBytes })},
		{"container_network_receive_packets_total", "Packets received.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.RxPackets })},
		{"container_network_receive_errors_total", "Errors while receiving.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.RxErrors })},
		{"container_network_receive_packets_dropped_total", "Packets dropped while receiving.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.RxDropped })},
		{"container_network_transmit_bytes_total", "Bytes sent.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.TxBytes })},
		{"container_network_transmit_packets_total", "Packets sent.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.TxPackets })},
		{"container_network_transmit_errors_total", "Errors while sending.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.TxErrors })},
		{"container_network_transmit_packets_dropped_total", "Packets dropped while sending.", counter, []string{"interface"}, network(func(i Interface) uint64 { return i.TxDropped })},
	}
})

// quota is for rows that mean something only under a CPU limit.
func quota(of func(*Sample) uint64) func(*Sample) []point {
	return func(s *Sample) []point {
		if s.Spec.GetCpuQuota() <= 0 {
			return nil
		}
		return one(of(s))
	}
}

func spec(of func(*cri.LinuxContainerResources) int64) func(*Sample) []point {
	return func(s *Sample) []point { return one(positive(of(s.Spec))) }
}

func positive(n int64) uint64 { return uint64(max(n, 0)) }

func disk(of func(*Sample) uint64) func(*Sample) []point {
	return func(s *Sample) []point { return []point{{of(s), []string{s.Device}}} }
}

func blocks(of func(Block) uint64) func(*Sample) []point {
	return func(s *Sample) (out []point) {
		for _, b := range s.Blocks {
			out = append(out, point{of(b), []string{b.Name}})
		}
		return out
	}
}

func network(of func(Interface) uint64) func(*Sample) []point {
	return func(s *Sample) (out []point) {
		for _, i := range s.Network {
			out = append(out, point{of(i), []string{i.Name}})
		}
		return out
	}
}

func waiting(of func(*Sample) *cgroup.Pressure) func(*Sample) []point {
	return func(s *Sample) []point {
		if p := of(s); p != nil {
			return one(uint64(p.Some.Total / time.Second))
		}
		return nil
	}
}

func stalled(of func(*Sample) *cgroup.Pressure) func(*Sample) []point {
	return func(s *Sample) []point {
		if p := of(s); p != nil {
			return one(uint64(p.Full.Total / time.Second))
		}
		return nil
	}
}
