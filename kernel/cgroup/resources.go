package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Resources are limits; what is zero or nil is left as it is.
type Resources struct {
	CPUShares              uint64 // 2 to 262144; on v2 translated to cpu.weight
	CPUQuota               int64  // microseconds per period, -1: none
	CPUPeriod              uint64 // microseconds
	CpusetCpus, CpusetMems string // lists such as 0-3,7
	Memory                 *int64 // bytes, -1: none
	MemorySwap             *int64 // bytes of memory and swap together, -1: none
	Pids                   *int64 // 0 or less: none
	Unified                map[string]string
	Devices                []Device          // in order, the last that matches decides; empty: all allowed
	Hugepages              map[string]uint64 // bytes by page size as the kernel names it (2MB)
	Rare                   *Rare             // what only OCI users ask for
}

// Weight translates cpu.shares to v2's cpu.weight, range to range.
// Source: KEP-2254, cgroup v2: 1 + ((shares - 2) * 9999) / 262142.
func Weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func (t *Tree) apply(group string, r Resources) error {
	var err error
	if t.v2 {
		err = t.apply2(filepath.Join(t.root, group), r)
	} else {
		err = t.apply1(group, r)
	}
	if err != nil {
		return fmt.Errorf("limit %s: %w", group, err)
	}
	return nil
}

