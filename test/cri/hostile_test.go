package cri

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A start that goes on in the monitor when the runtime dies is what the repeated call finds: one process, never two.
func TestStartOutlivesRuntime(t *testing.T) {
	n := newNode(t)
	begun := filepath.Join(n.dir, "begun")
	n.cdiSpec("cdi", "slow.json", fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "acme.example/slow", "devices": [{"name": "a", "containerEdits":
		{"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "touch %s; sleep 2"], "env": ["PATH=/bin:/usr/bin"], "timeout": 20}]}}]}`, begun))
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("c", "exec sleep 86421")
	c.CDIDevices = []*cri.CDIDevice{{Name: "acme.example/slow=a"}}
	id := n.create(pod, box, c)
	go n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
	n.until("the start to be under way", func() bool { _, err := os.Stat(begun); return err == nil })
	n.killRuntime()
	n.start()
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("repeated start: %v", err)
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container %v", s)
	}
	if count := asleep(86421); count != 1 {
		t.Errorf("%d processes", count)
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if s := n.exited(id); s.ExitCode != 137 {
		t.Errorf("its end: %v", s)
	}
}

// A fork bomb meets its pids limit; its neighbours are served meanwhile, and it goes at the first stop.
func TestForkBomb(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	neighbour := n.run(pod, box, config("neighbour", "sleep 1000"))
	c := config("bomb", "f() { f | f & sleep 30; }; f")
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 2, Unified: nil}
	pids := filepath.Join("/sys/fs/cgroup", "pids")
	if _, err := os.Stat(pids); err != nil {
		pids = "/sys/fs/cgroup" // v2
	}
	id := n.create(pod, box, c)
	// CRI has no limit of pids for a container: the kubelet sets one on the pod's group.
	group := filepath.Join(pids, "wn-test-"+filepath.Base(n.dir), pod)
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte("200"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.until("the bomb to reach its limit", func() bool {
		text, _ := os.ReadFile(filepath.Join(group, "pids.current"))
		var count int
		fmt.Sscan(string(text), &count)
		return count > 190
	})
	other := n.podConfig()
	free := n.run(n.runPod(other), other, config("free", "sleep 1000"))
	if out := n.sh(free, "echo fine"); out != "fine\n" {
		t.Errorf("a neighbour's exec: %q", out)
	}
	// In the full group itself an exec cannot be cloned; it says so, and does not hang.
	begin := time.Now()
	if _, err := n.exec(neighbour, 20, "true"); err != nil && status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("exec in the full pod: %v after %v", err, time.Since(begin))
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.cri.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if out := n.sh(neighbour, "echo fine"); out != "fine\n" {
		t.Errorf("exec after the bomb: %q", out)
	}
}

// A pid that somebody else has by now is not taken for the container's, and not killed.
func TestReusedPid(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("gone", "exec sleep 1000"))
	victim := n.run(pod, box, config("victim", "exec sleep 1000"))
	pid := n.pidOf(victim)
	n.killRuntime()
	monitor := n.monitorPid()
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.until("the monitor's end", func() bool { return n.monitorPid() == 0 })
	unix.Kill(n.recorded(id, pid), unix.SIGKILL)
	n.start()
	if s := n.exited(id); s.Reason != "Unknown" || s.ExitCode != 255 {
		t.Errorf("a container whose pid another process has: %v", s)
	}
	if _, err := n.cri.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if s := n.status(victim); s.State != cri.ContainerState_CONTAINER_RUNNING || n.pidOf(victim) != pid {
		t.Errorf("the process that has the pid: %v", s)
	}
}

// recorded gives a container's record another pid, as if that had been reused, and returns the true one.
func (n *node) recorded(id string, pid int) (was int) {
	n.t.Helper()
	file := filepath.Join(n.dir, "run/live/state/containers", id+".json")
	data, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	var record map[string]json.RawMessage
	if err := json.Unmarshal(data, &record); err != nil {
		n.t.Fatal(err)
	}
	if err := json.Unmarshal(record["Pid"], &was); err != nil {
		n.t.Fatal(err)
	}
	record["Pid"] = json.RawMessage(fmt.Sprint(pid))
	if data, err = json.Marshal(record); err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return was
}

// Mounts that somebody left on our folders do not keep a pod or a container from being removed.
func TestLeakedMounts(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("c", "exec sleep 1000"))
	for _, dir := range []string{filepath.Join(n.dir, "root/containers", id, "upper"), filepath.Join(n.dir, "run/live/pods", pod, "shm")} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	busy, err := os.Open(filepath.Join(n.dir, "root/containers", id, "upper/mine"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if _, err := n.cri.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("remove the container: %v", err)
	}
	n.removePod(pod)
}
