package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/mount"
	"worknode/test/harness"
)

// counted checks that a log holds the numbers 1, 2, 3 … without a gap, a double or a torn line, and returns the last.
func counted(t *testing.T, path string) int {
	t.Helper()
	want := 0
	for line := range strings.Lines(readLog(t, path)) {
		want++
		if strings.TrimSpace(line) != fmt.Sprint(want) {
			t.Fatalf("log line %d is %q", want, line)
		}
	}
	return want
}

const counter = `i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; [ $((i%%200)) -eq 0 ] && sleep 0.02; done; exit 9`

// TestRuntimeKilled: containers run on, logs miss no line, exits that happen meanwhile are reported.
func TestRuntimeKilled(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	long := n.run(pod, box, config("long", "sleep 1000"))
	writer := n.run(pod, box, config("writer", fmt.Sprintf(counter, 20000)))
	short := n.run(pod, box, config("short", "sleep 0.3; exit 5"))
	before := n.status(long)
	n.until("some lines", func() bool { return counted(t, n.status(writer).LogPath) > 500 })
	n.killRuntime()
	time.Sleep(500 * time.Millisecond) // the short one ends while nobody looks
	n.start()
	if s := n.exited(short); s.ExitCode != 5 || s.Reason != "Error" {
		t.Errorf("an exit during the runtime's absence: %v", s)
	}
	if s := n.status(long); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != before.StartedAt {
		t.Errorf("the container did not live on: %v, before %v", s, before)
	}
	if out := n.sh(long, "echo fine"); out != "fine\n" {
		t.Errorf("exec after the restart: %q", out)
	}
	if s := n.exited(writer); s.ExitCode != 9 {
		t.Errorf("writer: %v", s)
	}
	if last := counted(t, n.status(writer).LogPath); last != 20000 {
		t.Errorf("%d of 20000 lines", last)
	}
}

// TestMonitorKilled: the runtime starts a new one and hands everything over.
func TestMonitorKilled(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	long := n.run(pod, box, config("long", "sleep 1000"))
	writer := n.run(pod, box, config("writer", fmt.Sprintf(counter, 20000)))
	n.until("some lines", func() bool { return counted(t, n.status(writer).LogPath) > 500 })
	old := n.monitorPid()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.until("a new monitor", func() bool { p := n.monitorPid(); return p != 0 && p != old })
	if out := n.sh(long, "echo fine"); out != "fine\n" {
		t.Errorf("exec in a handed over container: %q", out)
	}
	n.run(pod, box, config("new", "sleep 1000"))
	if s := n.exited(writer); !(s.ExitCode == 9 && s.Reason == "Error") && !(s.ExitCode == 255 && s.Reason == "Unknown" && !harness.ExitsOutliveTheMonitor()) {
		t.Errorf("writer: %v", s)
	}
	if last := counted(t, n.status(writer).LogPath); last != 20000 {
		t.Errorf("%d of 20000 lines", last)
	}
	if s := n.status(long); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("long: %v", s)
	}
}

// TestBothKilled: the processes are watched by pidfd; the code of what ended while nobody was there is
// known only if somebody above still keeps it.
func TestBothKilled(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	long := n.run(pod, box, config("long", "sleep 1000"))
	short := n.run(pod, box, config("short", "sleep 0.3; exit 3"))
	n.killRuntime()
	syscall.Kill(n.monitorPid(), syscall.SIGKILL)
	time.Sleep(600 * time.Millisecond)
	n.start()
	if s := n.exited(short); !(s.ExitCode == 3 && s.Reason == "Error") && !(s.ExitCode == 255 && s.Reason == "Unknown") {
		t.Errorf("the true code, or an honest unknown: %v", s)
	}
	if s := n.status(long); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("long: %v", s)
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: long, Timeout: 1}); err != nil {
		t.Error(err)
	}
	if s := n.status(long); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("long after stop: %v", s)
	}
}

// TestStopOutlivesRuntime: the deadline of a stop is kept when the runtime dies amid.
func TestStopOutlivesRuntime(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("deaf", `trap '' TERM; while :; do sleep 0.05; done`))
	grace := int64(harness.Slow(time.Second).Seconds()) // long enough to be seen by what follows
	go n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: grace})
	n.until("stop under way", func() bool {
		records, _ := filepath.Glob(n.dir + "/run/live/state/*/" + id + "*")
		for _, file := range records {
			if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), `"Deadline":"2`) {
				return true
			}
		}
		return false
	})
	n.killRuntime()
	n.start()
	if s := n.exited(id); s.ExitCode != 137 {
		t.Errorf("status %v", s)
	}
}

// TestCleanup: what a killed runtime left, running containers included, goes by one call.
func TestCleanup(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	n.run(pod, box, config("long", "sleep 4567"))
	n.killRuntime()
	n.extra = []string{"WORKNODE_TEST_CLEANUP=1"}
	n.launch()
	if err := n.cmd.Wait(); err != nil {
		t.Fatalf("cleanup: %v", err)
	}
	n.extra = nil
	if left, err := mount.Below(n.dir + "/run"); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v %v", left, err)
	}
	n.until("the monitor's end", func() bool { return n.monitorPid() == 0 })
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.Contains(string(line), "4567") {
			t.Errorf("process %s is left: %q", e.Name(), line)
		}
	}
	n.start() // for the clean-up that follows every test
}

// TestCorruptRecord: a record that cannot be read costs that object only, and nothing of it stays behind.
func TestCorruptRecord(t *testing.T) {
	n := newNode(t)
	box, other := n.podConfig(), n.podConfig()
	pod, otherPod := n.runPod(box), n.runPod(other)
	lost, kept := n.run(pod, box, config("lost", "sleep 7531")), n.run(pod, box, config("kept", "sleep 1000"))
	lostToo := n.run(otherPod, other, config("losttoo", "sleep 7532"))
	n.killRuntime()
	for _, f := range []string{"containers/" + lost, "sandboxes/" + otherPod} {
		if err := os.WriteFile(n.dir+"/run/live/state/"+f+".json", []byte(`{"ID":`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	if s := n.status(kept); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container beside it: %v", s)
	}
	for _, id := range []string{lost, lostToo} {
		if _, err := n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
			t.Errorf("status of a lost container: %v", err)
		}
		if _, err := os.Stat(n.dir + "/root/containers/" + id); err == nil {
			t.Errorf("the writable layer of %s is left", id)
		}
	}
	if _, err := os.Stat(n.dir + "/run/live/pods/" + otherPod); err == nil {
		t.Error("the files of the lost sandbox are left")
	}
	n.until("processes of lost containers to end", func() bool {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.Contains(string(line), "sleep\x00753") {
				return false
			}
		}
		return true
	})
	again := n.runPod(other) // the name is free
	n.run(again, other, config("new", "sleep 1000"))
}

// TestSocketBusy: a second runtime on the same folders ends with one clear error and harms nothing.
func TestSocketBusy(t *testing.T) {
	n := newNode(t)
	first := n.cmd
	n.launch()
	if err := n.cmd.Wait(); err == nil {
		t.Error("a second runtime started")
	}
	n.cmd = first
	if _, err := n.cri.Version(n.ctx(), &cri.VersionRequest{}); err != nil {
		t.Errorf("the first one: %v", err)
	}
	log, err := os.ReadFile(n.dir + "/runtime.log")
	if err != nil || !strings.Contains(string(log), "another process answers on it") {
		t.Errorf("%v, log %s", err, log)
	}
}
