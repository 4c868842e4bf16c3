package nri

import (
	"io/fs"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/runtime/state"
)

// Describe fills a container's message from its OCI spec.
func (c *Container) Describe(s *specs.Spec) {
	c.Hooks = fromHooks(s.Hooks)
	for _, m := range s.Mounts {
		c.Mounts = append(c.Mounts, &Mount{m.Destination, m.Type, m.Source, m.Options})
	}
	c.Linux = &LinuxContainer{}
	if p := s.Process; p != nil {
		c.Args, c.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		c.User = &User{p.User.UID, p.User.GID, p.User.AdditionalGids}
		for _, l := range p.Rlimits {
			c.Rlimits = append(c.Rlimits, &Rlimit{l.Type, l.Hard, l.Soft})
		}
		if p.OOMScoreAdj != nil {
			c.Linux.OOMScoreAdj = &Opt[int64]{int64(*p.OOMScoreAdj)}
		}
	}
	l := s.Linux
	if l == nil {
		return
	}
	c.Linux.CgroupsPath, c.Linux.Sysctl, c.Linux.Resources = l.CgroupsPath, l.Sysctl, FromResources(l.Resources)
	c.Linux.Namespaces = FromNamespaces(l.Namespaces)
	for _, d := range l.Devices {
		out := &Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, UID: Some(d.UID), GID: Some(d.GID)}
		if d.FileMode != nil {
			out.FileMode = &Opt[uint32]{uint32(*d.FileMode)}
		}
		c.Linux.Devices = append(c.Linux.Devices, out)
	}
}

// FromNamespaces translates OCI namespaces.
func FromNamespaces(list []specs.LinuxNamespace) []*Namespace {
	var out []*Namespace
	for _, n := range list {
		out = append(out, &Namespace{string(n.Type), n.Path})
	}
	return out
}

// FromResources translates OCI limits.
func FromResources(r *specs.LinuxResources) *Resources {
	if r == nil {
		return nil
	}
	out := &Resources{Unified: r.Unified}
	if c := r.CPU; c != nil {
		out.CPU = &CPU{Some(c.Shares), Some(c.Quota), Some(c.Period), Some(c.RealtimeRuntime), Some(c.RealtimePeriod), c.Cpus, c.Mems}
	}
	if m := r.Memory; m != nil {
		out.Memory = &Memory{Limit: Some(m.Limit), Reservation: Some(m.Reservation), Swap: Some(m.Swap), Swappiness: Some(m.Swappiness)}
	}
	for _, h := range r.HugepageLimits {
		out.Hugepages = append(out.Hugepages, &Hugepage{h.Pagesize, h.Limit})
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		out.Pids = &Pids{*r.Pids.Limit}
	}
	for _, d := range r.Devices {
		out.Devices = append(out.Devices, &DeviceRule{d.Allow, d.Type, Some(d.Major), Some(d.Minor), d.Access})
	}
	return out
}

func fromHooks(h *specs.Hooks) *Hooks {
	if h == nil {
		return nil
	}
	list := func(in []specs.Hook) (out []*Hook) {
		for _, one := range in {
			hook := &Hook{Path: one.Path, Args: one.Args, Env: one.Env}
			if one.Timeout != nil {
				hook.Timeout = &Opt[int64]{int64(*one.Timeout)}
			}
			out = append(out, hook)
		}
		return out
	}
	return &Hooks{list(h.Prestart), list(h.CreateRuntime), list(h.CreateContainer), list(h.StartContainer), list(h.Poststart), list(h.Poststop)} //nolint:staticcheck // deprecated, still honoured
}

func toHooks(h *Hooks) *specs.Hooks {
	if h == nil {
		return nil
	}
	list := func(in []*Hook) (out []specs.Hook) {
		for _, one := range in {
			hook := specs.Hook{Path: one.Path, Args: one.Args, Env: one.Env}
			if one.Timeout != nil {
				hook.Timeout = new(int(one.Timeout.Value))
			}
			out = append(out, hook)
		}
		return out
	}
	return &specs.Hooks{Prestart: list(h.Prestart), CreateRuntime: list(h.CreateRuntime), CreateContainer: list(h.CreateContainer),
		StartContainer: list(h.StartContainer), Poststart: list(h.Poststart), Poststop: list(h.Poststop)}
}

