package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// row is one line of the table with its goals: at most a share of the other's number, or at most a number.
type row struct {
	what       string
	value      func(result) float64
	unit       string
	runc, crun float64 // share of containerd with runc, with crun; 0: no goal
	most       float64 // absolute; negative: no goal
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

const mib = 1 << 20

func rows(n sizes) []row {
	out := []row{
		{"start a pod, host network: p50", func(r result) float64 { return ms(r.host.p50) }, "ms", 1. / 8, 1. / 4, -1},
		{"  CPU", func(r result) float64 { return ms(r.host.cpu()) }, "ms", 1. / 10, 0, -1},
		{"  of it in the pod's cgroup", func(r result) float64 { return ms(r.host.pods) }, "ms", 0, 0, -1},
		{"start a pod, bridge: p50", func(r result) float64 { return ms(r.bridge.p50) }, "ms", 1. / 8, 1. / 4, -1},
		{"  CPU", func(r result) float64 { return ms(r.bridge.cpu()) }, "ms", 1. / 10, 0, -1},
		{"  of it in the pod's cgroup", func(r result) float64 { return ms(r.bridge.pods) }, "ms", 0, 0, -1},
		{"stop and remove a pod: p50", func(r result) float64 { return ms(r.remove.p50) }, "ms", 0, 0, -1},
		{"  CPU", func(r result) float64 { return ms(r.remove.cpu()) }, "ms", 0, 0, -1},
		{"ExecSync of true: p50", func(r result) float64 { return ms(r.exec.p50) }, "ms", 0, 0, 8},
		{"  CPU", func(r result) float64 { return ms(r.exec.cpu()) }, "ms", 1. / 8, 0, -1},
		{"longest write of a container that logs", func(r result) float64 { return ms(r.stall.calm) }, "ms", 0, 0, -1},
		{"  more, when the runtime is killed", func(r result) float64 { return max(0, ms(r.stall.killed-r.stall.calm)) }, "ms", 0, 0, 5},
		{"  lines lost or torn", func(r result) float64 { return float64(r.stall.lost) }, "", 0, 0, 0},
		{"memory (PSS), no pods", func(r result) float64 { return float64(r.empty) / mib }, "MiB", 0, 0, 30},
		{fmt.Sprintf("memory (PSS), %d pods", n.many), func(r result) float64 { return float64(r.full) / mib }, "MiB", 0, 0, 45},
		{fmt.Sprintf("processes, %d pods", n.many), func(r result) float64 { return float64(r.processes) }, "", 0, 0, -1},
		{"disk syncs a pod", func(r result) float64 { return float64(r.syncs) }, "", 0, 0, 0},
	}
	if n.pull > 0 {
		out = append(out, pullRows(n)...)
	}
	return out
}

func pullRows(n sizes) []row {
	return []row{
		{fmt.Sprintf("pull, %d MiB in %d layers", n.pull, pullLayers), func(r result) float64 { return r.pull.wall.Seconds() }, "s", 0.6, 0, -1},
		{"  CPU", func(r result) float64 { return r.pull.cpu.Seconds() }, "s", 0, 0, -1},
		{"  peak memory (RSS)", func(r result) float64 { return float64(r.pull.memory) / mib }, "MiB", 0.5, 0, -1},
		{"  disk, as share of the files", func(r result) float64 { return r.pull.disk }, "", 0, 0, 1.05},
	}
}

// print writes the table; what was not measured stays empty.
func print(out io.Writer, results map[string]result, n sizes) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\tworknode\tcontainerd+runc\tcontainerd+crun\tgoal\treached\n")
	ours, mine := results["worknode"]
	for _, r := range rows(n) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, cell(results, "worknode", r, 0, false), cell(results, "containerd+runc", r, r.value(ours), mine),
			cell(results, "containerd+crun", r, r.value(ours), mine), verdict(results, r))
	}
	return w.Flush()
}

// cell shows a number, and how many times ours it is.
func cell(results map[string]result, name string, r row, ours float64, compare bool) string {
	it, ok := results[name]
	if !ok {
		return ""
	}
	v := r.value(it)
	text := fmt.Sprintf("%.4g %s", v, r.unit)
	if compare && ours > 0 {
		text += fmt.Sprintf(" (%.1fx)", v/ours)
	}
	return text
}

func verdict(results map[string]result, r row) string {
	ours, ok := results["worknode"]
	if !ok {
		return "\t"
	}
	goal, reached := "", true
	if r.most >= 0 {
		goal = fmt.Sprintf("<= %g %s", r.most, r.unit)
		reached = r.value(ours) <= r.most
	}
	for _, g := range []struct {
		name  string
		share float64
	}{{"containerd+runc", r.runc}, {"containerd+crun", r.crun}} {
		if g.share == 0 {
			continue
		}
		if goal != "" {
			goal += ", "
		}
		if g.share < 0.5 {
			goal += fmt.Sprintf("1/%.0f of %s", 1/g.share, g.name[len("containerd+"):])
		} else {
			goal += fmt.Sprintf("%g of %s", g.share, g.name[len("containerd+"):])
		}
		other, ok := results[g.name]
		if !ok {
			return goal + "\tnot compared"
		}
		reached = reached && r.value(ours) <= g.share*r.value(other)
	}
	switch {
	case goal == "":
		return "\t"
	case reached:
		return goal + "\tyes"
	}
	return goal + "\tNO"
}
