package monitor_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"worknode/kernel/cgroup"
)

// The monitor's memory is the node's price per pod.
func TestHundredContainersFitIntoEightMegabytes(t *testing.T) {
	n := newNode(t)
	empty := pss(t, n.cmd.Process.Pid)
	for i := range 100 {
		s := n.container(fmt.Sprint("c", i), "sh", "-c", "seq 1 1000; exec sleep 1000")
		n.limited(&s, cgroup.Resources{})
		n.start(s)
	}
	for i := range 100 {
		id := fmt.Sprint("c", i)
		n.eventually(id+" has logged", func() bool { return strings.HasSuffix(n.logText(id), "\n1000\n") })
	}
	full := pss(t, n.cmd.Process.Pid)
	t.Cleanup(func() { t.Logf("PSS of the monitor: %d KiB empty, %d KiB with 100 containers", empty, full) })
	n.eventually("its PSS is below 8 MiB, at the latest when the memory of the burst was given back", func() bool {
		full = pss(t, n.cmd.Process.Pid)
		return full < 8<<10
	})
}

// pss is the proportional set size in KiB. Source: kernel proc.rst, smaps_rollup.
func pss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no Pss in %s", b)
	return 0
}
