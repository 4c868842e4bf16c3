// Command worknode-monitor keeps a node's containers: see package monitor. Run as "worknode-monitor init" it is the
// first life of a container's process: see package monitor/inside. Run as "worknode-monitor oci", or by a link of the name
// worknode-oci, it is an OCI runtime: see package oci.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"worknode/fault"
	"worknode/monitor"
	"worknode/monitor/client"
	"worknode/monitor/inside"
	"worknode/oci"
	"worknode/version"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case inside.Arg:
			os.Exit(inside.Main())
		case monitor.AboutArg:
			if json.NewEncoder(os.Stdout).Encode(monitor.Self()) != nil {
				os.Exit(1)
			}
			return
		case "upgrade":
			os.Exit(upgrade(os.Args[2:]))
		}
	}
	if args, ok := oci.Wanted(os.Args); ok {
		os.Exit(oci.Main(args, version.Build))
	}
	os.Exit(run())
}

const usage = `usage: worknode-monitor --socket PATH --state DIR            keep containers
       worknode-monitor upgrade --socket PATH [--binary PATH]   have the running monitor become this build, or another
`

// upgrade asks the running monitor to execute another binary in its place, by default this one.
func upgrade(args []string) int {
	flags := flag.NewFlagSet("upgrade", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	self, _ := os.Executable()
	socket := flags.String("socket", "/run/worknode/runtime/monitor.sock", "unix socket of the running monitor")
	binary := flags.String("binary", self, "absolute path of the worknode-monitor to become")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 2
	}
	build, err := become(*socket, *binary)
	if err != nil {
		fmt.Fprintln(os.Stderr, "worknode-monitor:", err)
		return 1
	}
	fmt.Println("the monitor is build", build, "now")
	return 0
}

func become(socket, binary string) (build string, err error) {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	c, err := client.Dial(ctx, socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Upgrade(ctx, binary)
}

func run() int {
	var opts monitor.Options
	flag.StringVar(&opts.Socket, "socket", "", "unix socket to serve (required)")
	flag.StringVar(&opts.State, "state", "", "directory for exit records, on a tmpfs (required)")
	flag.IntVar(&opts.Handover.State, "handover-state", 0, "for the build before this one")
	flag.IntVar(&opts.Handover.Back, "handover-back", 0, "for the build before this one")
	flag.StringVar(&opts.Handover.Why, "handover-refused", "", "for the build before this one")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	if opts.Socket == "" || opts.State == "" || flag.NArg() > 0 {
		flag.Usage()
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
