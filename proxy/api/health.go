package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"worknode/fault"
)

// staleAfter is how long a change may wait before the proxy calls itself unhealthy: twice kube-proxy's default
// sync period. It is about waiting, never about how much there is to do.
const staleAfter = time.Minute

// Health knows whether the kernel has what the API wants. Safe for concurrent use.
type Health struct {
	waiting  atomic.Int64 // unix nanoseconds of the oldest change that is not in the kernel; zero: none
	updated  atomic.Int64 // of the last success; zero: never
	eligible atomic.Bool
}

// NewHealth returns the health of a proxy that has its first sync to do. The Node counts as eligible until it is
// known: a standalone node may have none yet.
func NewHealth(now time.Time) *Health {
	h := &Health{}
	h.waiting.Store(now.UnixNano())
	h.eligible.Store(true)
	return h
}

// Queued records that a change waits since now, if none waits already.
func (h *Health) Queued(now time.Time) { h.waiting.CompareAndSwap(0, now.UnixNano()) }

// Done records that nothing waits any more.
func (h *Health) Done(now time.Time) {
	h.updated.Store(now.UnixNano())
	h.waiting.Store(0)
}

// SetEligible records whether load balancers may send to this node.
func (h *Health) SetEligible(ok bool) { h.eligible.Store(ok) }

// Healthy tells whether no change waits for too long, after a first success.
func (h *Health) Healthy(now time.Time) bool {
	w := h.waiting.Load()
	return h.updated.Load() != 0 && (w == 0 || now.Sub(time.Unix(0, w)) < staleAfter)
}

// Handler serves /healthz and /livez as kube-proxy does: livez is about the sync alone, so that a node which is about
// to leave keeps its proxy. Source: KEP-3836.
func (h *Health) Handler(m *Metrics) http.Handler {
	mux := http.NewServeMux()
	serve := func(path string, withNode bool, count *[2]atomic.Uint64) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			now := time.Now()
			healthy, last := h.Healthy(now), now
			if !healthy {
				last = time.Unix(0, h.updated.Load())
			}
			body := map[string]any{"lastUpdated": last.UTC(), "currentTime": now.UTC(), "healthy": healthy}
			ok := healthy
			if withNode {
				body["nodeEligible"] = h.eligible.Load()
				ok = ok && h.eligible.Load()
			}
			code := http.StatusOK
			if !ok {
				code = http.StatusServiceUnavailable
			}
			count[btoi(!ok)].Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(body) // the asker may be gone
		})
	}
	serve("/healthz", true, &m.healthz)
	serve("/livez", false, &m.livez)
	return mux
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// MetricsHandler serves /metrics, /healthz and /proxyMode.
func MetricsHandler(h *Health, m *Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", h.Handler(m))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		m.Write(w)
	})
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "nftables") })
	return mux
}

// Listen binds addr. The error names it and what to do.
func Listen(what, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("proxy %s: %w", what, err), "choose another address, or end what listens there")
	}
	return l, nil
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, handler http.Handler) {
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	_ = s.Serve(l) // its error is that it was closed
}
