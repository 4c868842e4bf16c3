package node

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"worknode/kernel/cpulist"
)

// Facts is what the machine is; sizes are bytes.
type Facts struct {
	MachineID, SystemUUID, BootID, Kernel, OSImage, Arch string
	CPUs                                                 int // online
	Memory, Swap                                         int64
	Storage                                              int64            // the root directory's file system
	HugePages                                            map[string]int64 // by page size as in resource names: "2Mi"
}

// ReadFacts reads the machine. What cannot be read stays empty: a container host without DMI has no system UUID.
func ReadFacts(root string) Facts {
	memory := meminfo()
	f := Facts{
		MachineID:  firstLine("/etc/machine-id", "/var/lib/dbus/machine-id"),
		SystemUUID: firstLine("/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid", "/etc/machine-id"),
		BootID:     firstLine("/proc/sys/kernel/random/boot_id"),
		Kernel:     firstLine("/proc/sys/kernel/osrelease"),
		OSImage:    osImage(),
		Arch:       runtime.GOARCH,
		CPUs:       cpulist.Online("/sys"),
		Memory:     memory["MemTotal"],
		Swap:       memory["SwapTotal"],
		HugePages:  hugePages("/sys/kernel/mm/hugepages"),
	}
	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil {
		f.Storage = int64(st.Blocks) * st.Bsize
	}
	return f
}

func firstLine(paths ...string) string {
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if line, _, _ := strings.Cut(string(raw), "\n"); err == nil && line != "" {
			return strings.TrimSpace(strings.Trim(line, "\x00"))
		}
	}
	return ""
}

// osImage is PRETTY_NAME of os-release(5).
func osImage() string {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		raw, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

// hugePages reads the pools that the machine has; sizes without pages are named too, as capacity zero.
func hugePages(dir string) map[string]int64 {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := map[string]int64{}
	for _, e := range entries { // hugepages-2048kB
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		pages, err := strconv.ParseInt(firstLine(filepath.Join(dir, e.Name(), "nr_hugepages")), 10, 64)
		if err != nil {
			continue
		}
		out[resource.NewQuantity(kb<<10, resource.BinarySI).String()] = pages * kb << 10
	}
	return out
}

// meminfo is /proc/meminfo in bytes.
func meminfo() map[string]int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		number, isKB := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && isKB {
			out[name] = n << 10
		}
	}
	return out
}

// pressure is what the machine runs short of. It stays for a while after the shortage, so that pods are not placed
// and driven away in turns. Source: KubeletConfiguration, evictionHard and evictionPressureTransitionPeriod.
type pressure struct {
	memory, disk, pids       bool
	memoryAt, diskAt, pidsAt time.Time // when the shortage was last seen
}

const pressureLasts = 5 * time.Minute

// Below these the node says that it is under pressure. Source: KubeletConfiguration, the defaults of evictionHard.
const (
	memoryKept      = 100 << 20
	diskKeptPercent = 10
	inodesKept      = 5 // percent
)

// pidsKept is how many processes must still fit before the kernel's limit is called near.
const pidsKept = 500

func (p *pressure) look(now time.Time, root string) {
	memory := meminfo()
	var st unix.Statfs_t
	err := unix.Statfs(root, &st)
	p.update(now,
		memory["MemTotal"] > 0 && memory["MemAvailable"] < memoryKept,
		err == nil && (below(st.Bavail, st.Blocks, diskKeptPercent) || below(st.Ffree, st.Files, inodesKept)),
		pidsLeft() < pidsKept)
}

func below(free, total uint64, percent uint64) bool { return total > 0 && free < total/100*percent }

func (p *pressure) update(now time.Time, memory, disk, pids bool) {
	for _, one := range []struct {
		seen bool
		on   *bool
		at   *time.Time
	}{{memory, &p.memory, &p.memoryAt}, {disk, &p.disk, &p.diskAt}, {pids, &p.pids, &p.pidsAt}} {
		if one.seen {
			*one.at = now
		}
		*one.on = !one.at.IsZero() && now.Sub(*one.at) < pressureLasts
	}
}

// pidsLeft is how many more tasks the kernel will create; very many if that cannot be read.
// Source: proc_loadavg(5), the fourth field; proc_sys_kernel(5), pid_max and threads-max.
func pidsLeft() int {
	const many = 1 << 30
	fields := strings.Fields(firstLine("/proc/loadavg"))
	if len(fields) < 4 {
		return many
	}
	_, tasks, _ := strings.Cut(fields[3], "/")
	used, err := strconv.Atoi(tasks)
	if err != nil {
		return many
	}
	most := many
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		if n, err := strconv.Atoi(firstLine(file)); err == nil {
			most = min(most, n)
		}
	}
	return most - used
}
