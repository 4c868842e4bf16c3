package spec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/oci/capability"
)

// Process is the part of an init that container and exec share: identity, rights, limits, environment.
// Warnings name what the spec asks for and no kernel has. OOMScoreAdj nil stays nil: see wire.Init.
// Errors: Invalid, naming the field.
func Process(p *specs.Process) (init wire.Init, warnings []string, err error) {
	init = wire.Init{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids,
		Umask: p.User.Umask, NoNewPrivs: p.NoNewPrivileges, OOMScoreAdj: p.OOMScoreAdj,
		Extra: wire.Extra{AppArmor: p.ApparmorProfile, SELinux: p.SelinuxLabel},
	}
	if c := p.Capabilities; c != nil {
		for _, set := range []struct {
			names []string
			into  *uint64
		}{{c.Bounding, &init.Caps.Bounding}, {c.Effective, &init.Caps.Effective}, {c.Permitted, &init.Caps.Permitted},
			{c.Inheritable, &init.Caps.Inheritable}, {c.Ambient, &init.Caps.Ambient}} {
			mask, unknown := capability.Mask(set.names)
			*set.into = mask
			for _, name := range unknown {
				warnings = append(warnings, fmt.Sprintf("capability %q is not known and left out", name))
			}
		}
	}
	if init.Rlimits, err = rlimits(p.Rlimits); err != nil {
		return init, nil, err
	}
	if init.Extra.Scheduler, err = scheduler(p.Scheduler); err != nil {
		return init, nil, err
	}
	if init.Extra.IOPriority, err = ioPriority(p.IOPriority); err != nil {
		return init, nil, err
	}
	if b := p.ConsoleSize; b != nil {
		init.Extra.Width, init.Extra.Height = uint16(b.Width), uint16(b.Height)
	}
	return init, warnings, nil
}

// Affinity reads execCPUAffinity, which concerns processes that enter a running container.
func Affinity(a *specs.CPUAffinity, into *wire.Extra) (err error) {
	if a == nil {
		return nil
	}
	if into.FirstCPUs, err = bitList(a.Initial); err != nil {
		return fault.New(fault.Invalid, "process.execCPUAffinity.initial: %w", err)
	}
	if into.CPUs, err = bitList(a.Final); err != nil {
		return fault.New(fault.Invalid, "process.execCPUAffinity.final: %w", err)
	}
	return nil
}

// rlimitNames are the limits by number. Source: asm-generic/resource.h.
const rlimitNames = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"

func rlimits(list []specs.POSIXRlimit) ([]wire.Rlimit, error) {
	var out []wire.Rlimit
	seen := map[int]bool{}
	for _, l := range list {
		number := -1
		for i, name := range strings.Fields(rlimitNames) {
			if l.Type == "RLIMIT_"+name {
				number = i
			}
		}
		switch {
		case number < 0:
			return nil, fault.New(fault.Invalid, "process.rlimits: %q is not one of this system", l.Type)
		case seen[number]:
			return nil, fault.New(fault.Invalid, "process.rlimits: %s is there twice", l.Type)
		case l.Soft > l.Hard:
			return nil, fault.New(fault.Invalid, "process.rlimits: %s has a soft limit of %d above its hard one of %d", l.Type, l.Soft, l.Hard)
		}
		seen[number] = true
		out = append(out, wire.Rlimit{Type: number, Soft: l.Soft, Hard: l.Hard})
	}
	return out, nil
}

// Source: OCI config.md, "scheduler"; sched(7); linux/sched.h.
func scheduler(s *specs.Scheduler) (*wire.Scheduler, error) {
	if s == nil {
		return nil, nil
	}
	policies := []specs.LinuxSchedulerPolicy{specs.SchedOther, specs.SchedFIFO, specs.SchedRR, specs.SchedBatch, specs.SchedISO,
		specs.SchedIdle, specs.SchedDeadline}
	out := &wire.Scheduler{Nice: s.Nice, Priority: uint32(s.Priority), Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period}
	at := index(policies, s.Policy)
	switch {
	case at < 0:
		return nil, fault.New(fault.Invalid, "process.scheduler: policy %q is unknown", s.Policy)
	case s.Policy == specs.SchedISO:
		return nil, fault.New(fault.Unsupported, "process.scheduler: Linux reserves %s and does not have it", s.Policy)
	case s.Priority != 0 && s.Policy != specs.SchedFIFO && s.Policy != specs.SchedRR:
		return nil, fault.New(fault.Invalid, "process.scheduler: priority is for SCHED_FIFO and SCHED_RR, not %s", s.Policy)
	case s.Policy != specs.SchedDeadline && (s.Runtime != 0 || s.Deadline != 0 || s.Period != 0):
		return nil, fault.New(fault.Invalid, "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE, not %s", s.Policy)
	}
	out.Policy = uint32(at)
	flags := []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy,
		specs.SchedFlagKeepParams, specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax}
	for _, f := range s.Flags {
		at := index(flags, f)
		if at < 0 {
			return nil, fault.New(fault.Invalid, "process.scheduler: flag %q is unknown", f)
		}
		out.Flags |= 1 << at
	}
	return out, nil
}

