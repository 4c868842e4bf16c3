package web

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"worknode/proxy/state"
)

// Health knows whether the kernel has what the API wants. Safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	families []state.Family
	stale    time.Duration
	waiting  time.Time // when the oldest change that is not in the kernel came; zero: none
	updated  time.Time // of the last success; zero: never
	node     state.Node
	answers  [2]answers // of healthz, livez
}

type answers struct{ ok, failed uint64 }

// NewHealth returns the health of a proxy that has heard of no change: it is healthy, as kube-proxy is at its start.
// A change may wait for stale, and no longer. It is about waiting, never about how much there is to do.
func NewHealth(families []state.Family, stale time.Duration) *Health {
	return &Health{families: families, stale: stale}
}

// Tune changes what a reload of the configuration may change.
func (h *Health) Tune(stale time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stale = stale
}

// Received records that a change waits since at, if none waits already.
func (h *Health) Received(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting.IsZero() {
		h.waiting = at
	}
}

// Committed records that nothing waits any more.
func (h *Health) Committed(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting, h.updated = time.Time{}, at
}

// Node records what the API says of this node.
func (h *Health) Node(n state.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node = n
}

// Healthy tells whether no change waits for too long.
func (h *Health) Healthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.healthy(time.Now())
}

func (h *Health) healthy(now time.Time) bool {
	return h.waiting.IsZero() || now.Sub(h.waiting) < h.stale
}

// report is the body of an answer, in upstream's order.
type report struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyReport `json:"status,omitempty"`
}

type familyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// report says how things are. healthz is 200 only if load balancers may send here too: the Node exists, is not being
// deleted, and the autoscaler is not about to remove it (KEP-3836). livez is about the proxy alone.
func (h *Health) report(now time.Time, livez bool) (r report, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r = report{LastUpdated: h.updated, CurrentTime: now, Healthy: h.healthy(now)}
	if !h.updated.IsZero() {
		r.Status = map[string]familyReport{}
		for _, f := range h.families {
			r.Status[familyName(f)] = familyReport{h.updated, r.Healthy}
		}
	}
	ok = r.Healthy
	count := &h.answers[0]
	if livez {
		count = &h.answers[1]
	} else {
		eligible := h.node.Exists && h.node.Eligible
		r.NodeEligible = &eligible
		ok = ok && eligible
	}
	if ok {
		r.LastUpdated = now // old readers take it for the time of the last look
		count.ok++
	} else {
		count.failed++
	}
	return r, ok
}

// Handler serves /healthz and /livez.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	serve := func(livez bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			r, ok := h.report(time.Now(), livez)
			body, _ := json.Marshal(r) // times and truth values always encode
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			if !ok {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = w.Write(body) // the asker may be gone
		}
	}
	mux.HandleFunc("/healthz", serve(false))
	mux.HandleFunc("/livez", serve(true))
	return mux
}

func familyName(f state.Family) string {
	if f == state.V6 {
		return "IPv6"
	}
	return "IPv4"
}
