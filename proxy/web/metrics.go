package web

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"worknode/proxy/state"
	"worknode/version"
)

// Metrics counts what the proxy does. kube-proxy's names are kept, so that dashboards go on; ours stand beside them, and
// are finer, as a pass of ours fits into the first bucket of upstream's. Safe for concurrent use.
type Metrics struct {
	health   *Health
	families []state.Family

	mu                               sync.Mutex
	sync, full, partial, program     histogram
	commit, clean                    histogram
	service, endpoint                change
	queued, synced                   time.Time
	failures, cleanFailures          uint64
	deleted                          map[state.Family]uint64
	cleaned                          map[state.Family]*histogram
	transactions, elements, replaced uint64
	drift, bytes                     uint64
	last                             state.Commit
	troubles                         map[troubled]string

	// Listeners reports the listeners of localhost node ports of a family, and how many could not be made; nil: none.
	Listeners func(state.Family) (open int, failures uint64)
}

type change struct{ total, pending uint64 }

type troubled struct {
	kind string
	name state.Name
}

// NewMetrics returns metrics that have counted nothing.
func NewMetrics(h *Health) *Metrics {
	return &Metrics{health: h, families: h.families, sync: newHistogram(syncBounds()), full: newHistogram(syncBounds()), partial: newHistogram(syncBounds()),
		program: newHistogram(programBounds()), commit: newHistogram(fineBounds()), clean: newHistogram(fineBounds()),
		deleted: map[state.Family]uint64{}, cleaned: map[state.Family]*histogram{}, troubles: map[troubled]string{}}
}

// Received counts a change of the API.
func (m *Metrics) Received(r state.Received) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch r.Kind {
	case "Service":
		m.service.total++
		m.service.pending++
	case "EndpointSlice":
		m.endpoint.total++
		m.endpoint.pending++
	}
	m.queued = r.At
}

// Committed counts a pass that succeeded.
func (m *Metrics) Committed(c state.Commit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	took := c.Done.Sub(c.Began)
	m.sync.observe(took)
	m.commit.observe(took)
	if c.Full {
		m.full.observe(took)
	} else {
		m.partial.observe(took)
	}
	for _, t := range c.Triggers {
		m.program.observe(max(0, c.Done.Sub(t)))
	}
	m.service.pending, m.endpoint.pending, m.synced = 0, 0, c.Done
	m.transactions += uint64(c.Transactions)
	m.elements += uint64(c.Elements)
	m.bytes += uint64(c.Bytes)
	m.replaced += uint64(c.Replaced)
	m.drift += uint64(c.Drift)
	c.Triggers = nil
	m.last = c
}

// Failed counts a pass that the kernel refused.
func (m *Metrics) Failed(error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
}

// Cleaned counts a round of the conntrack cleaner.
func (m *Metrics) Cleaned(c state.Cleaned) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cleaned[c.Family] == nil {
		h := newHistogram(syncBounds())
		m.cleaned[c.Family] = &h
	}
	m.cleaned[c.Family].observe(c.Took)
	m.deleted[c.Family] += uint64(c.Deleted)
	if c.Err != nil {
		m.cleanFailures++
	}
}

// Trouble records an object that is not served as it is written, or that it is again.
func (m *Metrics) Trouble(t state.Trouble) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.Reason == "" {
		delete(m.troubles, troubled{t.Kind, t.Object})
	} else {
		m.troubles[troubled{t.Kind, t.Object}] = t.Reason
	}
}

// Write prints all metrics in the Prometheus text format.
func (m *Metrics) Write(w io.Writer) {
	t := newText(w)
	defer t.Flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upstream(t)
	m.ours(t)
	process(t)
}

// each writes a metric that upstream has for each family. One transaction carries both, so both have the same value.
func (m *Metrics) each(t text, kind, name, help string, value func(labels string)) {
	t.head(kind, "kubeproxy_"+name, "[ALPHA] "+help)
	for _, f := range m.families {
		value(familyLabel(f))
	}
}

func familyLabel(f state.Family) string { return `ip_family="` + familyName(f) + `"` }

