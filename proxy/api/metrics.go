package api

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics counts what the proxy does. The names of kube-proxy are kept, so that existing dashboards work; ours stand
// beside them. It is written by hand because the Prometheus library costs more memory than the proxy's own state.
type Metrics struct {
	ServiceChanges  atomic.Uint64
	EndpointChanges atomic.Uint64
	SyncFailures    atomic.Uint64
	Transactions    atomic.Uint64
	Elements        atomic.Uint64 // touched by transactions
	Replaced        atomic.Uint64 // whole tables written anew
	Drift           atomic.Uint64 // elements that the kernel had otherwise than we left them
	FlowsDeleted    atomic.Uint64
	FlowFailures    atomic.Uint64
	Services        atomic.Int64
	Slices          atomic.Int64
	Pending         atomic.Int64
	LastSync        atomic.Int64 // unix nanoseconds

	Sync    Histogram // one pass: compile, diff, transaction
	Program Histogram // from the change of endpoints in the cluster to the kernel

	healthz, livez [2]atomic.Uint64 // answers 200 and 503
}

var bounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond,
	2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second,
}

// Histogram counts durations. The zero value is ready.
type Histogram struct {
	mu    sync.Mutex
	count [len(bounds) + 1]uint64
	sum   time.Duration
}

// Observe adds one duration.
func (h *Histogram) Observe(d time.Duration) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[i]++
	h.sum += d
}

func (h *Histogram) write(w io.Writer, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintf(w, "# TYPE %s histogram\n", name)
	total := uint64(0)
	for i, b := range bounds {
		total += h.count[i]
		fmt.Fprintf(w, "%s_bucket{le=\"%g\"} %d\n", name, b.Seconds(), total)
	}
	total += h.count[len(bounds)]
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %g\n%s_count %d\n", name, total, name, h.sum.Seconds(), name, total)
}

// Write prints all metrics in the Prometheus text format.
func (m *Metrics) Write(w io.Writer) {
	counter := func(name string, v uint64) { fmt.Fprintf(w, "# TYPE %s counter\n%s %d\n", name, name, v) }
	gauge := func(name string, v float64) { fmt.Fprintf(w, "# TYPE %s gauge\n%s %g\n", name, name, v) }
	counter("kubeproxy_sync_proxy_rules_service_changes_total", m.ServiceChanges.Load())
	counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", m.EndpointChanges.Load())
	counter("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", m.SyncFailures.Load())
	counter("kubeproxy_conntrack_reconciler_deleted_entries_total", m.FlowsDeleted.Load())
	counter("worknode_proxy_transactions_total", m.Transactions.Load())
	counter("worknode_proxy_elements_total", m.Elements.Load())
	counter("worknode_proxy_table_replacements_total", m.Replaced.Load())
	counter("worknode_proxy_drift_elements_total", m.Drift.Load())
	counter("worknode_proxy_conntrack_failures_total", m.FlowFailures.Load())
	gauge("worknode_proxy_services", float64(m.Services.Load()))
	gauge("worknode_proxy_endpointslices", float64(m.Slices.Load()))
	gauge("worknode_proxy_pending_services", float64(m.Pending.Load()))
	gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", float64(m.LastSync.Load())/1e9)
	m.Sync.write(w, "kubeproxy_sync_proxy_rules_duration_seconds")
	m.Program.write(w, "kubeproxy_network_programming_duration_seconds")
	for name, c := range map[string]*[2]atomic.Uint64{"healthz": &m.healthz, "livez": &m.livez} {
		fmt.Fprintf(w, "# TYPE kubeproxy_proxy_%s_total counter\n", name)
		for i, code := range []int{200, 503} {
			fmt.Fprintf(w, "kubeproxy_proxy_%s_total{code=\"%d\"} %d\n", name, code, c[i].Load())
		}
	}
}
