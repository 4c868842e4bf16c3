// Command runtime measures worknode's container runtime beside containerd with runc and with crun, one after the other
// on one machine in one run, and prints a table with the goals.
//
// scripts/bench-runtime starts it, in mount and network namespaces of its own, where /run and /var/lib are empty and the
// half-used unified cgroup hierarchy of hybrid systems is out of sight (crun refuses such systems).
// What it measures and how: see measure.go. What it compares with is built by scripts/upstream.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sizes are how much of each thing a run does.
type sizes struct{ pods, execs, many, traced, pull int }

func main() {
	var n sizes
	top := flag.String("top", ".", "the checkout, with bin/ and .cache/upstream/bin/")
	only := flag.String("only", "", "comma-separated contestants; empty: all")
	flag.IntVar(&n.pods, "pods", 30, "pods to start for each latency")
	flag.IntVar(&n.execs, "execs", 100, "calls of ExecSync")
	flag.IntVar(&n.many, "many", 100, "pods at which memory is read")
	flag.IntVar(&n.traced, "traced", 5, "pods started under strace")
	flag.IntVar(&n.pull, "pull", 1024, "MiB of the image to pull; 0: pull nothing")
	report := flag.String("talk", "", "be the workload that logs, and report to this file")
	span := flag.Duration("for", time.Second, "how long to talk")
	flag.Parse()
	if *report != "" {
		if err := talk(*report, *span); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *top, *only, n); err != nil {
		fmt.Fprintln(os.Stderr, "bench-runtime:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, top, only string, n sizes) error {
	top, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "wnbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	images := filepath.Join(scratch, "images")
	if err := writeImages(images); err != nil {
		return err
	}
	var big *library
	if n.pull > 0 {
		if big, err = openLibrary(filepath.Join(scratch, "registry"), n.pull); err != nil {
			return err
		}
		defer big.close()
	}
	results := map[string]result{}
	for _, c := range contestants(top) {
		if only != "" && !strings.Contains(","+only+",", ","+c.name+",") {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring", c.name)
		r, err := measure(ctx, c, filepath.Join(scratch, c.name), images, big, n)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		results[c.name] = r
	}
	return print(os.Stdout, results, n)
}
