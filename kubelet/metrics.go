package kubelet

import (
	"fmt"
	"io"
)

// metrics writes the kubelet's own figures in Prometheus text format, under the names that dashboards know.
func (r *room) metrics(w io.Writer) {
	r.mu.Lock()
	actors := len(r.pods)
	r.mu.Unlock()
	fmt.Fprintf(w, "# HELP kubelet_desired_pods Pods that this kubelet has to do with.\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods %d\n", actors)
	fmt.Fprintf(w, "# HELP worknode_kubelet_missed_events_total Audits that found what no event had told.\n# TYPE worknode_kubelet_missed_events_total counter\nworknode_kubelet_missed_events_total %d\n", r.missed.Load())
}

// probeMetrics writes how probes went; the server may ask before there is a prober.
func (r *room) probeMetrics(w io.Writer) {
	if r.prober != nil {
		r.prober.Metrics(w)
	}
}
