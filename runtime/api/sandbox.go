package api

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

func (s *Server) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if r.GetConfig() == nil {
		return nil, fault.New(fault.Invalid, "the request has no config")
	}
	id, err := s.node.RunPodSandbox(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *Server) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, s.node.StopPodSandbox(ctx, r.GetPodSandboxId())
}

func (s *Server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return &cri.RemovePodSandboxResponse{}, s.node.RemovePodSandbox(ctx, r.GetPodSandboxId())
}

func (s *Server) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	box, err := s.node.Store().Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	reply := &cri.PodSandboxStatusResponse{Status: sandboxStatus(box), Timestamp: time.Now().UnixNano()}
	for _, c := range sorted(s.node.Store().Containers(box.ID)) {
		reply.ContainersStatuses = append(reply.ContainersStatuses, containerStatus(c))
	}
	if r.GetVerbose() {
		if reply.Info, err = sandboxInfo(box, s.node.Namespaces(box)); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	reply := &cri.ListPodSandboxResponse{}
	f := r.GetFilter()
	for _, box := range s.node.Store().Sandboxes() {
		if !strings.HasPrefix(box.ID, f.GetId()) || f.GetState() != nil && f.GetState().GetState() != sandboxState(box) || !labelsMatch(f.GetLabelSelector(), box.Config.GetLabels()) {
			continue
		}
		reply.Items = append(reply.Items, &cri.PodSandbox{
			Id: box.ID, Metadata: box.Meta(), State: sandboxState(box), CreatedAt: box.Created.UnixNano(),
			Labels: box.Config.GetLabels(), Annotations: box.Config.GetAnnotations(), RuntimeHandler: box.Handler,
		})
	}
	slices.SortFunc(reply.Items, func(a, b *cri.PodSandbox) int { return int(b.CreatedAt - a.CreatedAt) })
	return reply, nil
}

func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	return &cri.UpdatePodSandboxResourcesResponse{}, s.node.UpdatePodSandboxResources(ctx, r)
}

func (s *Server) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return s.node.PortForward(r)
}

func sandboxState(s *state.Sandbox) cri.PodSandboxState {
	if s.State == state.Ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(s *state.Sandbox) *cri.PodSandboxStatus {
	opts := s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if opts == nil {
		opts = &cri.NamespaceOption{}
	}
	out := &cri.PodSandboxStatus{
		Id: s.ID, Metadata: s.Meta(), State: sandboxState(s), CreatedAt: s.Created.UnixNano(), Network: &cri.PodSandboxNetworkStatus{},
		Linux:  &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: opts}},
		Labels: s.Config.GetLabels(), Annotations: s.Config.GetAnnotations(), RuntimeHandler: s.Handler,
	}
	if s.State == state.Ready && len(s.IPs) > 0 {
		out.Network.Ip = s.IPs[0]
		for _, ip := range s.IPs[1:] {
			out.Network.AdditionalIps = append(out.Network.AdditionalIps, &cri.PodIP{Ip: ip})
		}
	}
	return out
}

// labelsMatch reports whether all wanted labels are there with those values.
func labelsMatch(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// logPath is what status shows: the path as the node sees it.
func logPath(c *state.Container) string {
	if c.LogPath == "" {
		return ""
	}
	return filepath.Clean(c.LogPath)
}
