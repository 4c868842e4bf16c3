package nri

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FromCRI translates CRI's limits; zero there means that nothing is said.
func FromCRI(r *cri.LinuxContainerResources) *Resources {
	if r == nil {
		return nil
	}
	out := &Resources{
		CPU:     &CPU{Shares: said(uint64(r.GetCpuShares())), Quota: said(r.GetCpuQuota()), Period: said(uint64(r.GetCpuPeriod())), Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Memory:  &Memory{Limit: said(r.GetMemoryLimitInBytes()), Swap: said(r.GetMemorySwapLimitInBytes())},
		Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		out.Hugepages = append(out.Hugepages, &Hugepage{h.GetPageSize(), h.GetLimit()})
	}
	return out
}

func said[T comparable](v T) *Opt[T] {
	var zero T
	if v == zero {
		return nil
	}
	return &Opt[T]{v}
}

// CRI translates limits back, as far as CRI has fields for them; nil stays nil. A memory limit alone limits swap as well,
// which is how plugins know it.
func (r *Resources) CRI() *cri.LinuxContainerResources {
	if r == nil {
		return nil
	}
	out := &cri.LinuxContainerResources{Unified: r.Unified}
	if c := r.CPU; c != nil {
		out.CpuShares, out.CpuQuota, out.CpuPeriod = int64(get(c.Shares)), get(c.Quota), int64(get(c.Period))
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = get(m.Limit), get(m.Swap)
		if out.MemorySwapLimitInBytes == 0 {
			out.MemorySwapLimitInBytes = out.MemoryLimitInBytes
		}
	}
	for _, h := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, &cri.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}

func get[T any](o *Opt[T]) (v T) {
	if o != nil {
		v = o.Value
	}
	return v
}
