package monitor_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"worknode/kernel/cgroup"
	"worknode/monitor/wire"
)

// BenchmarkStart is one whole start of a container, from request to reply: clone, groups, root, mounts, execve.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	i := 0
	cpu := cpuTicks(b, n.cmd.Process.Pid)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		i++
		s := n.container(fmt.Sprint("c", i), "true")
		n.limited(&s, cgroup.Resources{})
		b.StartTimer()
		at := time.Now()
		_, files, err := n.c.Start(n.ctx(), s, nil)
		took = append(took, time.Since(at))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		n.exit(s.ID)
		if err := n.c.Forget(n.ctx(), s.ID); err != nil {
			b.Fatal(err)
		}
		for _, f := range files {
			f.Close()
		}
		b.StartTimer()
	}
	percentiles(b, took)
	b.ReportMetric(float64(cpuTicks(b, n.cmd.Process.Pid)-cpu)*10/float64(len(took)), "cpu-ms/op")
}

// cpuTicks is the CPU time of the monitor and of all it has reaped, in clock ticks of 10 ms. Source: proc(5) stat.
func cpuTicks(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	sum := 0
	for _, s := range f[12:16] { // utime, stime, cutime, cstime: fields 14 to 17
		v, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		sum += v
	}
	return sum
}

// percentiles tells more than the mean on a shared machine.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[0])/1e6, "ms-min")
	b.ReportMetric(float64(took[len(took)/2])/1e6, "ms-p50")
	b.ReportMetric(float64(took[len(took)*9/10])/1e6, "ms-p90")
}

// BenchmarkExec is one exec of /bin/true in a running container, from request to exit.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	s := n.container("c", "sleep", "1000")
	n.limited(&s, cgroup.Resources{})
	n.start(s)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	i := 0
	cpu := cpuTicks(b, n.cmd.Process.Pid)
	var took []time.Duration
	for b.Loop() {
		i++
		at := time.Now()
		e := wire.Start{ID: fmt.Sprint("e", i), Join: "c", Init: wire.Init{Args: []string{"true"}, Env: env, Cwd: "/",
			Caps: wire.Caps{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps}, NoNewPrivs: true}}
		if _, _, err := n.c.Start(n.ctx(), e, []*os.File{null, null, null}); err != nil {
			b.Fatal(err)
		}
		n.exit(e.ID)
		took = append(took, time.Since(at))
		if err := n.c.Forget(n.ctx(), e.ID); err != nil {
			b.Fatal(err)
		}
	}
	percentiles(b, took)
	b.ReportMetric(float64(cpuTicks(b, n.cmd.Process.Pid)-cpu)*10/float64(len(took)), "cpu-ms/op")
}
