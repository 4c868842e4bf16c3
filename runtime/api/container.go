package api

import (
	"context"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

func (s *Server) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if r.GetConfig() == nil {
		return nil, fault.New(fault.Invalid, "the request has no config")
	}
	id, err := s.node.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Server) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	return &cri.StartContainerResponse{}, s.node.StartContainer(ctx, r.GetContainerId())
}

func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return &cri.StopContainerResponse{}, s.node.StopContainer(ctx, r.GetContainerId(), time.Duration(r.GetTimeout())*time.Second)
}

func (s *Server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	return &cri.RemoveContainerResponse{}, s.node.RemoveContainer(ctx, r.GetContainerId())
}

func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	reply := &cri.ListContainersResponse{}
	f := r.GetFilter()
	for _, c := range sorted(s.node.Store().Containers("")) {
		switch {
		case !strings.HasPrefix(c.ID, f.GetId()), !strings.HasPrefix(c.Sandbox, f.GetPodSandboxId()),
			f.GetState() != nil && f.GetState().GetState() != containerState(c), !labelsMatch(f.GetLabelSelector(), c.Config.GetLabels()):
			continue
		}
		reply.Containers = append(reply.Containers, &cri.Container{
			Id: c.ID, PodSandboxId: c.Sandbox, Metadata: c.Meta(), Image: c.Config.GetImage(), ImageRef: c.ImageID, ImageId: c.ImageID,
			State: containerState(c), CreatedAt: c.Created.UnixNano(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		})
	}
	return reply, nil
}

func (s *Server) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.node.Store().Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	reply := &cri.ContainerStatusResponse{Status: containerStatus(c)}
	if r.GetVerbose() {
		if reply.Info, err = containerInfo(c, s.node.Spec(c)); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

func (s *Server) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if r.GetLinux() == nil {
		return nil, fault.New(fault.Invalid, "the request has no linux resources")
	}
	return &cri.UpdateContainerResourcesResponse{}, s.node.UpdateContainerResources(ctx, r.GetContainerId(), r.GetLinux())
}

func (s *Server) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, s.node.ReopenContainerLog(ctx, r.GetContainerId())
}

func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, fault.New(fault.Invalid, "timeout %d is negative", r.GetTimeout())
	}
	stdout, stderr, code, err := s.node.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), time.Duration(r.GetTimeout())*time.Second)
	if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

func (s *Server) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	return s.node.Exec(r)
}

func (s *Server) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	return s.node.Attach(r)
}

var containerStates = map[state.State]cri.ContainerState{
	state.Created: cri.ContainerState_CONTAINER_CREATED,
	state.Running: cri.ContainerState_CONTAINER_RUNNING,
	state.Exited:  cri.ContainerState_CONTAINER_EXITED,
}

func containerState(c *state.Container) cri.ContainerState {
	if s, ok := containerStates[c.State]; ok {
		return s
	}
	return cri.ContainerState_CONTAINER_UNKNOWN
}

func containerStatus(c *state.Container) *cri.ContainerStatus {
	user := &cri.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}
	for _, g := range c.User.Groups {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
	}
	out := &cri.ContainerStatus{
		Id: c.ID, Metadata: c.Meta(), State: containerState(c), CreatedAt: c.Created.UnixNano(), StartedAt: nanos(c.Started), FinishedAt: nanos(c.Finished),
		ExitCode: int32(c.ExitCode), Image: c.Config.GetImage(), ImageRef: c.ImageID, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), Mounts: c.Config.GetMounts(), LogPath: logPath(c),
		Resources: &cri.ContainerResources{Linux: c.Config.GetLinux().GetResources()}, User: &cri.ContainerUser{Linux: user},
		StopSignal: c.Config.GetStopSignal(),
	}
	return out
}

// nanos is CRI's time: nanoseconds since 1970, zero for "not yet".
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// sorted puts the newest first, as clients show them.
func sorted(list []*state.Container) []*state.Container {
	slices.SortFunc(list, func(a, b *state.Container) int { return b.Created.Compare(a.Created) })
	return list
}
