package kubelet

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is a container runtime without containers: it keeps records, and a test says when a process ends. It listens
// on a real socket, so that connection loss and deadlines are real.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	mu         sync.Mutex
	n          int
	boxes      []*cri.PodSandboxStatus
	containers []*fakeContainer
	starts     map[string]int // by container id
	watchers   []chan *cri.ContainerEventResponse
	execs      []string
	fail       func(call string) error // asked at the start of each call; nil: nothing fails
	onStop     func(c *fakeContainer) int32
}

type fakeContainer struct {
	*cri.ContainerStatus
	box    string
	config *cri.ContainerConfig
}

func startFakeCRI(t *testing.T) (*fakeCRI, string) {
	t.Helper()
	f := &fakeCRI{starts: map[string]int{}}
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		f.mu.Lock()
		fail := f.fail
		f.mu.Unlock()
		if fail != nil {
			if err := fail(filepath.Base(info.FullMethod)); err != nil {
				return nil, err
			}
		}
		return h(ctx, req)
	}))
	cri.RegisterRuntimeServiceServer(s, f)
	cri.RegisterImageServiceServer(s, f)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return f, socket
}

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeCRI) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
		{Type: cri.RuntimeReady, Status: true}, {Type: cri.NetworkReady, Status: true},
	}}}, nil
}

func (f *fakeCRI) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{}, nil
}

func (f *fakeCRI) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if r.Image.Image == "absent" {
		return &cri.ImageStatusResponse{}, nil
	}
	return &cri.ImageStatusResponse{Image: &cri.Image{Id: "sha256:1", RepoTags: []string{r.Image.Image}}}, nil
}

func (f *fakeCRI) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	return nil, status.Errorf(codes.NotFound, "no registry has %s", r.Image.Image)
}

func (f *fakeCRI) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	s := &cri.PodSandboxStatus{
		Id: fmt.Sprint("box", f.n), Metadata: r.Config.Metadata, State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: time.Now().UnixNano(),
		Network: &cri.PodSandboxNetworkStatus{Ip: fmt.Sprint("10.1.0.", f.n)}, Labels: r.Config.Labels,
	}
	f.boxes = append(f.boxes, s)
	return &cri.RunPodSandboxResponse{PodSandboxId: s.Id}, nil
}

func (f *fakeCRI) box(id string) *cri.PodSandboxStatus {
	for _, b := range f.boxes {
		if b.Id == id {
			return b
		}
	}
	return nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.box(r.PodSandboxId); b != nil {
		return &cri.PodSandboxStatusResponse{Status: proto.Clone(b).(*cri.PodSandboxStatus)}, nil
	}
	return nil, status.Errorf(codes.NotFound, "no sandbox %s", r.PodSandboxId)
}

func (f *fakeCRI) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.box(r.PodSandboxId); b != nil {
		b.State = cri.PodSandboxState_SANDBOX_NOTREADY
	}
	for _, c := range f.containers {
		if c.box == r.PodSandboxId && c.State == cri.ContainerState_CONTAINER_RUNNING {
			f.exit(c, 137)
		}
	}
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *fakeCRI) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes = slices.DeleteFunc(f.boxes, func(b *cri.PodSandboxStatus) bool { return b.Id == r.PodSandboxId })
	f.containers = slices.DeleteFunc(f.containers, func(c *fakeContainer) bool { return c.box == r.PodSandboxId })
	return &cri.RemovePodSandboxResponse{}, nil
}

func (f *fakeCRI) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &cri.ListPodSandboxResponse{}
	for _, b := range f.boxes {
		if selects(r.GetFilter().GetLabelSelector(), b.Labels) {
			out.Items = append(out.Items, &cri.PodSandbox{Id: b.Id, Metadata: b.Metadata, State: b.State, CreatedAt: b.CreatedAt, Labels: b.Labels})
		}
	}
	return out, nil
}

