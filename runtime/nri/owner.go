package nri

import (
	"strings"

	"worknode/fault"
)

// field numbers what plugins can set, for conflicts and for validators. Source: api.proto, enum Field.
type field int32

const (
	fAnnotations field = iota + 1
	fMounts
	fHooks
	fDevices
	fCDI
	fEnv
	fArgs
	fMemLimit
	fMemReservation
	fMemSwap
	fMemKernel
	fMemTCP
	fMemSwappiness
	fMemDisableOOM
	fMemHierarchy
	fCPUShares
	fCPUQuota
	fCPUPeriod
	fCPURealtimeRuntime
	fCPURealtimePeriod
	fCPUSetCPUs
	fCPUSetMems
	fPids
	fHugepages
	fBlockio
	fRdtClass
	fUnified
	fCgroupsPath
	fOOMScoreAdj
	fRlimits
	fIOPriority
	fSeccomp
	fNamespace
	fSysctl
	fNetDevices
	fScheduler
	fRdtClosID
	fRdtSchemata
	fRdtMonitoring
	fMemoryPolicy
)

var fieldNames = [...]string{
	"", "annotation", "mount", "hooks", "device", "CDI device", "variable", "arguments", "memory limit", "memory reservation", "swap limit",
	"kernel memory limit", "TCP memory limit", "swappiness", "OOM killer", "memory hierarchy", "CPU shares", "CPU quota", "CPU period",
	"realtime runtime", "realtime period", "CPU set", "memory nodes", "pids limit", "huge page limit", "block I/O class", "RDT class",
	"cgroup file", "cgroup", "OOM score", "rlimit", "I/O priority", "seccomp profile", "namespace", "sysctl", "network device", "scheduler",
	"RDT class of service", "RDT schemata", "RDT monitoring", "memory policy",
}

// owners remember which plugin has set what of one request's containers. Two plugins may not set the same thing, unless
// the later one says that it takes it away from the earlier one.
type owners map[string]*fieldOwners // by container

func (o owners) of(id string) *fieldOwners {
	if o[id] == nil {
		o[id] = &fieldOwners{Simple: map[int32]string{}, Compound: map[int32]*compoundOwners{}}
	}
	return o[id]
}

// place is where the owner of a field, or of one of its entries, is written.
func (o owners) place(id string, f field, key string) (map[string]string, string, map[int32]string) {
	v := o.of(id)
	if key == "" {
		return nil, "", v.Simple
	}
	c := v.Compound[int32(f)]
	if c == nil {
		c = &compoundOwners{Owners: map[string]string{}}
		v.Compound[int32(f)] = c
	}
	return c.Owners, key, nil
}

func (o owners) get(id string, f field, key string) string {
	if entries, key, simple := o.place(id, f, key); simple == nil {
		return entries[key]
	} else {
		return simple[int32(f)]
	}
}

func (o owners) set(id string, f field, key, owner string) {
	if entries, key, simple := o.place(id, f, key); simple == nil {
		entries[key] = owner
	} else {
		simple[int32(f)] = owner
	}
}

// claim makes a plugin the owner. Errors: Invalid if another one is.
func (o owners) claim(id string, f field, key, plugin string) error {
	switch owner := o.get(id, f, key); owner {
	case "", "-" + plugin:
		o.set(id, f, key, plugin)
		return nil
	default:
		what := strings.TrimSpace(fieldNames[f] + " " + key)
		return fault.New(fault.Invalid, "NRI plugins %s and %s both set %s of container %s", strings.TrimPrefix(owner, "-"), plugin, what, id)
	}
}

// clear lets a plugin, and no other, set anew what it removes.
func (o owners) clear(id string, f field, key, plugin string) {
	if o.get(id, f, key) != "" {
		o.set(id, f, key, "-"+plugin)
	}
}

// share adds a plugin to the owners of what several may add to.
func (o owners) share(id string, f field, plugin string) {
	if owner := o.get(id, f, ""); owner != "" {
		plugin = owner + "," + plugin
	}
	o.set(id, f, "", plugin)
}
