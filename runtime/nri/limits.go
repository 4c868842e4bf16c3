package nri

import (
	"maps"
	"slices"
)

// clone is a copy whose parts can be replaced without touching r's.
func (r *Resources) clone() *Resources {
	if r == nil {
		return &Resources{}
	}
	out := *r
	if r.Memory != nil {
		out.Memory = new(*r.Memory)
	}
	if r.CPU != nil {
		out.CPU = new(*r.CPU)
	}
	out.Hugepages, out.Devices, out.Unified = slices.Clone(r.Hugepages), slices.Clone(r.Devices), maps.Clone(r.Unified)
	return &out
}

// addLimits lays the limits that a plugin wants over each of to.
func (m *merged) addLimits(id string, want *Resources, plugin string, to ...*Resources) error {
	claim := func(f field, key string) error { return m.owners.claim(id, f, key, plugin) }
	if err := addMemory(want.Memory, claim, to); err != nil {
		return err
	}
	if err := addCPU(want.CPU, claim, to); err != nil {
		return err
	}
	for _, h := range want.Hugepages {
		if err := claim(fHugepages, h.PageSize); err != nil {
			return err
		}
		for _, r := range to {
			r.Hugepages = append(slices.DeleteFunc(slices.Clone(r.Hugepages), func(o *Hugepage) bool { return o.PageSize == h.PageSize }), h)
		}
	}
	for k, v := range want.Unified {
		if err := claim(fUnified, k); err != nil {
			return err
		}
		for _, r := range to {
			if r.Unified == nil {
				r.Unified = map[string]string{}
			}
			r.Unified[k] = v
		}
	}
	for _, r := range to {
		r.Devices = append(r.Devices, want.Devices...)
	}
	if err := put(claim, fBlockio, want.BlockioClass, to, func(r *Resources) **Opt[string] { return &r.BlockioClass }); err != nil {
		return err
	}
	if err := put(claim, fRdtClass, want.RdtClass, to, func(r *Resources) **Opt[string] { return &r.RdtClass }); err != nil {
		return err
	}
	return put(claim, fPids, want.Pids, to, func(r *Resources) **Pids { return &r.Pids })
}

// put sets one limit, if it is wanted.
func put[T any](claim func(field, string) error, f field, want *T, to []*Resources, at func(*Resources) **T) error {
	if want == nil {
		return nil
	}
	if err := claim(f, ""); err != nil {
		return err
	}
	for _, r := range to {
		*at(r) = want
	}
	return nil
}

func addMemory(want *Memory, claim func(field, string) error, to []*Resources) error {
	if want == nil {
		return nil
	}
	for _, r := range to {
		if r.Memory == nil {
			r.Memory = &Memory{}
		}
	}
	for _, one := range []struct {
		f    field
		want *Opt[int64]
		at   func(*Resources) **Opt[int64]
	}{
		{fMemLimit, want.Limit, func(r *Resources) **Opt[int64] { return &r.Memory.Limit }},
		{fMemReservation, want.Reservation, func(r *Resources) **Opt[int64] { return &r.Memory.Reservation }},
		{fMemSwap, want.Swap, func(r *Resources) **Opt[int64] { return &r.Memory.Swap }},
		{fMemKernel, want.Kernel, func(r *Resources) **Opt[int64] { return &r.Memory.Kernel }},
		{fMemTCP, want.KernelTCP, func(r *Resources) **Opt[int64] { return &r.Memory.KernelTCP }},
	} {
		if err := put(claim, one.f, one.want, to, one.at); err != nil {
			return err
		}
	}
	if err := put(claim, fMemSwappiness, want.Swappiness, to, func(r *Resources) **Opt[uint64] { return &r.Memory.Swappiness }); err != nil {
		return err
	}
	if err := put(claim, fMemDisableOOM, want.DisableOOMKiller, to, func(r *Resources) **Opt[bool] { return &r.Memory.DisableOOMKiller }); err != nil {
		return err
	}
	return put(claim, fMemHierarchy, want.UseHierarchy, to, func(r *Resources) **Opt[bool] { return &r.Memory.UseHierarchy })
}

func addCPU(want *CPU, claim func(field, string) error, to []*Resources) error {
	if want == nil {
		return nil
	}
	for _, r := range to {
		if r.CPU == nil {
			r.CPU = &CPU{}
		}
	}
	steps := []func() error{
		func() error {
			return put(claim, fCPUShares, want.Shares, to, func(r *Resources) **Opt[uint64] { return &r.CPU.Shares })
		},
		func() error {
			return put(claim, fCPUQuota, want.Quota, to, func(r *Resources) **Opt[int64] { return &r.CPU.Quota })
		},
		func() error {
			return put(claim, fCPUPeriod, want.Period, to, func(r *Resources) **Opt[uint64] { return &r.CPU.Period })
		},
		func() error {
			return put(claim, fCPURealtimeRuntime, want.RealtimeRuntime, to, func(r *Resources) **Opt[int64] { return &r.CPU.RealtimeRuntime })
		},
		func() error {
			return put(claim, fCPURealtimePeriod, want.RealtimePeriod, to, func(r *Resources) **Opt[uint64] { return &r.CPU.RealtimePeriod })
		},
		func() error {
			return putText(claim, fCPUSetCPUs, want.Cpus, to, func(r *Resources) *string { return &r.CPU.Cpus })
		},
		func() error {
			return putText(claim, fCPUSetMems, want.Mems, to, func(r *Resources) *string { return &r.CPU.Mems })
		},
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func putText(claim func(field, string) error, f field, want string, to []*Resources, at func(*Resources) *string) error {
	if want == "" {
		return nil
	}
	if err := claim(f, ""); err != nil {
		return err
	}
	for _, r := range to {
		*at(r) = want
	}
	return nil
}
