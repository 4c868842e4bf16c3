package api

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// nodeStats reads the machine's own figures. What cannot be read is left out: half a picture serves an operator
// better than an error.
func nodeStats(name, root string, now time.Time) stats.NodeStats {
	at := metav1.NewTime(now)
	out := stats.NodeStats{NodeName: name}
	if busy, boot, ok := cpuSeconds(); ok {
		out.StartTime = metav1.NewTime(boot)
		out.CPU = &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &busy}
	}
	if m := meminfo(); m["MemTotal"] > 0 {
		used := m["MemTotal"] - m["MemFree"]
		working := m["MemTotal"] - min(m["MemAvailable"], m["MemTotal"])
		available, rss := m["MemAvailable"], m["AnonPages"]
		out.Memory = &stats.MemoryStats{Time: at, UsageBytes: &used, WorkingSetBytes: &working, AvailableBytes: &available, RSSBytes: &rss}
		free, swapped := m["SwapFree"], m["SwapTotal"]-m["SwapFree"]
		out.Swap = &stats.SwapStats{Time: at, SwapAvailableBytes: &free, SwapUsageBytes: &swapped}
	}
	out.Fs = fsStats(root, at)
	return out
}

func fsStats(dir string, at metav1.Time) *stats.FsStats {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil
	}
	size := uint64(st.Bsize)
	total, free, used := st.Blocks*size, st.Bavail*size, (st.Blocks-st.Bfree)*size
	inodesUsed := st.Files - st.Ffree
	return &stats.FsStats{Time: at, CapacityBytes: &total, AvailableBytes: &free, UsedBytes: &used,
		Inodes: &st.Files, InodesFree: &st.Ffree, InodesUsed: &inodesUsed}
}

// cpuSeconds is the time that all CPUs together were busy, in nanoseconds, and when the machine booted.
// Source: proc_stat(5); the unit is 1/100 s on every architecture that Go runs on.
func cpuSeconds() (busy uint64, boot time.Time, ok bool) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, boot, false
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 1<<20) // the intr line is long
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) > 8 && f[0] == "cpu":
			for i, v := range f[1:9] { // user nice system idle iowait irq softirq steal; guest is within user
				if n, err := strconv.ParseUint(v, 10, 64); err == nil && i != 3 && i != 4 {
					busy += n * uint64(10*time.Millisecond)
				}
			}
		case len(f) == 2 && f[0] == "btime":
			n, err := strconv.ParseInt(f[1], 10, 64)
			return busy, time.Unix(n, 0), err == nil
		}
	}
	return 0, boot, false
}

// meminfo is /proc/meminfo in bytes.
func meminfo() map[string]uint64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	out := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err == nil && strings.HasSuffix(strings.TrimSpace(value), " kB") {
			out[name] = n << 10
		}
	}
	return out
}
