package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Rare are the limits of the OCI runtime spec that CRI cannot ask for; what is zero or nil is left as it is. On v1 they
// need groups in the hierarchies that only a Whole tree has.
// Source: OCI runtime spec, config-linux.md, "Control groups".
type Rare struct {
	MemoryReservation *int64 // bytes, -1: none
	KernelTCP         *int64 // bytes, v1 alone
	Swappiness        *uint64
	NoOOMKiller       bool    // v1 alone
	CPUBurst          *uint64 // microseconds
	RTRuntime         *int64  // microseconds, v1 alone
	RTPeriod          *uint64
	CPUIdle           *int64
	Weight            *uint16 // of block I/O, 10 to 1000
	WeightDevice      []DeviceRate
	ReadBps, WriteBps []DeviceRate
	ReadIOPS          []DeviceRate
	WriteIOPS         []DeviceRate
	NetClass          *uint32           // v1 alone
	NetPriority       map[string]uint32 // by interface; v1 alone
	RDMA              map[string]string // by device: "hca_handle=N hca_object=N"
}

// DeviceRate is a number for one block device.
type DeviceRate struct {
	Major, Minor int64
	Rate         uint64
}

func (d DeviceRate) device() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

func decimal[T int64 | uint64 | uint32 | uint16](n T) string { return fmt.Sprint(n) }

func (r *Rare) apply1(set setter) error {
	type step struct{ controller, name, value string }
	var steps []step
	add := func(controller, name, value string) { steps = append(steps, step{controller, name, value}) }
	if r.MemoryReservation != nil {
		add("memory", "memory.soft_limit_in_bytes", decimal(max(*r.MemoryReservation, -1)))
	}
	if r.KernelTCP != nil {
		add("memory", "memory.kmem.tcp.limit_in_bytes", decimal(max(*r.KernelTCP, -1)))
	}
	if r.Swappiness != nil {
		add("memory", "memory.swappiness", decimal(*r.Swappiness))
	}
	if r.NoOOMKiller {
		add("memory", "memory.oom_control", "1")
	}
	if r.CPUBurst != nil {
		add("cpu", "cpu.cfs_burst_us", decimal(*r.CPUBurst))
	}
	if r.RTPeriod != nil {
		add("cpu", "cpu.rt_period_us", decimal(*r.RTPeriod))
	}
	if r.RTRuntime != nil {
		add("cpu", "cpu.rt_runtime_us", decimal(*r.RTRuntime))
	}
	if r.CPUIdle != nil {
		add("cpu", "cpu.idle", decimal(*r.CPUIdle))
	}
	for _, list := range []struct {
		file  string
		rates []DeviceRate
	}{
		{"blkio.throttle.read_bps_device", r.ReadBps}, {"blkio.throttle.write_bps_device", r.WriteBps},
		{"blkio.throttle.read_iops_device", r.ReadIOPS}, {"blkio.throttle.write_iops_device", r.WriteIOPS},
	} {
		for _, d := range list.rates {
			add("blkio", list.file, d.device()+" "+decimal(d.Rate))
		}
	}
	if r.NetClass != nil {
		add("net_cls", "net_cls.classid", decimal(*r.NetClass))
	}
	for name, priority := range r.NetPriority {
		add("net_prio", "net_prio.ifpriomap", name+" "+decimal(priority))
	}
	for device, value := range r.RDMA {
		add("rdma", "rdma.max", device+" "+value)
	}
	for _, s := range steps {
		if err := set(s.controller, s.name, s.value); err != nil {
			return err
		}
	}
	return r.weights1(set)
}

// weights1 are written under the name of whichever I/O scheduler this kernel has.
func (r *Rare) weights1(set setter) error {
	either := func(file, bfq, value string) error {
		err := set("blkio", file, value)
		if errors.Is(err, unix.ENOENT) {
			err = set("blkio", bfq, value)
		}
		return err
	}
	if r.Weight != nil {
		if err := either("blkio.weight", "blkio.bfq.weight", decimal(*r.Weight)); err != nil {
			return err
		}
	}
	for _, d := range r.WeightDevice {
		if err := either("blkio.weight_device", "blkio.bfq.weight_device", d.device()+" "+decimal(d.Rate)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rare) apply2(dir string) error {
	if r.KernelTCP != nil || r.NoOOMKiller || r.RTRuntime != nil || r.RTPeriod != nil || r.NetClass != nil || len(r.NetPriority) > 0 {
		return fault.New(fault.Unsupported, "memory.kernelTCP, memory.disableOOMKiller, cpu.realtime*, and network limits need cgroup v1")
	}
	set := func(name, value string) error { return write(filepath.Join(dir, name), value) }
	type step struct{ name, value string }
	var steps []step
	if r.MemoryReservation != nil {
		steps = append(steps, step{"memory.low", limit(*r.MemoryReservation)})
	}
	if r.CPUBurst != nil {
		steps = append(steps, step{"cpu.max.burst", decimal(*r.CPUBurst)})
	}
	if r.CPUIdle != nil {
		steps = append(steps, step{"cpu.idle", decimal(*r.CPUIdle)})
	}
	for _, list := range []struct {
		key   string
		rates []DeviceRate
	}{{"rbps", r.ReadBps}, {"wbps", r.WriteBps}, {"riops", r.ReadIOPS}, {"wiops", r.WriteIOPS}} {
		for _, d := range list.rates {
			steps = append(steps, step{"io.max", d.device() + " " + list.key + "=" + decimal(d.Rate)})
		}
	}
	for device, value := range r.RDMA {
		steps = append(steps, step{"rdma.max", device + " " + value})
	}
	for _, s := range steps {
		if err := set(s.name, s.value); err != nil {
			return err
		}
	}
	return r.weights2(set)
}

// weights2 prefers BFQ's file, which takes v1's range; io.weight reaches to 10000.
func (r *Rare) weights2(set func(name, value string) error) error {
	weigh := func(device string, w uint64) error {
		err := set("io.bfq.weight", device+decimal(w))
		if errors.Is(err, unix.ENOENT) {
			w = 1 + (max(w, 10)-10)*9999/990
			err = set("io.weight", device+strconv.FormatUint(w, 10))
		}
		return err
	}
	if r.Weight != nil {
		if err := weigh("", uint64(*r.Weight)); err != nil {
			return err
		}
	}
	for _, d := range r.WeightDevice {
		if err := weigh(d.device()+" ", d.Rate); err != nil {
			return err
		}
	}
	return nil
}
