//go:build long

package proxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/proxy/act"
	"worknode/proxy/state"
)

// About once in six runs on a busy machine the repair is not seen, and nobody knows why yet: see docs/roadmap.md. Until
// then it stays out of every run.
// Whoever wipes tables that the kernel does not let us own is heard, and they are back within milliseconds.
func TestLongWipedTablesAreBackAtOnce(t *testing.T) {
	r := newRig(t, nil, true)
	r.send(service(1), slice(1, 3, 1), synced)
	r.commit("first load", nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	go func() {
		runtime.LockOSThread() // for good: the thread stays in the namespace
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		r.loop.watchTables(ctx)
	}()
	for _, args := range [][]string{{"flush", "ruleset"}, {"delete", "table", "ip", act.TableName}, {"flush", "chain", "ip6", act.TableName, "services"}} {
		var wiped time.Time
		repaired := func(c state.Commit) bool { return c.Drift+c.Replaced > 0 }
		for deadline := time.Now().Add(10 * time.Second); ; { // the watch may not listen yet
			if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
				t.Fatalf("nft %v: %v %s", args, err, out)
			}
			wiped = time.Now()
			select {
			case c := <-r.commits:
				r.commits <- c
			case <-time.After(200 * time.Millisecond):
				if time.Now().Before(deadline) {
					continue
				}
			}
			break
		}
		c := r.commit(fmt.Sprint("nft ", args), repaired)
		if took := c.Done.Sub(wiped); took > time.Second {
			t.Errorf("nft %v: back only after %v", args, took)
		}
		r.inKernel()
	}
	stop()
}
