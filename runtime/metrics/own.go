package metrics

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Own counts what the runtime itself does, for Prometheus. Calls have the names that gRPC servers have in the field
// (grpc_server_handled_total), so that dashboards of other runtimes work. It is written by hand because the Prometheus
// library costs more memory than all it would count. The zero value is ready.
type Own struct {
	PulledBytes atomic.Uint64 // bytes of layers as they came over the network
	Pulls       Calls         // by outcome: ok, or the kind of the error
	Served      Calls         // CRI calls, by method and gRPC code
	Reloads     Calls         // of the configuration, by outcome
}

// Calls counts things that happen, by what they are and how they end, and how long they take. The zero value is ready.
type Calls struct {
	mu   sync.Mutex
	ends map[[2]string]uint64 // by name and outcome
	took map[string]*spread
}

// bounds are upper edges of the histograms, in seconds: a start takes milliseconds, a pull minutes.
var bounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

type spread struct {
	counts [len(bounds) + 1]uint64
	sum    time.Duration
}

// Add counts one that took so long. name and outcome come from fixed sets: each pair costs memory for good.
func (c *Calls) Add(name, outcome string, took time.Duration) {
	i := 0
	for i < len(bounds) && took.Seconds() > bounds[i] {
		i++
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends == nil {
		c.ends, c.took = map[[2]string]uint64{}, map[string]*spread{}
	}
	c.ends[[2]string{name, outcome}]++
	s := c.took[name]
	if s == nil {
		s = &spread{}
		c.took[name] = s
	}
	s.counts[i]++
	s.sum += took
}

// Writer writes metrics in Prometheus' text format. Source: Prometheus docs, "Exposition formats", version 0.0.4.
type Writer struct{ w *bufio.Writer }

// ContentType is what the text format is called.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// NewWriter writes to w until Flush.
func NewWriter(w io.Writer) *Writer { return &Writer{bufio.NewWriter(w)} }

// Flush writes out what is left.
func (w *Writer) Flush() error { return w.w.Flush() }

// Head begins one metric. kind is counter, gauge or histogram.
func (w *Writer) Head(name, kind, help string) {
	fmt.Fprintf(w.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// Value writes one value; labels are pairs.
func (w *Writer) Value(name string, value float64, labels ...string) {
	_, _ = w.w.WriteString(name) // a buffer keeps its error until it is flushed
	for i := 0; i+1 < len(labels); i += 2 {
		_ = w.w.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(w.w, `%s="%s"`, labels[i], escape.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		_ = w.w.WriteByte('}')
	}
	fmt.Fprintf(w.w, " %v\n", value)
}

var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// Single writes a metric that has one value.
func (w *Writer) Single(name, kind, help string, value float64) {
	w.Head(name, kind, help)
	w.Value(name, value)
}

// Calls writes a counter by outcome and a histogram of durations. label names what is counted, outcome how it ended;
// fixed labels are pairs that all have.
func (w *Writer) Calls(total, seconds, label, outcome, help string, c *Calls, fixed ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Head(total, "counter", help+", by outcome.")
	for _, k := range slices.SortedFunc(maps.Keys(c.ends), func(a, b [2]string) int { return strings.Compare(a[0]+" "+a[1], b[0]+" "+b[1]) }) {
		w.Value(total, float64(c.ends[k]), labelled(fixed, label, k[0], outcome, k[1])...)
	}
	w.Head(seconds, "histogram", help+": how long they took.")
	for _, name := range slices.Sorted(maps.Keys(c.took)) {
		s, sum := c.took[name], uint64(0)
		labels := labelled(fixed, label, name)
		for i, n := range s.counts {
			sum += n
			edge := "+Inf"
			if i < len(bounds) {
				edge = fmt.Sprint(bounds[i])
			}
			w.Value(seconds+"_bucket", float64(sum), append(slices.Clone(labels), "le", edge)...)
		}
		w.Value(seconds+"_sum", s.sum.Seconds(), labels...)
		w.Value(seconds+"_count", float64(sum), labels...)
	}
}

// labelled leaves out labels without a key.
func labelled(fixed []string, pairs ...string) []string {
	out := slices.Clone(fixed)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] != "" {
			out = append(out, pairs[i], pairs[i+1])
		}
	}
	return out
}

// Write writes what was counted.
func (o *Own) Write(w *Writer) {
	w.Calls("grpc_server_handled_total", "grpc_server_handling_seconds", "grpc_method", "grpc_code", "CRI calls", &o.Served, "grpc_service", "runtime.v1")
	w.Calls("worknode_runtime_image_pulls_total", "worknode_runtime_image_pull_seconds", "", "result", "Pulls of images from registries", &o.Pulls)
	w.Calls("worknode_runtime_config_reloads_total", "worknode_runtime_config_reload_seconds", "", "result", "Reloads of the configuration", &o.Reloads)
	w.Single("worknode_runtime_image_pulled_bytes_total", "counter", "Bytes of layers that came from registries.", float64(o.PulledBytes.Load()))
}