func (t *Tree) apply2(dir string, r Resources) error {
	set := func(name, value string) error { return write(filepath.Join(dir, name), value) }
	var steps []func() error
	if r.CPUShares != 0 {
		steps = append(steps, func() error { return set("cpu.weight", strconv.FormatUint(Weight(r.CPUShares), 10)) })
	}
	if r.CPUQuota != 0 || r.CPUPeriod != 0 {
		steps = append(steps, func() error { return set("cpu.max", t.cpuMax(dir, r)) })
	}
	if r.CpusetCpus != "" {
		steps = append(steps, func() error { return set("cpuset.cpus", r.CpusetCpus) })
	}
	if r.CpusetMems != "" {
		steps = append(steps, func() error { return set("cpuset.mems", r.CpusetMems) })
	}
	if r.Memory != nil {
		steps = append(steps, func() error { return set("memory.max", limit(*r.Memory)) })
	}
	if r.MemorySwap != nil {
		steps = append(steps, func() error { return setSwap2(dir, r) })
	}
	if r.Pids != nil {
		steps = append(steps, func() error { return set("pids.max", pids(*r.Pids)) })
	}
	for size, n := range t.hugepages(r) {
		steps = append(steps, func() error { return set("hugetlb."+size+".max", strconv.FormatUint(n, 10)) })
	}
	for _, key := range sortedKeys(r.Unified) {
		steps = append(steps, func() error {
			if strings.Contains(key, "/") || !strings.Contains(key, ".") {
				return fault.New(fault.Invalid, "unified key %q is not a cgroup file", key)
			}
			return set(key, r.Unified[key])
		})
	}
	if len(r.Devices) > 0 {
		steps = append(steps, func() error { return attachDevices(dir, r.Devices) })
	}
	if r.Rare != nil {
		steps = append(steps, func() error { return r.Rare.apply2(dir) })
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) cpuMax(dir string, r Resources) string {
	quota := limit(r.CPUQuota)
	if r.CPUQuota == 0 { // only the period changes
		if now := fields(filepath.Join(dir, "cpu.max")); len(now) > 0 {
			quota = now[0]
		}
	}
	if r.CPUPeriod == 0 {
		return quota
	}
	return quota + " " + strconv.FormatUint(r.CPUPeriod, 10)
}

// hugepages are the limits to set. A kubelet forbids every page size to a container that asks for none; where the kernel
// does not count huge pages there is nothing to forbid them with, and pods must start all the same, as they do under
// containerd by default. A limit that grants some is still an error there.
func (t *Tree) hugepages(r Resources) map[string]uint64 {
	for _, n := range r.Hugepages {
		if n > 0 {
			return r.Hugepages
		}
	}
	if len(t.Lacks("hugetlb")) > 0 {
		return nil
	}
	return r.Hugepages
}

// setSwap2 writes swap alone, as v2 counts it, where OCI and v1 count memory and swap together.
func setSwap2(dir string, r Resources) error {
	value := "max"
	if *r.MemorySwap >= 0 {
		if r.Memory == nil || *r.Memory < 0 || *r.MemorySwap < *r.Memory {
			return fault.New(fault.Invalid, "memory and swap of %d bytes need a memory limit that is not larger", *r.MemorySwap)
		}
		value = strconv.FormatInt(*r.MemorySwap-*r.Memory, 10)
	}
	err := write(filepath.Join(dir, "memory.swap.max"), value)
	if errors.Is(err, unix.ENOENT) { // a kernel that does not account swap has none to limit
		return nil
	}
	return err
}

func (t *Tree) apply1(group string, r Resources) error {
	if len(r.Unified) > 0 {
		return fault.New(fault.Unsupported, "unified keys %v need cgroup v2", sortedKeys(r.Unified))
	}
	set := func(controller, name, value string) error {
		dir, err := t.dir(controller, group)
		if err != nil {
			return err
		}
		return write(filepath.Join(dir, name), value)
	}
	type step struct{ controller, name, value string }
	var steps []step
	if r.CPUShares != 0 {
		steps = append(steps, step{"cpu", "cpu.shares", strconv.FormatUint(min(max(r.CPUShares, 2), 262144), 10)})
	}
	if r.CpusetCpus != "" {
		steps = append(steps, step{"cpuset", "cpuset.cpus", r.CpusetCpus})
	}
	if r.CpusetMems != "" {
		steps = append(steps, step{"cpuset", "cpuset.mems", r.CpusetMems})
	}
	if r.Pids != nil {
		steps = append(steps, step{"pids", "pids.max", pids(*r.Pids)})
	}
	for size, n := range t.hugepages(r) {
		steps = append(steps, step{"hugetlb", "hugetlb." + size + ".limit_in_bytes", strconv.FormatUint(n, 10)})
	}
	for _, d := range r.Devices {
		file := "devices.deny"
		if d.Allow {
			file = "devices.allow"
		}
		steps = append(steps, step{"devices", file, d.v1()})
	}
	for _, s := range steps {
		if err := set(s.controller, s.name, s.value); err != nil {
			return err
		}
	}
	if err := setQuota1(set, r); err != nil {
		return err
	}
	if err := setMemory1(set, r); err != nil || r.Rare == nil {
		return err
	}
	return r.Rare.apply1(set)
}

type setter func(controller, name, value string) error

// setQuota1 writes quota and period; either order may be refused for a moment, as the kernel compares their ratio with
// the group above after each.
func setQuota1(set setter, r Resources) error {
	period := func() error {
		if r.CPUPeriod == 0 {
			return nil
		}
		return set("cpu", "cpu.cfs_period_us", strconv.FormatUint(r.CPUPeriod, 10))
	}
	quota := func() error {
		if r.CPUQuota == 0 {
			return nil
		}
		return set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(max(r.CPUQuota, -1), 10))
	}
	if err := period(); err != nil {
		if !fault.Is(err, fault.Invalid) {
			return err
		}
		if err := quota(); err != nil {
			return err
		}
		return period()
	}
	return quota()
}

// setMemory1 keeps memory ≤ memory+swap at every moment, as the kernel demands: raising starts with the sum.
func setMemory1(set setter, r Resources) error {
	memory := func() error {
		if r.Memory == nil {
			return nil
		}
		return set("memory", "memory.limit_in_bytes", strconv.FormatInt(max(*r.Memory, -1), 10))
	}
	both := func() error {
		if r.MemorySwap == nil {
			return nil
		}
		err := set("memory", "memory.memsw.limit_in_bytes", strconv.FormatInt(max(*r.MemorySwap, -1), 10))
		if errors.Is(err, unix.ENOENT) { // swap is not accounted on this kernel
			return nil
		}
		return err
	}
	if err := memory(); err != nil {
		if r.MemorySwap == nil || !fault.Is(err, fault.Invalid) {
			return err
		}
		if err := both(); err != nil {
			return err
		}
		return memory()
	}
	return both()
}

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func pids(n int64) string {
	if n <= 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func sortedKeys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
