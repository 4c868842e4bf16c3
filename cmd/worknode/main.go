// Command worknode turns a Linux machine into a Kubernetes worker node. Each subcommand is one of the node's processes
// or one of the user's tools; see `worknode --help`.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"worknode/cli"
	"worknode/oci"
	"worknode/version"
)

func main() {
	if args, ok := oci.Wanted(os.Args); ok {
		fmt.Fprintln(os.Stderr, "worknode:", becomeOCI(args))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process the hard way
	err := command(filepath.Base(os.Args[0])).ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "worknode: "+err.Error())
	}
	os.Exit(cli.ExitCode(err))
}

// command is what the binary does when called by a name: unit files, kubeadm and kube-bench know nodes by upstream's.
func command(name string) *cobra.Command {
	switch name {
	case "kubelet":
		return kubeletCommand()
	case "kube-proxy":
		return proxyCommand(name)
	default:
		return root()
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "worknode", Short: "Turn this machine into a Kubernetes worker node",
		Version:       version.Build + " for Kubernetes " + version.Kubernetes,
		SilenceErrors: true, SilenceUsage: true,
	}
	c.SetVersionTemplate("worknode {{.Version}}\n")
	c.AddGroup(&cobra.Group{ID: "node", Title: "The node:"}, &cobra.Group{ID: "user", Title: "What runs on it:"}, &cobra.Group{ID: "process", Title: "Its processes, one by one:"})
	add := func(group string, all ...*cobra.Command) {
		for _, one := range all {
			one.GroupID = group
			c.AddCommand(one)
		}
	}
	add("node", runCommand())
	add("user", cli.Commands()...)
	add("process", runtimeCommand(), kubeletCommand(), proxyCommand("proxy"), ociCommand())
	return c
}

// daemon prepares a process that stays: logs for machines to read, and a collector that keeps memory near what is used.
func daemon(name string) {
	log(name, "text", slog.LevelInfo)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// log sends logs to stderr, as text or json; WORKNODE_DEBUG asks for all of them, whatever level says.
func log(name, format string, level slog.Leveler) {
	if os.Getenv("WORKNODE_DEBUG") != "" {
		level = slog.LevelDebug
	}
	opt := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, opt)
	if format == "json" {
		handler = slog.NewJSONHandler(os.Stderr, opt)
	}
	slog.SetDefault(slog.New(handler).With("from", name))
}
