// Command proxy measures worknode's service proxy beside kube-proxy in nftables mode, at several numbers of Services, on
// one machine in one run, and prints a table with the goals.
//
// Each contestant works in a bed of network namespaces of its own (package test/bed) and follows an API that this program
// serves (package test/apiserver), so what is measured from "written to the API" includes the watch and the decoding, but
// no etcd. Everything is IPv4. What it measures and how: see measure.go. scripts/bench-proxy builds what it needs.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sizes are how much of each thing a run does.
type sizes struct {
	changes  int           // changes in a row, of ours; kube-proxy makes as many as fit into patience
	gaps     int           // changes with a pause before each
	connects int           // connections for the time of connect(2)
	patience time.Duration // for one start, and for all changes of one kind
}

func main() {
	var n sizes
	top := flag.String("top", ".", "the checkout, with bin/ and .cache/upstream/bin/")
	only := flag.String("only", "", "comma-separated contestants: worknode, kube-proxy; empty: both")
	services := flag.String("services", "1000,10000,30000", "comma-separated numbers of Services, of 3 endpoints each")
	flag.IntVar(&n.changes, "changes", 500, "changes in a row")
	flag.IntVar(&n.gaps, "gaps", 5, "changes three seconds apart")
	flag.IntVar(&n.connects, "connects", 20_000, "connections to time, through a VIP and without")
	flag.DurationVar(&n.patience, "patience", 5*time.Minute, "give a contestant up at a size that it does not reach in this time")
	flag.Parse()
	go func() { // leave nothing behind
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
		<-stop
		if c := current.Load(); c != nil {
			c.close()
		}
		os.Exit(1)
	}()
	if err := run(*top, *only, *services, n); err != nil {
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
		os.Exit(1)
	}
}

func run(top, only, services string, n sizes) error {
	top, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	var counts []int
	for _, text := range strings.Split(services, ",") {
		c, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || c < 10 || c > 60_000 {
			return fmt.Errorf("-services %q: numbers from 10 to 60000", services)
		}
		counts = append(counts, c)
	}
	results := map[string]map[int]result{}
	for _, c := range contestants(top) {
		if only != "" && !strings.Contains(","+only+",", ","+c.name+",") {
			continue
		}
		results[c.name] = map[int]result{}
		for _, count := range counts {
			fmt.Fprintf(os.Stderr, "measuring %s with %d Services\n", c.name, count)
			r, err := measure(c, count, n)
			if err != nil {
				return fmt.Errorf("%s with %d Services: %w", c.name, count, err)
			}
			results[c.name][count] = r
			if r.gaveUp != "" {
				fmt.Fprintf(os.Stderr, "%s with %d Services: %s; larger sizes are left out\n", c.name, count, r.gaveUp)
				break
			}
		}
	}
	return print(os.Stdout, results, counts)
}
