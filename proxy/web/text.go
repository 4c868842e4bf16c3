package web

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// text writes metrics in the Prometheus text format. It is our own because the client library costs more memory than all
// of the proxy's state.
type text struct{ *bufio.Writer }

func newText(w io.Writer) text { return text{bufio.NewWriter(w)} }

// head opens a metric; its samples follow.
func (t text) head(kind, name, help string) {
	fmt.Fprintf(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value. labels is empty or as in `ip_family="IPv4"`.
func (t text) sample(name, labels string, v float64) {
	if labels != "" {
		name += "{" + labels + "}"
	}
	fmt.Fprintln(t, name, strconv.FormatFloat(v, 'g', -1, 64))
}

// one writes a metric of one sample.
func (t text) one(kind, name, help string, v float64) {
	t.head(kind, name, help)
	t.sample(name, "", v)
}

// histogram counts durations. Whoever holds it guards it.
type histogram struct {
	bounds []float64 // seconds
	counts []uint64
	sum    float64
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(d time.Duration) {
	s := d.Seconds()
	i, _ := slices.BinarySearch(h.bounds, s)
	h.counts[i]++
	h.sum += s
}

func (t text) histogram(name, labels string, h *histogram) {
	with := func(more string) string { return strings.Trim(labels+","+more, ",") }
	total := uint64(0)
	for i, b := range h.bounds {
		total += h.counts[i]
		t.sample(name+"_bucket", with(`le="`+strconv.FormatFloat(b, 'g', -1, 64)+`"`), float64(total))
	}
	total += h.counts[len(h.bounds)]
	t.sample(name+"_bucket", with(`le="+Inf"`), float64(total))
	t.sample(name+"_sum", labels, h.sum)
	t.sample(name+"_count", labels, float64(total))
}

// Upstream's bounds: dashboards add the buckets of many nodes up.
func syncBounds() []float64 {
	out := make([]float64, 15)
	for i := range out {
		out[i] = 0.001 * float64(int(1)<<i)
	}
	return out
}

func programBounds() []float64 {
	out := []float64{0.25, 0.5}
	for s := 1.0; s < 60; s++ {
		out = append(out, s)
	}
	for s := 60.0; s < 120; s += 5 {
		out = append(out, s)
	}
	for s := 120.0; s <= 300; s += 30 {
		out = append(out, s)
	}
	return out
}

// fineBounds are for what we do, which is over before upstream's first bound.
func fineBounds() []float64 {
	var out []float64
	for decade := 1e-5; decade < 1; decade *= 10 {
		out = append(out, decade, 2.5*decade, 5*decade)
	}
	for i, b := range out { // 2.5e-05, not 2.5000000000000005e-05
		out[i], _ = strconv.ParseFloat(strconv.FormatFloat(b, 'g', 3, 64), 64)
	}
	return out
}
