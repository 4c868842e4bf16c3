package api

import (
	"slices"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// chunk is how many objects go into one message of a streamed list: far below what clients take of a message, where a
// whole list of a crowded node is not. Source: KEP-5825.
const chunk = 100

func inChunks[T any](list []T, send func([]T) error) error {
	for part := range slices.Chunk(list, chunk) {
		if err := send(part); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) StreamPodSandboxes(r *cri.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxesResponse]) error {
	list, err := s.ListPodSandbox(out.Context(), &cri.ListPodSandboxRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inChunks(list.Items, func(p []*cri.PodSandbox) error {
		return out.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: p})
	})
}

func (s *Server) StreamContainers(r *cri.StreamContainersRequest, out grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	list, err := s.ListContainers(out.Context(), &cri.ListContainersRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inChunks(list.Containers, func(p []*cri.Container) error {
		return out.Send(&cri.StreamContainersResponse{Containers: p})
	})
}

func (s *Server) StreamContainerStats(r *cri.StreamContainerStatsRequest, out grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	list, err := s.ListContainerStats(out.Context(), &cri.ListContainerStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inChunks(list.Stats, func(p []*cri.ContainerStats) error {
		return out.Send(&cri.StreamContainerStatsResponse{ContainerStats: p})
	})
}

func (s *Server) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	list, err := s.ListPodSandboxStats(out.Context(), &cri.ListPodSandboxStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inChunks(list.Stats, func(p []*cri.PodSandboxStats) error {
		return out.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: p})
	})
}

func (s *Server) StreamImages(r *cri.StreamImagesRequest, out grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	list, err := s.ListImages(out.Context(), &cri.ListImagesRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inChunks(list.Images, func(p []*cri.Image) error {
		return out.Send(&cri.StreamImagesResponse{Images: p})
	})
}
