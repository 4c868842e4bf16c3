package api

import (
	"context"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

func (s *Server) ContainerStats(_ context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.node.Store().Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.State != state.Running {
		return nil, fault.New(fault.NotFound, "container %s is %s and uses nothing", c.ID, c.State)
	}
	return &cri.ContainerStatsResponse{Stats: s.node.ContainerStats(c)}, nil
}

func (s *Server) ListContainerStats(_ context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	reply := &cri.ListContainerStatsResponse{}
	f := r.GetFilter()
	for _, c := range sorted(s.node.Store().Containers("")) {
		if c.State == state.Running && strings.HasPrefix(c.ID, f.GetId()) && strings.HasPrefix(c.Sandbox, f.GetPodSandboxId()) && labelsMatch(f.GetLabelSelector(), c.Config.GetLabels()) {
			reply.Stats = append(reply.Stats, s.node.ContainerStats(c))
		}
	}
	return reply, nil
}

func (s *Server) PodSandboxStats(_ context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	box, err := s.node.Store().Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: s.node.SandboxStats(box)}, nil
}

func (s *Server) ListPodSandboxStats(_ context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	reply := &cri.ListPodSandboxStatsResponse{}
	f := r.GetFilter()
	for _, box := range s.node.Store().Sandboxes() {
		if box.State == state.Ready && strings.HasPrefix(box.ID, f.GetId()) && labelsMatch(f.GetLabelSelector(), box.Config.GetLabels()) {
			reply.Stats = append(reply.Stats, s.node.SandboxStats(box))
		}
	}
	return reply, nil
}