func index[T comparable](list []T, want T) int {
	for i, v := range list {
		if v == want {
			return i
		}
	}
	return -1
}

// Source: ioprio_set(2): the class is in the bits from 13 on.
func ioPriority(p *specs.LinuxIOPriority) (*int, error) {
	if p == nil {
		return nil, nil
	}
	class := 1 + index([]specs.IOPriorityClass{specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}, p.Class)
	if class == 0 {
		return nil, fault.New(fault.Invalid, "process.ioPriority: class %q is unknown", p.Class)
	}
	if p.Priority < 0 || p.Priority > 7 {
		return nil, fault.New(fault.Invalid, "process.ioPriority: %d is not from 0 to 7", p.Priority)
	}
	return new(class<<13 | p.Priority), nil
}

func personality(p *specs.LinuxPersonality) (*uint64, error) {
	if p == nil {
		return nil, nil
	}
	if len(p.Flags) > 0 {
		return nil, fault.New(fault.Unsupported, "linux.personality: flags %v: the spec defines none", p.Flags)
	}
	switch p.Domain {
	case specs.PerLinux:
		return new(uint64(0)), nil
	case specs.PerLinux32:
		return new(uint64(8)), nil
	}
	return nil, fault.New(fault.Invalid, "linux.personality: domain %q is neither LINUX nor LINUX32", p.Domain)
}

// MemoryPolicy translates a memory policy; nil stays nil. Source: set_mempolicy(2); linux/mempolicy.h.
func MemoryPolicy(p *specs.LinuxMemoryPolicy) (*wire.MemoryPolicy, error) {
	if p == nil {
		return nil, nil
	}
	modes := []specs.MemoryPolicyModeType{specs.MpolDefault, specs.MpolPreferred, specs.MpolBind, specs.MpolInterleave, specs.MpolLocal,
		specs.MpolPreferredMany, specs.MpolWeightedInterleave}
	at := index(modes, p.Mode)
	if at < 0 {
		return nil, fault.New(fault.Invalid, "linux.memoryPolicy: mode %q is unknown", p.Mode)
	}
	out := &wire.MemoryPolicy{Mode: uint32(at)}
	for _, f := range p.Flags {
		at := index([]specs.MemoryPolicyFlagType{specs.MpolFNumaBalancing, specs.MpolFRelativeNodes, specs.MpolFStaticNodes}, f)
		if at < 0 {
			return nil, fault.New(fault.Invalid, "linux.memoryPolicy: flag %q is unknown", f)
		}
		out.Mode |= 1 << (13 + at)
	}
	nodes, err := bitList(p.Nodes)
	if err != nil {
		return nil, fault.New(fault.Invalid, "linux.memoryPolicy.nodes: %w", err)
	}
	out.Nodes = nodes
	return out, nil
}

// maxBit bounds CPU and node numbers; Linux has at most 8192 CPUs.
const maxBit = 8191

// bitList reads a list such as 0-3,7 into a mask. Source: cpuset(7), "List format".
func bitList(text string) ([]uint64, error) {
	if text == "" {
		return nil, nil
	}
	var out []uint64
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last > maxBit || first > last {
			return nil, fmt.Errorf("%q is not a list such as 0-3,7", text)
		}
		for n := first; n <= last; n++ {
			for uint64(len(out)) <= n/64 {
				out = append(out, 0)
			}
			out[n/64] |= 1 << (n % 64)
		}
	}
	return out, nil
}

// timeOffsets are lines for /proc/PID/timens_offsets. Source: time_namespaces(7).
func timeOffsets(offsets map[string]specs.LinuxTimeOffset) (string, error) {
	var b strings.Builder
	for clock, o := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			return "", fault.New(fault.Invalid, "linux.timeOffsets: clock %q is neither monotonic nor boottime", clock)
		}
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return b.String(), nil
}