func (m *Metrics) upstream(t text) {
	histogramOf := func(name, help string, h *histogram) {
		m.each(t, "histogram", name, help, func(l string) { t.histogram("kubeproxy_"+name, l, h) })
	}
	valueOf := func(kind, name, help string, v float64) {
		m.each(t, kind, name, help, func(l string) { t.sample("kubeproxy_"+name, l, v) })
	}
	plain := func(kind, name, help string, v uint64) {
		t.one(kind, "kubeproxy_"+name, "[ALPHA] "+help, float64(v))
	}
	for i, name := range []string{"proxy_healthz_total", "proxy_livez_total"} {
		a := m.health.answered(i)
		t.head("counter", "kubeproxy_"+name, "[ALPHA] Answers of the health server by HTTP status")
		t.sample("kubeproxy_"+name, `code="200"`, float64(a.ok))
		t.sample("kubeproxy_"+name, `code="503"`, float64(a.failed))
	}
	histogramOf("sync_proxy_rules_duration_seconds", "How long a pass took", &m.sync)
	histogramOf("sync_full_proxy_rules_duration_seconds", "How long a pass over everything took", &m.full)
	histogramOf("sync_partial_proxy_rules_duration_seconds", "How long a pass over what changed took", &m.partial)
	histogramOf("network_programming_duration_seconds", "From the change of endpoints in the cluster to the kernel", &m.program)
	valueOf("gauge", "sync_proxy_rules_last_timestamp_seconds", "When the kernel last had everything", unix(m.synced))
	valueOf("gauge", "sync_proxy_rules_last_queued_timestamp_seconds", "When the last change came", unix(m.queued))
	plain("gauge", "sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that the kernel does not have", m.endpoint.pending)
	plain("counter", "sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices", m.endpoint.total)
	plain("gauge", "sync_proxy_rules_service_changes_pending", "Changes of Services that the kernel does not have", m.service.pending)
	plain("counter", "sync_proxy_rules_service_changes_total", "Changes of Services", m.service.total)
	valueOf("counter", "sync_proxy_rules_nftables_sync_failures_total", "Passes that the kernel refused", float64(m.failures))
	valueOf("counter", "sync_proxy_rules_nftables_cleanup_failures_total", "Removals of stale chains that failed; they are part of the pass here", 0)
	m.each(t, "gauge", "sync_proxy_rules_no_local_endpoints_total", "Services with a Local traffic policy and endpoints, but none here", func(l string) {
		t.sample("kubeproxy_sync_proxy_rules_no_local_endpoints_total", l+`,traffic_policy="internal"`, float64(m.last.NoLocal.Internal))
		t.sample("kubeproxy_sync_proxy_rules_no_local_endpoints_total", l+`,traffic_policy="external"`, float64(m.last.NoLocal.External))
	})
	t.head("histogram", "kubeproxy_conntrack_reconciler_sync_duration_seconds", "[ALPHA] How long a round over UDP flows took")
	for _, f := range m.families {
		if h := m.cleaned[f]; h != nil {
			t.histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", familyLabel(f), h)
		}
	}
	t.head("counter", "kubeproxy_conntrack_reconciler_deleted_entries_total", "[ALPHA] UDP flows cut as their endpoint is gone")
	for _, f := range m.families {
		t.sample("kubeproxy_conntrack_reconciler_deleted_entries_total", familyLabel(f), float64(m.deleted[f]))
	}
	if m.Listeners == nil {
		return
	}
	const listeners, failed = "nftables_localhost_nodeport_listeners", "nftables_localhost_nodeport_listener_creation_failures_total"
	m.each2(t, listeners, "gauge", "Listeners of node ports on loopback", func(f state.Family) float64 { n, _ := m.Listeners(f); return float64(n) })
	m.each2(t, failed, "counter", "Listeners of node ports on loopback that could not be made", func(f state.Family) float64 { _, n := m.Listeners(f); return float64(n) })
}

func (m *Metrics) each2(t text, name, kind, help string, value func(state.Family) float64) {
	t.head(kind, "kubeproxy_"+name, "[ALPHA] "+help)
	for _, f := range m.families {
		t.sample("kubeproxy_"+name, familyLabel(f), value(f))
	}
}

func (m *Metrics) ours(t text) {
	counter := func(name, help string, v uint64) { t.one("counter", "worknode_proxy_"+name, help, float64(v)) }
	gauge := func(name, help string, v int) { t.one("gauge", "worknode_proxy_"+name, help, float64(v)) }
	const commit = "worknode_proxy_commit_duration_seconds"
	t.head("histogram", commit, "How long a pass took, from its first change taken to the kernel's answer")
	t.histogram(commit, "", &m.commit)
	counter("transactions_total", "Transactions that the kernel took", m.transactions)
	counter("elements_total", "Elements that transactions added, replaced or removed", m.elements)
	counter("transaction_bytes_total", "Size of the transactions", m.bytes)
	counter("table_replacements_total", "Whole tables written anew", m.replaced)
	counter("drift_elements_total", "Elements that the kernel had otherwise than we left them", m.drift)
	counter("conntrack_failures_total", "Rounds over UDP flows that failed", m.cleanFailures)
	gauge("services", "Services that are served", m.last.AllServices)
	gauge("endpointslices", "EndpointSlices that are known", m.last.AllSlices)
	gauge("endpoints", "Endpoints that are served", m.last.AllEndpoints)
	gauge("troubles", "Objects that are not served as they are written; events and `worknode proxy dump` name them", len(m.troubles))
}

// process writes what every Prometheus client tells of its process.
func process(t text) {
	t.head("gauge", "kubernetes_build_info", "[ALPHA] A metric with a constant '1' value labeled by version")
	major, minor, _ := strings.Cut(strings.TrimPrefix(version.Kubernetes, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	t.sample("kubernetes_build_info", `git_commit="`+version.Build+`",git_version="`+version.Kubernetes+`",go_version="`+runtime.Version()+
		`",major="`+major+`",minor="`+minor+`",platform="`+runtime.GOOS+"/"+runtime.GOARCH+`"`, 1)
	t.one("gauge", "go_goroutines", "Number of goroutines that currently exist.", float64(runtime.NumGoroutine()))
	s, err := self()
	if err != nil {
		return
	}
	t.one("counter", "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", s.cpu.Seconds())
	t.one("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", s.resident)
	t.one("gauge", "process_open_fds", "Number of open file descriptors.", s.files)
	t.one("gauge", "process_start_time_seconds", "[ALPHA] Start time of the process since unix epoch in seconds.", unix(started))
}

var started = time.Now()

type processState struct {
	cpu      time.Duration
	resident float64
	files    float64
}

// tick is the unit of times in /proc/PID/stat: USER_HZ, a hundredth of a second on every architecture that we build for.
const tick = 10 * time.Millisecond

func self() (s processState, err error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return s, err
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the name before may have spaces
	f := strings.Fields(after)
	if len(f) < 22 {
		return s, os.ErrInvalid
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	pages, _ := strconv.Atoi(f[21])
	s.cpu, s.resident = time.Duration(user+system)*tick, float64(pages*os.Getpagesize())
	open, err := os.ReadDir("/proc/self/fd")
	s.files = float64(len(open))
	return s, err
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// answered is how often healthz (0) or livez (1) said what.
func (h *Health) answered(which int) answers {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answers[which]
}
