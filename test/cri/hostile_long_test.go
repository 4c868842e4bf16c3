//go:build long

package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// frozen stops a container's group as a process in uninterruptible sleep does: SIGKILL does not end it (v1).
func (n *node) frozen(pod, id string, on bool) bool {
	n.t.Helper()
	group := filepath.Join("/sys/fs/cgroup/freezer", "wn-test-"+filepath.Base(n.dir), pod, id)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return false
	}
	state := "THAWED"
	if on {
		state = "FROZEN"
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(n.pidOf(id))), 0o644); err != nil {
			return false
		}
	}
	return os.WriteFile(filepath.Join(group, "freezer.state"), []byte(state), 0o644) == nil
}

// What SIGKILL does not end makes a stop fail within a bound and with a clear word, holds nobody else up, and goes with the
// next call once it can.
func TestLongProcessThatCannotEnd(t *testing.T) {
	n := newNode(t)
	box, other := n.podConfig(), n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("stuck", "exec sleep 1000"))
	if !n.frozen(pod, id, true) {
		t.Skip("no freezer of cgroup v1 here; on v2 the kernel kills what is frozen")
	}
	defer n.frozen(pod, id, false)
	failed := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})
		failed <- err
	}()
	out := n.output(n.runPod(other), other, config("other", "echo fine"))
	if out != "fine\n" {
		t.Errorf("another pod meanwhile: %q", out)
	}
	err := <-failed
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "hangs in the kernel") {
		t.Errorf("stop of what cannot end: %v after %v", err, time.Since(begin))
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it still runs, and the status says %v", s.State)
	}
	n.frozen(pod, id, false)
	if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Errorf("remove once it can end: %v", err)
	}
	os.Remove(filepath.Join("/sys/fs/cgroup/freezer", "wn-test-"+filepath.Base(n.dir), pod, id))
	os.Remove(filepath.Join("/sys/fs/cgroup/freezer", "wn-test-"+filepath.Base(n.dir), pod))
	os.Remove(filepath.Join("/sys/fs/cgroup/freezer", "wn-test-"+filepath.Base(n.dir)))
}
