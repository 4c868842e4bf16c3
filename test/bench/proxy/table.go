package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// row is one line of the table with its goal.
type row struct {
	what  string
	unit  string
	value func(result) (float64, bool) // false: not measured
	goal  func(size int, ours, theirs float64) (text string, reached bool)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

const mib = 1 << 20

func measured(d time.Duration) (float64, bool) { return ms(d), d != 0 }

// most is a goal that is the same at every size.
func most(limit float64, unit string) func(int, float64, float64) (string, bool) {
	return func(_ int, ours, _ float64) (string, bool) {
		return fmt.Sprintf("<= %g %s", limit, unit), ours <= limit
	}
}

func rows() []row {
	share := func(part float64) func(int, float64, float64) (string, bool) {
		return func(_ int, ours, theirs float64) (string, bool) {
			return fmt.Sprintf("<= 1/%g", 1/part), theirs > 0 && ours <= part*theirs
		}
	}
	return []row{
		{"endpoint event received -> committed: p50, at most", "ms", func(r result) (float64, bool) { return ms(r.commit.p50), r.commitN }, most(1, "ms")},
		{"  p99, at most", "ms", func(r result) (float64, bool) { return ms(r.commit.p99), r.commitN }, most(10, "ms")},
		{"slice written -> VIP answers, in a row: p50", "ms", func(r result) (float64, bool) { return measured(r.row.p50) }, most(5, "ms")},
		{"  p99", "ms", func(r result) (float64, bool) { return measured(r.row.p99) }, nil},
		{"  3 s apart: p50", "ms", func(r result) (float64, bool) { return measured(r.gap.p50) }, most(5, "ms")},
		{"Service added -> VIP answers: p50", "ms", func(r result) (float64, bool) { return measured(r.added.p50) }, most(5, "ms")},
		{"CPU a change of endpoints", "ms", func(r result) (float64, bool) { return measured(r.cpu) }, share(1. / 100)},
		{"cold start", "s", func(r result) (float64, bool) { return r.cold.Seconds(), r.cold != 0 }, func(size int, ours, _ float64) (string, bool) {
			if size != 30_000 {
				return "", true
			}
			return "<= 3 s", ours <= 3
		}},
		{"killed, started -> a change of the meantime is in force", "s", func(r result) (float64, bool) { return r.restart.Seconds(), r.restart != 0 }, nil},
		{"memory (PSS) after the start", "MiB", func(r result) (float64, bool) { return float64(r.pss) / mib, r.pss != 0 }, memory},
		{"  after all changes", "MiB", func(r result) (float64, bool) { return float64(r.pssEnd) / mib, r.pssEnd != 0 }, memory},
		{"connect() through a VIP: p50", "us", func(r result) (float64, bool) { return 1000 * ms(r.vip.p50), r.vip.n > 0 }, nil},
		{"  more than without: p50", "us", func(r result) (float64, bool) { return 1000 * ms(r.vip.p50-r.direct.p50), r.vip.n > 0 }, most(5, "us")},
	}
}

func memory(size int, ours, _ float64) (string, bool) {
	switch size {
	case 1000:
		return "<= 25 MiB", ours <= 25
	case 10_000:
		return "<= 60 MiB", ours <= 60
	}
	return "", true
}

// print writes the table; what was not measured stays empty.
func print(out io.Writer, results map[string]map[int]result, counts []int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Services\t\tworknode\tkube-proxy\tgoal\treached\n")
	slices.Sort(counts)
	for _, r := range rows() {
		for i, size := range counts {
			what := r.what
			if i > 0 {
				what = ""
			}
			ours, haveOurs := value(results, "worknode", size, r)
			theirs, haveTheirs := value(results, "kube-proxy", size, r)
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", size, what, cell(ours, haveOurs, r.unit, 0), cell(theirs, haveTheirs, r.unit, ours),
				verdict(r, size, ours, theirs, haveOurs, haveTheirs))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, name := range []string{"worknode", "kube-proxy"} {
		for _, size := range counts {
			if r, ok := results[name][size]; ok && r.gaveUp != "" {
				fmt.Fprintf(out, "%s with %d Services: %s\n", name, size, r.gaveUp)
			}
		}
	}
	return nil
}

func value(results map[string]map[int]result, name string, size int, r row) (float64, bool) {
	one, ok := results[name][size]
	if !ok {
		return 0, false
	}
	return r.value(one)
}

// cell shows a number, and how many times ours it is.
func cell(v float64, have bool, unit string, ours float64) string {
	if !have {
		return ""
	}
	text := fmt.Sprintf("%.3g %s", v, unit)
	if ours > 0 {
		text += fmt.Sprintf(" (%.1fx)", v/ours)
	}
	return text
}

func verdict(r row, size int, ours, theirs float64, haveOurs, haveTheirs bool) string {
	if r.goal == nil || !haveOurs {
		return "\t"
	}
	goal, reached := r.goal(size, ours, theirs)
	switch {
	case goal == "":
		return "\t"
	case goal[:4] == "<= 1" && goal[4] == '/' && !haveTheirs:
		return goal + "\tnot compared"
	case reached:
		return goal + "\tyes"
	}
	return goal + "\tNO"
}
