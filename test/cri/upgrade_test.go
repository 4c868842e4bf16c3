package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/pidfd"
	"worknode/test/harness"
)

// nextMonitor is another build of the monitor: one byte more at its end makes it one.
func nextMonitor(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(monitorBinary)
	if err != nil {
		t.Fatal(err)
	}
	next := monitorBinary + "-next"
	if err := os.WriteFile(next, append(data, '\n'), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(next) })
	return next
}

// pidOf is a container's first process, as the runtime tells it.
func (n *node) pidOf(id string) int {
	n.t.Helper()
	r, err := n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		n.t.Fatalf("no pid in %v (%v)", r.Info, err)
	}
	return info.Pid
}

// runMany starts pods with one container each, some at a time.
func (n *node) runMany(count int, change func(i int, c *cri.ContainerConfig)) []string {
	n.t.Helper()
	boxes := make([]*cri.PodSandboxConfig, count)
	for i := range boxes {
		boxes[i] = n.podConfig()
		boxes[i].Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	ids := make([]string, count)
	var work sync.WaitGroup
	var next atomic.Int64
	for range 4 {
		work.Go(func() {
			for i := int(next.Add(1) - 1); i < count; i = int(next.Add(1) - 1) {
				c := config("main", "")
				change(i, c)
				c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
				r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: boxes[i]})
				if err != nil {
					n.t.Error(err)
					return
				}
				made, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: c, SandboxConfig: boxes[i]})
				if err == nil {
					ids[i] = made.ContainerId
					_, err = n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: made.ContainerId})
				}
				if err != nil {
					n.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	if n.t.Failed() {
		n.t.FailNow()
	}
	return ids
}

// A hundred pods write logs; the runtime is killed and replaced, and the monitor becomes another build, again and again.
// Issue 4, Upgrade.
func TestUpgradeUnderLoad(t *testing.T) {
	n := newNode(t)
	pods := 100
	if harness.Emulated() {
		pods = 20
	}
	builds := []string{nextMonitor(t), monitorBinary}
	ids := n.runMany(pods, func(i int, c *cri.ContainerConfig) {
		c.Command = []string{"sh", "-c", `i=0; while :; do j=0; while [ $j -lt 50 ]; do i=$((i+1)); j=$((j+1)); echo $i; done; [ -e /stop ] && exit 7; usleep 400000; done`}
		c.Tty = i == 0
	})
	type process struct {
		pid   int
		began uint64
	}
	was := make([]process, pods)
	for i, id := range ids {
		pid := n.pidOf(id)
		began, err := pidfd.StartTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		was[i] = process{pid, began}
	}
	monitor := n.monitorPid()
	box := n.podConfig()
	pod := n.runPod(box)
	for round := range 4 {
		// What ends in the window: some at once, some amid, some after.
		var ending []string
		for k := range 4 {
			ending = append(ending, n.run(pod, box, config(fmt.Sprintf("end-%d-%d", round, k), fmt.Sprintf("usleep %d; exit %d", k*150000, 30+k))))
		}
		n.killRuntime()
		n.extra = []string{"WORKNODE_TEST_MONITOR=" + builds[round%2]}
		n.start()
		if out := n.sh(ids[round], "echo at once"); out != "at once\n" {
			t.Errorf("exec right after the start: %q", out)
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", monitor)); err != nil || exe != builds[round%2] {
			t.Errorf("the monitor runs %s (%v), want %s in the same process", exe, err, builds[round%2])
		}
		for k, id := range ending {
			if s := n.exited(id); s.ExitCode != int32(30+k) {
				t.Errorf("round %d: what ended in the window says %d (%s), want %d", round, s.ExitCode, s.Reason, 30+k)
			}
		}
	}
	// By command, with a living runtime that has calls under way all the time.
	ctx, stop := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	var done atomic.Int64
	for w := range 2 {
		calls.Go(func() {
			for ctx.Err() == nil {
				r, err := n.exec(ids[10+w], 20, "echo", "fine")
				if err != nil || string(r.Stdout) != "fine\n" {
					t.Errorf("exec beside an upgrade: %v %v", r, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for round := range 4 {
		before := done.Load()
		if out, err := exec.Command(monitorBinary, "upgrade", "--socket", filepath.Join(n.dir, "run/monitor.sock"), "--binary", builds[round%2]).CombinedOutput(); err != nil {
			t.Errorf("upgrade: %v: %s", err, out)
		}
		n.until("calls to go on", func() bool { return done.Load() > before+2 || t.Failed() })
	}
	stop()
	calls.Wait()
	for i, id := range ids {
		if began, err := pidfd.StartTime(was[i].pid); err != nil || began != was[i].began || n.pidOf(id) != was[i].pid {
			t.Errorf("container %d is another process than before (%v)", i, err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root", was[i].pid)); err != nil {
			t.Error(err)
		}
	}
	if n.monitorPid() != monitor {
		t.Error("the monitor is another process than before")
	}
	for _, p := range was {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/stop", p.pid), nil, 0o644); err != nil {
			t.Error(err)
		}
	}
	lines := 0
	for i, id := range ids {
		s := n.exited(id)
		if s.ExitCode != 7 {
			t.Errorf("container %d ended with %d (%s)", i, s.ExitCode, s.Reason)
		}
		lines += countedFrom(t, s.LogPath, i == 0)
	}
	t.Logf("%d lines of %d containers, none lost; %d calls beside the upgrades by command", lines, pods, done.Load())
}

// countedFrom is counted, for logs of terminals too.
func countedFrom(t *testing.T, path string, tty bool) int {
	t.Helper()
	if !tty {
		return counted(t, path)
	}
	last := 0
	for line := range strings.Lines(readLog(t, path)) {
		last++
		if strings.TrimSpace(line) != fmt.Sprint(last) {
			t.Fatalf("line %d of a terminal's log is %q", last, line)
		}
	}
	return last
}

// A monitor that dies of its upgrade is replaced by the build before it, and one that does not even start too.
func TestUpgradeToABadMonitor(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	long := n.run(pod, box, config("long", "sleep 1000"))
	writer := n.run(pod, box, config("writer", fmt.Sprintf(counter, 10000)))
	n.killRuntime()
	bad := monitorBinary + "-bad"
	if err := os.WriteFile(bad, fmt.Appendf(nil, "#!/bin/sh\n[ \"$1\" = about ] && exec %s about\nexit 1\n", monitorBinary), 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bad)
	n.extra = []string{"WORKNODE_TEST_MONITOR=" + bad}
	n.start()
	if out := n.sh(long, "echo fine"); out != "fine\n" {
		t.Errorf("exec: %q", out)
	}
	if s := n.exited(writer); !(s.ExitCode == 9 && s.Reason == "Error") && !(s.ExitCode == 255 && s.Reason == "Unknown" && !harness.ExitsOutliveTheMonitor()) {
		t.Errorf("writer: %v", s)
	}
	if last := counted(t, n.status(writer).LogPath); last != 10000 {
		t.Errorf("%d of 10000 lines", last)
	}
	log, err := os.ReadFile(n.dir + "/runtime.log")
	if err != nil || strings.Count(string(log), "back to the one before") != 1 || strings.Count(string(log), "monitor not upgraded") != 1 {
		t.Errorf("the runtime tells it once: %v\n%s", err, log)
	}
	n.until("the runtime to be calm", func() bool { return n.monitorPid() != 0 })
	n.extra = nil
}
