package harness

import (
	"bytes"
	"fmt"
	"syscall"
)

// ExitsOutliveTheMonitor says whether this kernel tells the exit code of somebody else's child, also after it was
// reaped: PIDFD_INFO_EXIT came with 6.15. Without it an exit after the monitor's death may be honestly unknown.
func ExitsOutliveTheMonitor() bool {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return false
	}
	var release []byte
	for _, c := range u.Release {
		release = append(release, byte(c))
	}
	var major, minor int
	fmt.Sscanf(string(bytes.TrimRight(release, "\x00")), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 15
}
