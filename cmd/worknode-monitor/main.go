// Command worknode-monitor keeps a node's containers: see package monitor. Run as "worknode-monitor init" it is the
// first life of a container's process: see package monitor/inside.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"

	"worknode/fault"
	"worknode/monitor"
	"worknode/monitor/inside"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == inside.Arg {
		os.Exit(inside.Main())
	}
	os.Exit(run())
}

func run() int {
	var opts monitor.Options
	flag.StringVar(&opts.Socket, "socket", "", "unix socket to serve (required)")
	flag.StringVar(&opts.State, "state", "", "directory for exit records, on a tmpfs (required)")
	flag.Parse()
	if opts.Socket == "" || opts.State == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: worknode-monitor --socket PATH --state DIR")
		return 2
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := monitor.Run(opts); err != nil {
		slog.Error("monitor cannot serve", "error", err)
		if fault.Is(err, fault.Busy) {
			return 3
		}
		return 1
	}
	return 0
}
