//go:build !race

package net

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMemoryWithAThousandServices guards the proxy's price on a node: private and shared memory of its process.
// The test binary is larger than the product, so the bound is not tighter than the product's own goal of 20 MB; the
// race detector multiplies memory, so this is not built with it.
func TestMemoryWithAThousandServices(t *testing.T) {
	n := newNode(t, options{})
	n.start()
	for i := range 1000 {
		name := fmt.Sprintf("svc-%04d", i)
		n.service(name, fmt.Sprintf("10.97.%d.%d", i>>8, i&255), port{tcp, 80, int32(30000 + i)})
		n.endpoints(name, 8080, up("10.1.140.1", "10.1.141.1", "10.1.141.2")...)
	}
	eventually(t, "1,000 Services should be in the kernel", func() error {
		if k := strings.Count(n.dump(), "svc 0a61"); k != 1000 {
			return fmt.Errorf("%d are", k)
		}
		return nil
	})
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	kb := 0
	for _, l := range strings.Split(string(b), "\n") {
		fmt.Sscanf(l, "Pss: %d kB", &kb)
	}
	t.Logf("PSS %d kB", kb)
	if kb == 0 || kb > 30<<10 {
		t.Errorf("PSS is %d kB with 1,000 Services", kb)
	}
}
