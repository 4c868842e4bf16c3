package api

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

func (s *Server) CheckpointContainer(context.Context, *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	return nil, fault.New(fault.Unsupported, "checkpoints are not supported: the native executor has no CRIU yet")
}

func (s *Server) CheckpointPod(context.Context, *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	return nil, fault.New(fault.Unsupported, "checkpoints are not supported: the native executor has no CRIU yet")
}

func (s *Server) RestorePod(context.Context, *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	return nil, fault.New(fault.Unsupported, "checkpoints are not supported: the native executor has no CRIU yet")
}