// Edit is an adjustment as a change of an OCI spec, but for what CRI has fields for (limits) and for CDI devices.
// Errors: Unsupported for classes of block I/O, which nobody has defined here.
func (a *Adjustment) Edit() (e state.Edit, err error) {
	if a == nil {
		return e, nil
	}
	p, l := &specs.Process{Args: a.Args}, &specs.Linux{}
	e.Add = specs.Spec{Process: p, Linux: l, Hooks: toHooks(a.Hooks), Annotations: map[string]string{}}
	for _, v := range mapEntries(a.Annotations) {
		apart(v.key, func(key string) { e.Remove.Annotations = append(e.Remove.Annotations, key) }, func() { e.Add.Annotations[v.key] = v.value })
	}
	for _, v := range a.Env {
		apart(v.Key, func(key string) { e.Remove.Env = append(e.Remove.Env, key) }, func() { p.Env = append(p.Env, v.Key+"="+v.Value) })
	}
	for _, m := range a.Mounts {
		apart(m.Destination, func(key string) { e.Remove.Mounts = append(e.Remove.Mounts, key) }, func() {
			e.Add.Mounts = append(e.Add.Mounts, specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Source, Options: m.Options})
		})
	}
	for _, r := range a.Rlimits {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	if a.Linux == nil {
		return e, nil
	}
	return e, a.Linux.edit(&e)
}

// apart tells a key to remove from one to set.
func apart(key string, remove func(key string), set func()) {
	if len(key) > 0 && key[0] == '-' {
		remove(key[1:])
	} else {
		set()
	}
}

func (a *LinuxAdjustment) edit(e *state.Edit) error {
	p, l := e.Add.Process, e.Add.Linux
	l.CgroupsPath, l.Resources = a.CgroupsPath, &specs.LinuxResources{}
	for _, d := range a.Devices {
		apart(d.Path, func(key string) { e.Remove.Devices = append(e.Remove.Devices, key) }, func() { addDevice(l, d) })
	}
	for _, n := range a.Namespaces {
		apart(n.Type, func(key string) { e.Remove.Namespaces = append(e.Remove.Namespaces, specs.LinuxNamespaceType(key)) },
			func() {
				l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(n.Type), Path: n.Path})
			})
	}
	for _, v := range mapEntries(a.Sysctl) {
		apart(v.key, func(key string) { e.Remove.Sysctls = append(e.Remove.Sysctls, key) }, func() {
			if l.Sysctl == nil {
				l.Sysctl = map[string]string{}
			}
			l.Sysctl[v.key] = v.value
		})
	}
	for _, v := range mapEntries(a.NetDevices) {
		if v.value != nil && v.key[0] != '-' {
			if l.NetDevices == nil {
				l.NetDevices = map[string]specs.LinuxNetDevice{}
			}
			l.NetDevices[v.key] = specs.LinuxNetDevice{Name: v.value.Name}
		}
	}
	if v := a.OOMScoreAdj; v != nil {
		p.OOMScoreAdj = new(int(v.Value))
	}
	p.IOPriority, p.Scheduler = toIOPriority(a.IOPriority), toScheduler(a.Scheduler)
	l.Seccomp, l.MemoryPolicy = toSeccomp(a.SeccompPolicy), toMemoryPolicy(a.MemoryPolicy)
	a.rdt(e)
	return rare(a.Resources, l)
}

// addDevice gives a device and the right to use it. Source: upstream's AccessString: making block devices alone.
func addDevice(l *specs.Linux, d *Device) {
	out := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, UID: d.UID.Get(), GID: d.GID.Get()}
	if d.FileMode != nil {
		out.FileMode = new(fs.FileMode(d.FileMode.Value))
	}
	l.Devices = append(l.Devices, out)
	access := "rw"
	if d.Type == "b" {
		access = "rwm"
	}
	l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access})
}

