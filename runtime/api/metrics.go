package api

import (
	"context"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/runtime/metrics"
	"worknode/runtime/state"
)

func (s *Server) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: metrics.Descriptors()}, nil
}

func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	reply := &cri.ListPodSandboxMetricsResponse{}
	for _, box := range s.node.Store().Sandboxes() {
		if err := ctx.Err(); err != nil {
			return nil, err // the scraper has left, and a hundred pods are a thousand files
		}
		if box.State == state.Ready {
			reply.PodMetrics = append(reply.PodMetrics, s.node.SandboxMetrics(box))
		}
	}
	return reply, nil
}

func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	list, err := s.ListPodSandboxMetrics(out.Context(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	return inChunks(list.PodMetrics, func(p []*cri.PodSandboxMetrics) error {
		return out.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: p})
	})
}
