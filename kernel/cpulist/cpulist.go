// Package cpulist reads lists of CPUs as the kernel and users write them: 0,2-3.
// Source: cpuset(7), list format.
package cpulist

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

const most = 1 << 16 // more than any kernel knows

// Count is the number of CPUs in a list, each counted once; zero if it is none.
func Count(list string) int {
	seen := map[int]bool{}
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(low)
		b := a
		if isRange && err == nil {
			b, err = strconv.Atoi(high)
		}
		if err != nil || a < 0 || b < a || b >= most {
			return 0
		}
		for ; a <= b; a++ {
			seen[a] = true
		}
	}
	return len(seen)
}

// Online is the number of the machine's CPUs that are online, whatever this process may use. sys is where sysfs is.
func Online(sys string) int {
	text, err := os.ReadFile(sys + "/devices/system/cpu/online")
	if n := Count(string(text)); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}
