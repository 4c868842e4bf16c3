package act

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kubelet/state"
)

// Event is one line of the runtime's news. UID is empty if the runtime did not tell whose container it is.
type Event struct {
	UID  types.UID
	ID   string // of a container or a sandbox
	What state.Event
}

var whats = map[cri.ContainerEventType]state.Event{
	cri.ContainerEventType_CONTAINER_STARTED_EVENT: state.Started,
	cri.ContainerEventType_CONTAINER_STOPPED_EVENT: state.Died,
	cri.ContainerEventType_CONTAINER_DELETED_EVENT: state.Removed,
}

const (
	streamRetry = 50 * time.Millisecond
	streamMost  = 2 * time.Second
)

// Events reads the runtime's event stream until ctx ends and calls send for each event, in order. After every gap, and
// also at the first connection, it calls gap: what happened meanwhile has to be looked for. A runtime without the stream
// is looked at every second instead, as kubelets did before it existed.
func (a *Act) Events(ctx context.Context, send func(Event), gap func()) {
	wait, quiet := streamRetry, false
	for ctx.Err() == nil {
		began := time.Now()
		err := a.stream(ctx, send, gap)
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unimplemented {
			wait = time.Second
		} else if time.Since(began) > streamMost {
			wait, quiet = streamRetry, false
		}
		if !quiet {
			quiet = true
			slog.Warn("the runtime's event stream ended, opening it again", "err", text(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, streamMost)
		if status.Code(err) == codes.Unimplemented {
			gap()
		}
	}
}

func (a *Act) stream(ctx context.Context, send func(Event), gap func()) error {
	s, err := a.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return err
	}
	// The runtime answers with headers once it listens; what happened before is found by looking after that.
	if _, err := s.Header(); err != nil {
		return err
	}
	gap()
	for {
		e, err := s.Recv()
		if err != nil {
			return err
		}
		if what, ok := whats[e.ContainerEventType]; ok {
			send(Event{UID: types.UID(e.GetPodSandboxStatus().GetMetadata().GetUid()), ID: e.ContainerId, What: what})
		}
	}
}
