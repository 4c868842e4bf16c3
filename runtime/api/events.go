package api

import (
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

// Event builds one container event; a sandbox's own events carry its id as the container's, as CRI has it.
func Event(id string, kind cri.ContainerEventType, at time.Time, s *state.Sandbox, containers []*state.Container) *cri.ContainerEventResponse {
	out := &cri.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: at.UnixNano()}
	if s != nil {
		out.PodSandboxStatus = sandboxStatus(s)
	}
	for _, c := range sorted(containers) {
		out.ContainersStatuses = append(out.ContainersStatuses, containerStatus(c))
	}
	return out
}

// GetContainerEvents streams events until the client leaves. A client that falls behind is dropped and must list anew.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	events, leave := s.node.Events()
	defer leave()
	// Headers first: a client that has them knows that nothing from now on is missed.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return fault.Hint(fault.New(fault.Exhausted, "event stream: the client is too slow"), "list, then subscribe again")
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}
