package oci

import (
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/oci/spec"
)

// update changes limits, from a file or by flags; what is not said stays.
func (c *call) update(f *flags, args []string) error {
	var file string
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, BlockIO: &specs.LinuxBlockIO{}}
	f.text(&file, "file of linux.resources, - for stdin", "resources", "r")
	number(f, "blkio-weight", &r.BlockIO.Weight, func(n int64) uint16 { return uint16(n) })
	number(f, "cpu-period", &r.CPU.Period, func(n int64) uint64 { return uint64(n) })
	number(f, "cpu-quota", &r.CPU.Quota, func(n int64) int64 { return n })
	number(f, "cpu-burst", &r.CPU.Burst, func(n int64) uint64 { return uint64(n) })
	number(f, "cpu-share", &r.CPU.Shares, func(n int64) uint64 { return uint64(n) })
	number(f, "cpu-shares", &r.CPU.Shares, func(n int64) uint64 { return uint64(n) })
	number(f, "cpu-rt-period", &r.CPU.RealtimePeriod, func(n int64) uint64 { return uint64(n) })
	number(f, "cpu-rt-runtime", &r.CPU.RealtimeRuntime, func(n int64) int64 { return n })
	number(f, "cpu-idle", &r.CPU.Idle, func(n int64) int64 { return n })
	f.text(&r.CPU.Cpus, "CPUs, such as 0-3", "cpuset-cpus")
	f.text(&r.CPU.Mems, "memory nodes, such as 0", "cpuset-mems")
	number(f, "memory", &r.Memory.Limit, func(n int64) int64 { return n })
	number(f, "memory-reservation", &r.Memory.Reservation, func(n int64) int64 { return n })
	number(f, "memory-swap", &r.Memory.Swap, func(n int64) int64 { return n })
	f.Func("pids-limit", "most processes", func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		r.Pids = &specs.LinuxPids{Limit: &n}
		return err
	})
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	if file != "" {
		if err := readResources(file, r); err != nil {
			return err
		}
	}
	k, unlock, err := c.locked(rest[0])
	if err != nil {
		return err
	}
	defer unlock()
	if k.status() == specs.StateStopped {
		return fault.New(fault.NotFound, "container %s is not running", k.ID)
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	limits := spec.Limits(r)
	if len(limits.Devices) > 0 {
		limits.Devices = deviceRules(limits.Devices)
	}
	return tree.Whole().Set(k.Cgroup, limits)
}

// number is a flag for one field; sizes may end in K, M or G.
func number[T any](f *flags, name string, into **T, as func(int64) T) {
	f.Func(name, "new limit", func(s string) error {
		unit := int64(1)
		if at := strings.IndexAny(strings.ToUpper(s), "KMG"); at > 0 {
			unit = 1 << (10 * (1 + strings.IndexByte("KMG", strings.ToUpper(s)[at])))
			s = s[:at]
		}
		n, err := strconv.ParseInt(s, 10, 64)
		*into = new(as(n * unit))
		return err
	})
}

func readResources(file string, into *specs.LinuxResources) error {
	in := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if err := json.NewDecoder(io.LimitReader(in, maxConfig)).Decode(into); err != nil {
		return fault.New(fault.Invalid, "resources %s: %w", file, err)
	}
	return nil
}
