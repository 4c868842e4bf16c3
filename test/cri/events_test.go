package cri

import (
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEvents(t *testing.T) {
	n := newNode(t)
	stream, err := n.cri.GetContainerEvents(n.ctx(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // subscribed
		t.Fatal(err)
	}
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("main", "exit 3"))
	n.exited(id)
	if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 8 {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		who := "pod"
		if e.ContainerId == id {
			who = "container"
		}
		kind, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_")), "_")
		got = append(got, who+" "+kind)
		if e.PodSandboxStatus.GetId() != pod {
			t.Errorf("event %v without its pod", e)
		}
		if who == "container" && kind == "stopped" && (len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].ExitCode != 3) {
			t.Errorf("the stop event does not carry the exit: %v", e)
		}
	}
	want := "pod created, pod started, container created, container started, container stopped, pod stopped, container deleted, pod deleted"
	if strings.Join(got, ", ") != want {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, ", "), want)
	}
}

func TestLogRotation(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("main", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.002; done"))
	path := n.status(id).LogPath
	n.until("lines", func() bool { return counted(t, path) > 20 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.cri.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	n.until("lines in the new file", func() bool { return strings.Count(readLog(t, path), "\n") > 20 })
	if again, _ := os.ReadFile(path + ".1"); string(again) != string(old) {
		t.Errorf("the old file grew after the answer")
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	both := path + ".both"
	if err := os.WriteFile(both, append(old, all...), 0o644); err != nil {
		t.Fatal(err)
	}
	counted(t, both)
}

func TestStatusAndConfig(t *testing.T) {
	n := newNode(t)
	s, err := n.cri.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Status.Conditions {
		if !c.Status {
			t.Errorf("%s: %s", c.Type, c.Message)
		}
	}
	if r, err := n.cri.RuntimeConfig(n.ctx(), &cri.RuntimeConfigRequest{}); err != nil || r.Linux.CgroupDriver != cri.CgroupDriver_CGROUPFS {
		t.Errorf("%v %v", r, err)
	}
	if r, err := n.images.ImageFsInfo(n.ctx(), &cri.ImageFsInfoRequest{}); err != nil || r.ImageFilesystems[0].UsedBytes.GetValue() == 0 {
		t.Errorf("%v %v", r, err)
	}
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Error(err)
	}
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Errorf("removing an absent image: %v", err)
	}
}

// TestImageRemovedUnderContainer: a running container keeps its layers, and may be restarted on by exec.
func TestImageRemovedUnderContainer(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("main", "sleep 1000"))
	waiting := n.create(pod, box, config("waiting", "echo started"))
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Fatal(err)
	}
	if out := n.sh(id, "ls /bin/sh"); out != "/bin/sh\n" {
		t.Errorf("%q", out)
	}
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: waiting}); err != nil {
		t.Error(err)
	}
}

// TestLeavesNothing: a pod's end leaves no mount, no device and no folder.
func TestLeavesNothing(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	n.run(pod, box, config("main", "sleep 1000"))
	start := time.Now()
	if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	t.Logf("removed in %s", time.Since(start))
	for _, d := range []string{"run/live/pods", "run/live/state/sandboxes", "run/live/state/containers", "root/containers"} {
		left, err := os.ReadDir(n.dir + "/" + d)
		if err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", d, left, err)
		}
	}
}
