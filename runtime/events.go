package runtime

import (
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventQueue is how many events a client may be behind before it is dropped; it lists anew when it returns.
const eventQueue = 256

// hub gives events to whoever listens. It never waits: a client that does not keep up loses its stream.
type hub struct {
	mu      sync.Mutex
	ended   bool
	clients map[chan *cri.ContainerEventResponse]struct{}
}

// join returns a stream of events, closed when the client was too slow, and the way to leave.
func (h *hub) join() (<-chan *cri.ContainerEventResponse, func()) {
	ch := make(chan *cri.ContainerEventResponse, eventQueue)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		close(ch)
		return ch, func() {}
	}
	if h.clients == nil {
		h.clients = map[chan *cri.ContainerEventResponse]struct{}{}
	}
	h.clients[ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.clients, ch)
	}
}

// send builds the event only if somebody listens.
func (h *hub) send(build func() *cri.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) == 0 {
		return
	}
	event := build()
	for ch := range h.clients {
		select {
		case ch <- event:
		default:
			close(ch)
			delete(h.clients, ch)
		}
	}
}

// end closes all streams, now and later: the process is about to leave.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for ch := range h.clients {
		close(ch)
	}
	h.clients = nil
}
