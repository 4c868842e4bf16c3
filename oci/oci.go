// Package oci is the executor as an OCI runtime: the command line that containerd, podman, docker and the OCI validation
// suite know from runc, on top of the same init that the containers of CRI go through (monitor/inside) and the same
// translation of their configuration (oci/spec).
//
// Nothing stays running: `create` leaves a process that waits at a socket in the container's folder, `start` connects to
// it, and whoever is the caller's subreaper is the parent, as with runc. What is known of a container lies in its folder
// below --root (record.go); what is true of it is asked of the kernel.
// Read first: command.go, create.go, start.go, record.go.
// Source: OCI runtime spec 1.3, runtime.md; opencontainers/runtime-tools, docs/command-line-interface.md; runc(8).
package oci

import (
	"fmt"
	"os"
	"path/filepath"
)

// Name is what this runtime calls itself, and the name of a link to the binary that makes it one.
const Name = "worknode-oci"

// Arg is the subcommand under which the binary answers without such a link.
const Arg = "oci"

// Wanted reports whether a process was called to be the OCI runtime, and returns the arguments for Main.
func Wanted(args []string) ([]string, bool) {
	if len(args) > 0 && filepath.Base(args[0]) == Name {
		return args[1:], true
	}
	if len(args) > 1 && args[1] == Arg {
		return args[2:], true
	}
	return nil, false
}

// Main runs one command and returns its exit code. build is this build's version.
func Main(args []string, build string) int {
	c := &call{build: build}
	rest, err := c.parse(args)
	if err == nil {
		err = c.run(rest)
	}
	if err == nil {
		return c.code
	}
	c.fail(err)
	if c.code == 0 {
		return 1
	}
	return c.code
}

// fail tells the caller: a person on stderr, an engine in the log that it named.
func (c *call) fail(err error) {
	c.write("error", err.Error())
	fmt.Fprintf(os.Stderr, "%s: %v\n", Name, err)
}

func (c *call) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.write("warning", text)
	if c.logPath == "" {
		fmt.Fprintf(os.Stderr, "%s: warning: %s\n", Name, text)
	}
}
