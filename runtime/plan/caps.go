package plan

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// capNames is every capability by its bit. Source: linux/capability.h, kernel 5.9.
var capNames = [...]string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE"}

// defaultCaps are the fourteen that container runtimes agree on.
const defaultCaps = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

const allCaps = 1<<len(capNames) - 1

// CapBit returns the bit of a capability named with or without CAP_, in any case.
func CapBit(name string) (bit int, ok bool) {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, n := range capNames {
		if n == name {
			return i, true
		}
	}
	return 0, false
}

// CapMask turns names into a bit mask; names that no kernel knows are left out.
func CapMask(names []string) (mask uint64) {
	for _, n := range names {
		if bit, ok := CapBit(n); ok {
			mask |= 1 << bit
		}
	}
	return mask
}

// capabilities applies add and drop to the defaults. ALL is applied before single names, so that add ALL drop X and
// drop ALL add X both mean what they say. Capabilities the node lacks cannot be given and are left out.
// Source: CRI Capability; kubelet sends names without CAP_.
func capabilities(sc *cri.LinuxContainerSecurityContext, host uint64) (*specs.LinuxCapabilities, error) {
	mask, ambient := uint64(defaultCaps), uint64(0)
	if sc.GetPrivileged() {
		mask = allCaps
	} else {
		c := sc.GetCapabilities()
		if hasAll(c.GetAddCapabilities()) {
			mask = allCaps
		}
		if hasAll(c.GetDropCapabilities()) {
			mask = 0
		}
		add, err := named(c.GetAddCapabilities())
		if err != nil {
			return nil, err
		}
		drop, err := named(c.GetDropCapabilities())
		if err != nil {
			return nil, err
		}
		if ambient, err = named(c.GetAddAmbientCapabilities()); err != nil {
			return nil, err
		}
		mask = (mask | add | ambient) &^ drop
		ambient &= mask
	}
	mask &= host
	names := capList(mask)
	out := &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
	if ambient &= host; ambient != 0 {
		out.Ambient = capList(ambient)
		out.Inheritable = out.Ambient
	}
	return out, nil
}

func hasAll(names []string) bool {
	for _, n := range names {
		if strings.EqualFold(n, "ALL") || strings.EqualFold(n, "CAP_ALL") {
			return true
		}
	}
	return false
}

func named(names []string) (mask uint64, err error) {
	for _, n := range names {
		if hasAll([]string{n}) {
			continue
		}
		bit, ok := CapBit(n)
		if !ok {
			return 0, fault.New(fault.Invalid, "capability %q is unknown", n)
		}
		mask |= 1 << bit
	}
	return mask, nil
}

func capList(mask uint64) []string {
	var out []string
	for i, n := range capNames {
		if mask&(1<<i) != 0 {
			out = append(out, "CAP_"+n)
		}
	}
	return out
}