func selects(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeCRI) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.box == r.PodSandboxId && c.Metadata.Name == r.Config.Metadata.Name && c.Metadata.Attempt == r.Config.Metadata.Attempt {
			return nil, status.Errorf(codes.AlreadyExists, "name is reserved")
		}
	}
	f.n++
	c := &fakeContainer{box: r.PodSandboxId, config: r.Config, ContainerStatus: &cri.ContainerStatus{
		Id: fmt.Sprint("ctr", f.n), Metadata: r.Config.Metadata, CreatedAt: time.Now().UnixNano(), Image: r.Config.Image,
		ImageRef: "sha256:1", Labels: r.Config.Labels, Annotations: r.Config.Annotations,
	}}
	f.containers = append(f.containers, c)
	return &cri.CreateContainerResponse{ContainerId: c.Id}, nil
}

func (f *fakeCRI) container(id string) *fakeContainer {
	for _, c := range f.containers {
		if c.Id == id {
			return c
		}
	}
	return nil
}

func (f *fakeCRI) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.container(r.ContainerId)
	if c == nil || c.State != cri.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not created", r.ContainerId)
	}
	f.starts[c.Id]++
	c.State, c.StartedAt = cri.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	f.tell(c, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &cri.StartContainerResponse{}, nil
}

func (f *fakeCRI) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.container(r.ContainerId)
	if c != nil && c.State == cri.ContainerState_CONTAINER_RUNNING {
		code := int32(143)
		if f.onStop != nil {
			code = f.onStop(c)
		}
		f.exit(c, code)
	}
	return &cri.StopContainerResponse{}, nil
}

// exit ends a container; the caller holds mu.
func (f *fakeCRI) exit(c *fakeContainer, code int32) {
	c.State, c.ExitCode, c.FinishedAt, c.Reason = cri.ContainerState_CONTAINER_EXITED, code, time.Now().UnixNano(), "Completed"
	if code != 0 {
		c.Reason = "Error"
	}
	f.tell(c, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (f *fakeCRI) tell(c *fakeContainer, what cri.ContainerEventType) {
	for _, w := range f.watchers {
		w <- &cri.ContainerEventResponse{ContainerId: c.Id, ContainerEventType: what, PodSandboxStatus: proto.Clone(f.box(c.box)).(*cri.PodSandboxStatus)}
	}
}

func (f *fakeCRI) RemoveContainer(_ context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = slices.DeleteFunc(f.containers, func(c *fakeContainer) bool { return c.Id == r.ContainerId })
	return &cri.RemoveContainerResponse{}, nil
}

func (f *fakeCRI) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &cri.ListContainersResponse{}
	for _, c := range f.containers {
		if selects(r.GetFilter().GetLabelSelector(), c.Labels) && (r.GetFilter().GetState() == nil || r.Filter.State.State == c.State) {
			out.Containers = append(out.Containers, &cri.Container{Id: c.Id, PodSandboxId: c.box, Metadata: c.Metadata, State: c.State, Labels: c.Labels})
		}
	}
	return out, nil
}

func (f *fakeCRI) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.container(r.ContainerId); c != nil {
		return &cri.ContainerStatusResponse{Status: proto.Clone(c.ContainerStatus).(*cri.ContainerStatus)}, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", r.ContainerId)
}

func (f *fakeCRI) ExecSync(_ context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.execs = append(f.execs, r.Cmd[0])
	if r.Cmd[0] == "false" {
		return &cri.ExecSyncResponse{ExitCode: 1}, nil
	}
	return &cri.ExecSyncResponse{}, nil
}

func (f *fakeCRI) GetContainerEvents(_ *cri.GetEventsRequest, s cri.RuntimeService_GetContainerEventsServer) error {
	w := make(chan *cri.ContainerEventResponse, 1000)
	f.mu.Lock()
	f.watchers = append(f.watchers, w)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.watchers = slices.DeleteFunc(f.watchers, func(o chan *cri.ContainerEventResponse) bool { return o == w })
		f.mu.Unlock()
	}()
	if err := s.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case e := <-w:
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}
