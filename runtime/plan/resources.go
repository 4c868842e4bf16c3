package plan

import (
	"io/fs"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resources translates CRI limits; zero means "not said" as proto3 cannot say more. A nil r gives the device rules only.
func Resources(r *cri.LinuxContainerResources, in Input) *specs.LinuxResources {
	out := Limits(r)
	out.Devices = deviceRules(in)
	return out
}

// Limits translates CRI limits without the device rules, as an update of a running container needs them.
func Limits(r *cri.LinuxContainerResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if r == nil {
		return out
	}
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := r.GetCpuShares(); v > 0 {
		cpu.Shares = new(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		cpu.Quota = new(v)
	}
	if v := r.GetCpuPeriod(); v > 0 {
		cpu.Period = new(uint64(v))
	}
	out.CPU = cpu
	memory := &specs.LinuxMemory{}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		memory.Limit = new(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		memory.Swap = new(v)
	}
	out.Memory = memory
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	out.Unified = maps.Clone(r.GetUnified())
	return out
}

// Merge lays the fields that an update names over those that were asked before.
// Source: CRI UpdateContainerResources; a zero field means "leave as it is".
func Merge(old, update *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	out := &cri.LinuxContainerResources{
		CpuPeriod: pick(update.GetCpuPeriod(), old.GetCpuPeriod()), CpuQuota: pick(update.GetCpuQuota(), old.GetCpuQuota()),
		CpuShares: pick(update.GetCpuShares(), old.GetCpuShares()), OomScoreAdj: old.GetOomScoreAdj(),
		MemoryLimitInBytes:     pick(update.GetMemoryLimitInBytes(), old.GetMemoryLimitInBytes()),
		MemorySwapLimitInBytes: pick(update.GetMemorySwapLimitInBytes(), old.GetMemorySwapLimitInBytes()),
		CpusetCpus:             pick(update.GetCpusetCpus(), old.GetCpusetCpus()), CpusetMems: pick(update.GetCpusetMems(), old.GetCpusetMems()),
		HugepageLimits: old.GetHugepageLimits(), Unified: maps.Clone(old.GetUnified()),
	}
	if len(update.GetHugepageLimits()) > 0 {
		out.HugepageLimits = update.GetHugepageLimits()
	}
	for k, v := range update.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

func pick[T comparable](update, old T) T {
	var zero T
	if update != zero {
		return update
	}
	return old
}

// basic are the nodes every container has. Source: OCI config-linux.md, "default devices".
var basic = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7}, {Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9}, {Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// basicMode lets every user open the basic devices.
const basicMode = fs.FileMode(0o666)

// devices lists the nodes to make: the basic ones, then those of the request, which may replace a basic one.
func devices(in Input) []specs.LinuxDevice {
	seen := map[string]bool{}
	for _, d := range in.Devices {
		seen[d.Path] = true
	}
	var out []specs.LinuxDevice
	for _, d := range basic {
		if !seen[d.Path] {
			d.FileMode, d.UID, d.GID = new(basicMode), new(uint32(0)), new(uint32(0))
			out = append(out, d)
		}
	}
	return append(out, in.Devices...)
}

// deviceRules denies all, then allows making nodes, the basic devices, terminals, and what the request names.
// Source: OCI config-linux.md, "default devices"; kernel documentation, cgroup-v1/devices.
func deviceRules(in Input) []specs.LinuxDeviceCgroup {
	if in.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			r.Major = new(major)
		}
		if minor >= 0 {
			r.Minor = new(minor)
		}
		return r
	}
	out := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"},
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
		rule("c", 136, -1, "rwm"), // pts
		rule("c", 5, 2, "rwm"),    // ptmx
		rule("c", 5, 1, "rwm"),    // console
	}
	for _, d := range basic {
		out = append(out, rule(d.Type, d.Major, d.Minor, "rwm"))
	}
	access := map[string]string{}
	for _, d := range in.Config.GetDevices() {
		access[d.GetContainerPath()] = d.GetPermissions()
	}
	for _, d := range in.Devices {
		perm := access[d.Path]
		if perm == "" {
			perm = "rwm"
		}
		out = append(out, rule(d.Type, d.Major, d.Minor, perm))
	}
	return out
}

// WithResources is a copy of the request with other limits.
func WithResources(c *cri.ContainerConfig, r *cri.LinuxContainerResources) *cri.ContainerConfig {
	out := proto.CloneOf(c)
	if out.Linux == nil {
		out.Linux = &cri.LinuxContainerConfig{}
	}
	out.Linux.Resources = r
	return out
}

// WithPodResources is a copy of a pod's request with other resources; nil leaves what was there.
func WithPodResources(c *cri.PodSandboxConfig, overhead, resources *cri.LinuxContainerResources) *cri.PodSandboxConfig {
	out := proto.CloneOf(c)
	if out.Linux == nil {
		out.Linux = &cri.LinuxPodSandboxConfig{}
	}
	if overhead != nil {
		out.Linux.Overhead = overhead
	}
	if resources != nil {
		out.Linux.Resources = resources
	}
	return out
}
