package plan

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/runtime/state"
)

// Apply changes a spec by an edit. What has a name (a variable, a path, a key) replaces its namesake; hooks, groups and
// device rules are added. The spec's own parts are never written to, so edits may be shared.
// Errors: Invalid for an edit that makes no sense.
// Source: CDI SPEC.md "OCI Edits"; NRI docs, "container adjustment".
func Apply(spec *specs.Spec, e state.Edit) error {
	remove(spec, e.Remove)
	add := e.Add
	spec.Annotations = overlaid(spec.Annotations, add.Annotations)
	spec.Mounts = laid(spec.Mounts, add.Mounts, func(m specs.Mount) string { return path.Clean(m.Destination) })
	if len(add.Mounts) > 0 { // parents before children, else one would hide the other
		slices.SortStableFunc(spec.Mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
	}
	if add.Hooks != nil {
		spec.Hooks = joined(spec.Hooks, add.Hooks)
	}
	if add.Process != nil {
		applyProcess(spec.Process, add.Process)
	}
	if add.Linux != nil {
		applyLinux(spec.Linux, add.Linux)
	}
	return checkHooks(spec.Hooks)
}

func remove(spec *specs.Spec, r state.Removals) {
	spec.Annotations = less(spec.Annotations, r.Annotations)
	spec.Linux.Sysctl = less(spec.Linux.Sysctl, r.Sysctls)
	spec.Process.Env = without(spec.Process.Env, r.Env, variable)
	spec.Mounts = without(spec.Mounts, r.Mounts, func(m specs.Mount) string { return m.Destination })
	spec.Linux.Devices = without(spec.Linux.Devices, r.Devices, func(d specs.LinuxDevice) string { return d.Path })
	spec.Linux.Namespaces = without(spec.Linux.Namespaces, r.Namespaces, func(n specs.LinuxNamespace) specs.LinuxNamespaceType { return n.Type })
	if r.Rdt {
		spec.Linux.IntelRdt = nil
	}
}

func applyProcess(p, add *specs.Process) {
	if len(add.Args) > 0 {
		p.Args = add.Args
	}
	p.Env = laid(p.Env, add.Env, variable)
	p.Rlimits = laid(p.Rlimits, add.Rlimits, func(l specs.POSIXRlimit) string { return l.Type })
	for _, gid := range add.User.AdditionalGids {
		if !slices.Contains(p.User.AdditionalGids, gid) {
			p.User.AdditionalGids = append(slices.Clip(p.User.AdditionalGids), gid)
		}
	}
	set(&p.OOMScoreAdj, add.OOMScoreAdj)
	set(&p.IOPriority, add.IOPriority)
	set(&p.Scheduler, add.Scheduler)
}

func applyLinux(l, add *specs.Linux) {
	l.Devices = laid(l.Devices, add.Devices, func(d specs.LinuxDevice) string { return d.Path })
	l.Namespaces = laid(l.Namespaces, add.Namespaces, func(n specs.LinuxNamespace) specs.LinuxNamespaceType { return n.Type })
	l.Sysctl = overlaid(l.Sysctl, add.Sysctl)
	l.NetDevices = overlaid(l.NetDevices, add.NetDevices)
	set(&l.Seccomp, add.Seccomp)
	set(&l.MemoryPolicy, add.MemoryPolicy)
	if add.CgroupsPath != "" {
		l.CgroupsPath = add.CgroupsPath
	}
	if add.IntelRdt != nil {
		l.IntelRdt = rdt(l.IntelRdt, add.IntelRdt)
	}
	if add.Resources != nil {
		l.Resources = withLimits(l.Resources, add.Resources)
	}
}

func rdt(old, add *specs.LinuxIntelRdt) *specs.LinuxIntelRdt {
	if old == nil {
		return add
	}
	out := *old
	out.ClosID = cmp.Or(add.ClosID, old.ClosID)
	out.L3CacheSchema = cmp.Or(add.L3CacheSchema, old.L3CacheSchema)
	out.MemBwSchema = cmp.Or(add.MemBwSchema, old.MemBwSchema)
	if len(add.Schemata) > 0 {
		out.Schemata = add.Schemata
	}
	out.EnableMonitoring = old.EnableMonitoring || add.EnableMonitoring
	return &out
}

// withLimits lays limits over others; nil and empty mean "as it was". Device rules are added: the last that matches decides.
func withLimits(old, add *specs.LinuxResources) *specs.LinuxResources {
	var out specs.LinuxResources
	if old != nil {
		out = *old
	}
	out.Devices = slices.Concat(out.Devices, add.Devices)
	out.HugepageLimits = laid(out.HugepageLimits, add.HugepageLimits, func(h specs.LinuxHugepageLimit) string { return h.Pagesize })
	out.Unified = overlaid(out.Unified, add.Unified)
	set(&out.Pids, add.Pids)
	set(&out.BlockIO, add.BlockIO)
	if c := add.CPU; c != nil {
		cpu := pointed(out.CPU)
		set(&cpu.Shares, c.Shares)
		set(&cpu.Quota, c.Quota)
		set(&cpu.Period, c.Period)
		set(&cpu.RealtimeRuntime, c.RealtimeRuntime)
		set(&cpu.RealtimePeriod, c.RealtimePeriod)
		cpu.Cpus, cpu.Mems = cmp.Or(c.Cpus, cpu.Cpus), cmp.Or(c.Mems, cpu.Mems)
		out.CPU = &cpu
	}
	if m := add.Memory; m != nil {
		memory := pointed(out.Memory)
		set(&memory.Limit, m.Limit)
		set(&memory.Reservation, m.Reservation)
		set(&memory.Swap, m.Swap)
		set(&memory.Swappiness, m.Swappiness)
		out.Memory = &memory
	}
	return &out
}

func pointed[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// joined are the hooks of both.
func joined(a, b *specs.Hooks) *specs.Hooks {
	if a == nil {
		a = &specs.Hooks{}
	}
	return &specs.Hooks{
		Prestart:        slices.Concat(a.Prestart, b.Prestart), //nolint:staticcheck // deprecated, still honoured
		CreateRuntime:   slices.Concat(a.CreateRuntime, b.CreateRuntime),
		CreateContainer: slices.Concat(a.CreateContainer, b.CreateContainer),
		StartContainer:  slices.Concat(a.StartContainer, b.StartContainer),
		Poststart:       slices.Concat(a.Poststart, b.Poststart),
		Poststop:        slices.Concat(a.Poststop, b.Poststop),
	}
}

// checkHooks refuses hooks that could not run. Source: OCI config.md, "POSIX-platform Hooks".
func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	lists := [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} //nolint:staticcheck // deprecated, still honoured
	for _, one := range slices.Concat(lists...) {
		if !path.IsAbs(one.Path) {
			return fault.New(fault.Invalid, "hook %q: the path is not absolute", one.Path)
		}
		if one.Timeout != nil && *one.Timeout <= 0 {
			return fault.New(fault.Invalid, "hook %s: a time-out of %d seconds is none", one.Path, *one.Timeout)
		}
	}
	return nil
}

// laid lays entries over others of the same name, which keep their place; new ones follow.
func laid[T any, K comparable](old, add []T, name func(T) K) []T {
	if len(add) == 0 {
		return old
	}
	out := slices.Clone(old)
	for _, v := range add {
		if i := slices.IndexFunc(out, func(o T) bool { return name(o) == name(v) }); i >= 0 {
			out[i] = v
		} else {
			out = append(out, v)
		}
	}
	return out
}

// without leaves out the entries of these names.
func without[T any, K comparable](old []T, names []K, name func(T) K) []T {
	if len(names) == 0 {
		return old
	}
	return slices.DeleteFunc(slices.Clone(old), func(v T) bool { return slices.Contains(names, name(v)) })
}

func overlaid[V any](old, add map[string]V) map[string]V {
	if len(add) == 0 {
		return old
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, add)
	return out
}

func less(old map[string]string, keys []string) map[string]string {
	if len(keys) == 0 {
		return old
	}
	out := maps.Clone(old)
	for _, k := range keys {
		delete(out, k)
	}
	return out
}

func variable(entry string) string {
	key, _, _ := strings.Cut(entry, "=")
	return key
}

func depth(m specs.Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