// rare are the limits that CRI has no field for.
func rare(r *Resources, l *specs.Linux) error {
	if r == nil {
		return nil
	}
	if v := r.BlockioClass; v != nil && v.Value != "" {
		return fault.New(fault.Unsupported, "block I/O class %q: no classes are defined on this node", v.Value)
	}
	if v := r.RdtClass; v != nil && v.Value != "" {
		l.IntelRdt = &specs.LinuxIntelRdt{ClosID: v.Value}
	}
	if r.Pids != nil && r.Pids.Limit > -1 {
		l.Resources.Pids = &specs.LinuxPids{Limit: new(r.Pids.Limit)}
	}
	if c := r.CPU; c != nil && (c.RealtimeRuntime != nil || c.RealtimePeriod != nil) {
		l.Resources.CPU = &specs.LinuxCPU{RealtimeRuntime: c.RealtimeRuntime.Get(), RealtimePeriod: c.RealtimePeriod.Get()}
	}
	if m := r.Memory; m != nil && (m.Reservation != nil || m.Swappiness != nil) {
		l.Resources.Memory = &specs.LinuxMemory{Reservation: m.Reservation.Get(), Swappiness: m.Swappiness.Get()}
	}
	for _, d := range r.Devices {
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: d.Allow, Type: d.Type, Major: d.Major.Get(), Minor: d.Minor.Get(), Access: d.Access})
	}
	return nil
}

func (a *LinuxAdjustment) rdt(e *state.Edit) {
	r := a.Rdt
	if r == nil {
		return
	}
	e.Remove.Rdt = r.Remove
	if r.ClosID == nil && r.Schemata == nil && r.EnableMonitoring == nil {
		return
	}
	out := &specs.LinuxIntelRdt{EnableMonitoring: r.EnableMonitoring != nil && r.EnableMonitoring.Value}
	if r.ClosID != nil {
		out.ClosID = r.ClosID.Value
	}
	if r.Schemata != nil {
		out.Schemata = r.Schemata.Value
	}
	e.Add.Linux.IntelRdt = out
}

func toSeccomp(s *Seccomp) *specs.LinuxSeccomp {
	if s == nil {
		return nil
	}
	out := &specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(s.DefaultAction), ListenerPath: s.ListenerPath, ListenerMetadata: s.ListenerMetadata}
	if s.DefaultErrno != nil {
		out.DefaultErrnoRet = new(uint(s.DefaultErrno.Value))
	}
	for _, a := range s.Architectures {
		out.Architectures = append(out.Architectures, specs.Arch(a))
	}
	for _, f := range s.Flags {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	for _, c := range s.Syscalls {
		rule := specs.LinuxSyscall{Names: c.Names, Action: specs.LinuxSeccompAction(c.Action)}
		if c.Errno != nil {
			rule.ErrnoRet = new(uint(c.Errno.Value))
		}
		for _, a := range c.Args {
			rule.Args = append(rule.Args, specs.LinuxSeccompArg{Index: uint(a.Index), Value: a.Value, ValueTwo: a.ValueTwo, Op: specs.LinuxSeccompOperator(a.Op)})
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return out
}

// word is upstream's name for a number, empty outside of its list.
func word[T ~string](list []T, n int32) T {
	if n >= 0 && int(n) < len(list) {
		return list[n]
	}
	return ""
}

func toIOPriority(p *IOPriority) *specs.LinuxIOPriority {
	if p == nil || p.Class == 0 {
		return nil
	}
	classes := []specs.IOPriorityClass{"", specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}
	return &specs.LinuxIOPriority{Class: word(classes, p.Class), Priority: int(p.Priority)}
}

func toScheduler(s *Scheduler) *specs.Scheduler {
	if s == nil || s.Policy == 0 {
		return nil
	}
	policies := []specs.LinuxSchedulerPolicy{"", specs.SchedOther, specs.SchedFIFO, specs.SchedRR, specs.SchedBatch, specs.SchedISO, specs.SchedIdle, specs.SchedDeadline}
	flags := []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy,
		specs.SchedFlagKeepParams, specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax}
	out := &specs.Scheduler{Policy: word(policies, s.Policy), Nice: s.Nice, Priority: s.Priority, Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period}
	for _, f := range s.Flags {
		out.Flags = append(out.Flags, word(flags, f))
	}
	return out
}

func toMemoryPolicy(p *MemoryPolicy) *specs.LinuxMemoryPolicy {
	if p == nil {
		return nil
	}
	modes := []specs.MemoryPolicyModeType{specs.MpolDefault, specs.MpolPreferred, specs.MpolBind, specs.MpolInterleave, specs.MpolLocal,
		specs.MpolPreferredMany, specs.MpolWeightedInterleave}
	flags := []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes, specs.MpolFRelativeNodes, specs.MpolFNumaBalancing}
	out := &specs.LinuxMemoryPolicy{Mode: word(modes, p.Mode), Nodes: p.Nodes}
	for _, f := range p.Flags {
		out.Flags = append(out.Flags, word(flags, f))
	}
	return out
}
