package probe

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// buckets are the edges of the histogram of durations, in seconds: Prometheus' usual ones, as upstream has them.
var buckets = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// history counts the attempts of one probe. Source: kubelet metrics, prober_probe_total and prober_probe_duration_seconds.
type history struct {
	results [3]uint64 // by Verdict; unknown: no attempt could be made
	within  [len(buckets) + 1]uint32
	sum     time.Duration
}

func (h *history) note(got outcome, took time.Duration) {
	verdict := got.verdict
	if got.err != nil {
		verdict = Unknown
	}
	h.results[verdict]++
	i := 0
	for i < len(buckets) && took.Seconds() > buckets[i] {
		i++
	}
	h.within[i]++
	h.sum += took
}

// Metrics writes how the probes that exist now went, in Prometheus text format.
func (p *Prober) Metrics(w io.Writer) {
	type row struct {
		labels, uid string
		history
	}
	var rows []row
	p.mu.Lock()
	for _, e := range p.probes {
		if e.Pod == nil {
			continue
		}
		rows = append(rows, row{fmt.Sprintf("probe_type=%q,container=%q,pod=%q,namespace=%q", e.Kind, e.Key.Container, e.Pod.Name, e.Pod.Namespace), string(e.UID), e.history})
	}
	p.mu.Unlock()
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.labels+a.uid, b.labels+b.uid) })
	fmt.Fprint(w, "# HELP prober_probe_total Cumulative number of a liveness, readiness or startup probe for a container by result.\n# TYPE prober_probe_total counter\n")
	for _, r := range rows {
		for v, n := range r.results {
			if name := [...]string{"unknown", "successful", "failed"}[v]; n > 0 {
				fmt.Fprintf(w, "prober_probe_total{%s,pod_uid=%q,result=%q} %d\n", r.labels, r.uid, name, n)
			}
		}
	}
	fmt.Fprint(w, "# HELP prober_probe_duration_seconds Duration in seconds for a probe response.\n# TYPE prober_probe_duration_seconds histogram\n")
	for _, r := range rows {
		sum := uint64(0)
		for i, n := range r.within {
			sum += uint64(n)
			edge := "+Inf"
			if i < len(buckets) {
				edge = fmt.Sprint(buckets[i])
			}
			fmt.Fprintf(w, "prober_probe_duration_seconds_bucket{%s,le=%q} %d\n", r.labels, edge, sum)
		}
		fmt.Fprintf(w, "prober_probe_duration_seconds_sum{%s} %g\nprober_probe_duration_seconds_count{%s} %d\n", r.labels, r.sum.Seconds(), r.labels, sum)
	}
}
