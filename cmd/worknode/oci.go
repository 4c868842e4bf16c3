package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"worknode/oci"
)

// ociCommand is there for help alone: main hands the command line over before cobra sees it.
func ociCommand() *cobra.Command {
	return &cobra.Command{
		Use: "oci COMMAND", Short: "Run one container from a bundle, with the command line of an OCI runtime (as runc's)",
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return becomeOCI(args) },
	}
}

// becomeOCI turns this process into worknode-monitor, the small binary that is the OCI runtime: an engine calls it some
// ten times for one container. It returns only if it fails.
func becomeOCI(args []string) error {
	self, err := os.Executable()
	if err == nil {
		monitor := filepath.Join(filepath.Dir(self), "worknode-monitor")
		err = syscall.Exec(monitor, append([]string{oci.Name}, args...), os.Environ())
		err = fmt.Errorf("become %s: %w (install worknode-monitor beside worknode)", monitor, err)
	}
	return err
}
