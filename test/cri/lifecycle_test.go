package cri

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerLife(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	if again := n.runPod(box); again != pod {
		t.Errorf("a repeated RunPodSandbox made a second sandbox")
	}
	ps, err := n.cri.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if ps.Status.State != cri.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(ps.Status.Network.Ip, "10.88.0.") {
		t.Errorf("sandbox status %v", ps.Status)
	}
	c := config("main", `echo out; echo err >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done`)
	c.Labels = map[string]string{"app": "main"}
	id := n.create(pod, box, c)
	if again := n.create(pod, box, c); again != id {
		t.Errorf("a repeated CreateContainer made a second container")
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_CREATED || s.StartedAt != 0 {
		t.Errorf("created: %v", s)
	}
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	s := n.status(id)
	if s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.ImageId == "" || s.ImageRef != s.ImageId {
		t.Errorf("running: %v", s)
	}
	im, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: busybox}})
	if err != nil || im.Image.GetId() != s.ImageId {
		t.Errorf("image %v %v, status says %s", im, err, s.ImageId)
	}
	n.until("output", func() bool { return strings.Contains(readLog(t, s.LogPath), "err") })
	if text, _ := os.ReadFile(s.LogPath); !strings.Contains(string(text), " stdout F out\n") || !strings.Contains(string(text), " stderr F err\n") {
		t.Errorf("log %s", text)
	}
	start := time.Now()
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a container that obeys TERM took %s to stop", took)
	}
	s = n.status(id)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("exited: %v", s)
	}
	if !strings.HasSuffix(readLog(t, s.LogPath), "bye\n") {
		t.Errorf("the last line is missing in the log")
	}
	list, err := n.cri.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: map[string]string{"app": "main"}, PodSandboxId: pod}})
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("list by label: %v %v", list, err)
	}
	for range 2 { // both are idempotent
		if _, err := n.cri.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v", err)
	}
}

func TestStopKillsWhatIgnoresTheSignal(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("deaf", `trap '' TERM; while :; do sleep 0.05; done`))
	start := time.Now()
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 900*time.Millisecond || took > 4*time.Second {
		t.Errorf("stop with a second of grace took %s", took)
	}
	if s := n.status(id); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("status %v", s)
	}
}

func TestStartErrors(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("absent", "")
	c.Command = []string{"no-such-program"}
	id := n.create(pod, box, c)
	_, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), `"no-such-program": executable file not found in $PATH`) {
		t.Errorf("start: %v", err)
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || s.Message == "" {
		t.Errorf("status %v", s)
	}
	c = config("nobody", "true")
	c.Linux.SecurityContext.RunAsUsername = "mallory"
	if _, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mallory") {
		t.Errorf("unknown user: %v", err)
	}
	c = config("group", "true")
	c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5}
	if _, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("group without user: %v", err)
	}
	c = config("image", "true")
	c.Image.Image = "nowhere.example/none:1"
	if _, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown image: %v", err)
	}
	if _, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: c.Image}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "tar file") {
		t.Errorf("pull from a registry that cannot be reached: %v", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("hungry", `dd if=/dev/zero of=/dev/null bs=200M count=1`)
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	s := n.exited(n.run(pod, box, c))
	if s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("status %v", s)
	}
}
