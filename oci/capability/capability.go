// Package capability knows the capabilities of Linux by name.
package capability

import "strings"

// names is every capability by its bit. Source: linux/capability.h, kernel 5.9.
var names = [...]string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE"}

// All is every capability as a bit mask.
const All = uint64(1)<<len(names) - 1

// Bit returns the bit of a capability named with or without CAP_, in any case.
func Bit(name string) (bit int, ok bool) {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, n := range names {
		if n == name {
			return i, true
		}
	}
	return 0, false
}

// Mask turns names into a bit mask; those that no kernel knows come back as unknown.
func Mask(list []string) (mask uint64, unknown []string) {
	for _, n := range list {
		if bit, ok := Bit(n); ok {
			mask |= 1 << bit
		} else {
			unknown = append(unknown, n)
		}
	}
	return mask, unknown
}

// List returns the names of a mask, with CAP_.
func List(mask uint64) []string {
	var out []string
	for i, n := range names {
		if mask&(1<<i) != 0 {
			out = append(out, "CAP_"+n)
		}
	}
	return out
}
