package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Detail is Stats and what else the kernel counts for a group. Reading it costs about a dozen files more.
type Detail struct {
	Stats
	UserNanos, SystemNanos    uint64
	Periods, Throttled        uint64 // enforcement periods of a CPU quota, and those in which it held tasks back
	ThrottledNanos            uint64
	Cache, Mapped, Kernel     uint64 // bytes: page cache, mapped files, kernel memory
	MemoryMax                 uint64 // bytes: the highest use so far; 0 before kernel 5.19 on v2
	MemoryFailures            uint64 // how often the limit was hit
	OOMKills                  uint64
	OwnFaults, OwnMajorFaults uint64 // of the group itself, without those below it
	PidsMax                   uint64 // 0: no limit
	Devices                   []DeviceIO
	Hugepages                 []Hugepage
}

// DeviceIO is the traffic of a group with one block device.
type DeviceIO struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// Hugepage is the use of one page size, in bytes; Size is as the kernel words it, such as 2MB.
type Hugepage struct {
	Size       string
	Usage, Max uint64
}

// userTick is the unit of cpuacct.stat. Source: proc(5), USER_HZ, 100 on every architecture of Linux today.
const userTick = 10_000_000

// Detail reads all that is known of a group's use. What the kernel does not show is zero.
// Errors: NotFound if the group does not exist.
func (t *Tree) Detail(group string) (Detail, error) {
	s, err := t.Stats(group)
	d := Detail{Stats: s}
	if err != nil {
		return d, err
	}
	if t.v2 {
		d.read2(filepath.Join(t.root, group))
		return d, nil
	}
	in := func(controller string) string {
		dir, err := t.dir(controller, group)
		if err != nil {
			return ""
		}
		return dir
	}
	d.read1(in)
	return d, nil
}

func (d *Detail) read2(dir string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	var user, system, throttled uint64
	each(in("cpu.stat"), map[string]*uint64{
		"user_usec": &user, "system_usec": &system, "nr_periods": &d.Periods, "nr_throttled": &d.Throttled, "throttled_usec": &throttled,
	})
	d.UserNanos, d.SystemNanos, d.ThrottledNanos = user*1000, system*1000, throttled*1000
	each(in("memory.stat"), map[string]*uint64{"file": &d.Cache, "file_mapped": &d.Mapped, "kernel": &d.Kernel})
	each(in("memory.events"), map[string]*uint64{"max": &d.MemoryFailures, "oom_kill": &d.OOMKills})
	d.OwnFaults, d.OwnMajorFaults = d.PageFaults, d.MajorPageFaults
	d.MemoryMax, d.PidsMax = number(in("memory.peak")), number(in("pids.max"))
	d.devices2(in("io.stat"))
	d.hugepages(dir, ".current", "")
}

func (d *Detail) read1(in func(string) string) {
	var user, system uint64
	each(filepath.Join(in("cpuacct"), "cpuacct.stat"), map[string]*uint64{"user": &user, "system": &system})
	d.UserNanos, d.SystemNanos = user*userTick, system*userTick
	each(filepath.Join(in("cpu"), "cpu.stat"), map[string]*uint64{"nr_periods": &d.Periods, "nr_throttled": &d.Throttled, "throttled_time": &d.ThrottledNanos})
	memory := in("memory")
	each(filepath.Join(memory, "memory.stat"), map[string]*uint64{
		"total_cache": &d.Cache, "total_mapped_file": &d.Mapped, "pgfault": &d.OwnFaults, "pgmajfault": &d.OwnMajorFaults,
	})
	each(filepath.Join(memory, "memory.oom_control"), map[string]*uint64{"oom_kill": &d.OOMKills})
	d.Kernel = number(filepath.Join(memory, "memory.kmem.usage_in_bytes"))
	d.MemoryMax = number(filepath.Join(memory, "memory.max_usage_in_bytes"))
	d.MemoryFailures = number(filepath.Join(memory, "memory.failcnt"))
	d.PidsMax = number(filepath.Join(in("pids"), "pids.max"))
	if dir := in("blkio"); dir != "" {
		d.devices1(filepath.Join(dir, "blkio.throttle.io_service_bytes"), func(io *DeviceIO) (r, w *uint64) { return &io.ReadBytes, &io.WriteBytes })
		d.devices1(filepath.Join(dir, "blkio.throttle.io_serviced"), func(io *DeviceIO) (r, w *uint64) { return &io.Reads, &io.Writes })
	}
	if dir := in("hugetlb"); dir != "" {
		d.hugepages(dir, ".usage_in_bytes", ".max_usage_in_bytes")
	}
}

// device finds the entry of "major:minor", or makes it; nil for what is no such number.
func (d *Detail) device(number string) *DeviceIO {
	major, minor, ok := strings.Cut(number, ":")
	a, err1 := strconv.ParseUint(major, 10, 64)
	b, err2 := strconv.ParseUint(minor, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return nil
	}
	for i := range d.Devices {
		if d.Devices[i].Major == a && d.Devices[i].Minor == b {
			return &d.Devices[i]
		}
	}
	d.Devices = append(d.Devices, DeviceIO{Major: a, Minor: b})
	return &d.Devices[len(d.Devices)-1]
}

// devices2 reads lines of "8:0 rbytes=1 wbytes=2 rios=3 wios=4". Source: kernel cgroup-v2, io.stat.
func (d *Detail) devices2(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		io := d.device(f[0])
		if io == nil {
			continue
		}
		into := map[string]*uint64{"rbytes": &io.ReadBytes, "wbytes": &io.WriteBytes, "rios": &io.Reads, "wios": &io.Writes}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			if p := into[key]; p != nil {
				*p, _ = strconv.ParseUint(value, 10, 64)
			}
		}
	}
}

// devices1 reads lines of "8:0 Read 1". Source: kernel cgroup-v1, blkio-controller.
func (d *Detail) devices1(file string, into func(*DeviceIO) (r, w *uint64)) {
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		io := d.device(f[0])
		if io == nil {
			continue
		}
		r, w := into(io)
		switch f[1] {
		case "Read":
			*r, _ = strconv.ParseUint(f[2], 10, 64)
		case "Write":
			*w, _ = strconv.ParseUint(f[2], 10, 64)
		}
	}
}

// hugepages reads hugetlb.SIZE.current and the like for every size the kernel has.
func (d *Detail) hugepages(dir, usage, highest string) {
	files, _ := filepath.Glob(filepath.Join(dir, "hugetlb.*"+usage))
	for _, f := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "hugetlb."), usage)
		if strings.Contains(size, ".") {
			continue // hugetlb.2MB.rsvd.current counts reservations
		}
		h := Hugepage{Size: size, Usage: number(f)}
		if highest != "" {
			h.Max = number(filepath.Join(dir, "hugetlb."+size+highest))
		}
		d.Hugepages = append(d.Hugepages, h)
	}
}
