package api

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"worknode/task"
)

// exits tells log followers when their container has ended. It holds one event stream while anyone waits, none otherwise.
//
// Events alone are not enough: the stream gives no sign of when it is in place, and may break. So whenever it begins,
// and every auditEvery, the state of each awaited container is asked for.
type exits struct {
	runtime cri.RuntimeServiceClient
	tasks   *task.Group

	mu      sync.Mutex
	waiting map[string]map[chan struct{}]bool // by container id; the channels are closed at the end
	stop    context.CancelFunc                // ends the stream; nil while nobody waits
}

const (
	auditEvery = 5 * time.Second
	askWithin  = 5 * time.Second // for one ContainerStatus
)

func newExits(runtime cri.RuntimeServiceClient, tasks *task.Group) *exits {
	return &exits{runtime: runtime, tasks: tasks, waiting: map[string]map[chan struct{}]bool{}}
}

// watch returns a channel that is closed when the container has ended or is unknown. stop must be called.
func (e *exits) watch(id string) (ended <-chan struct{}, stop func()) {
	ch := make(chan struct{})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting[id] == nil {
		e.waiting[id] = map[chan struct{}]bool{}
	}
	e.waiting[id][ch] = true
	if e.stop == nil {
		ctx, cancel := context.WithCancel(e.tasks.Context())
		e.stop = cancel
		e.tasks.Go("exit events", func(context.Context) { e.listen(ctx) })
		e.tasks.Go("exit audit", func(context.Context) { e.audit(ctx) })
	} else {
		e.tasks.Go("exit check", func(ctx context.Context) { e.ask(ctx, id) })
	}
	return ch, sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if delete(e.waiting[id], ch); len(e.waiting[id]) == 0 {
			delete(e.waiting, id)
		}
		e.rest()
	})
}

// rest ends the stream when nobody waits. It needs mu.
func (e *exits) rest() {
	if len(e.waiting) == 0 && e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

func (e *exits) over(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.waiting[id] {
		close(ch)
	}
	delete(e.waiting, id)
	e.rest()
}

// listen reads events until ctx ends; a broken stream is opened again after the next audit's time, since the audit
// covers the gap.
func (e *exits) listen(ctx context.Context) {
	for ctx.Err() == nil {
		stream, err := e.runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		for err == nil {
			var ev *cri.ContainerEventResponse
			if ev, err = stream.Recv(); err != nil {
				break
			}
			switch ev.GetContainerEventType() {
			case cri.ContainerEventType_CONTAINER_STOPPED_EVENT, cri.ContainerEventType_CONTAINER_DELETED_EVENT:
				e.over(ev.GetContainerId())
			}
		}
		if status.Code(err) == codes.Unimplemented {
			return // the audit alone must do
		}
		select {
		case <-ctx.Done():
		case <-time.After(auditEvery):
		}
	}
}

func (e *exits) audit(ctx context.Context) {
	every := time.NewTicker(auditEvery)
	defer every.Stop()
	for {
		e.mu.Lock()
		ids := make([]string, 0, len(e.waiting))
		for id := range e.waiting {
			ids = append(ids, id)
		}
		e.mu.Unlock()
		for _, id := range ids {
			e.ask(ctx, id)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// ask looks at one container. An error other than not found says nothing about it.
func (e *exits) ask(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	got, err := e.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if status.Code(err) == codes.NotFound || err == nil && got.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED {
		e.over(id)
	}
}
