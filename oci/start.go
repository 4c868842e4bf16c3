package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/birth"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
	"worknode/oci/spec"
)

func (c *call) start(f *flags, args []string) error {
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	k, unlock, err := c.locked(rest[0])
	if err != nil {
		return err
	}
	defer unlock()
	return k.start(c)
}

// start lets a created container run its program, and returns once it does.
// Errors: Invalid if it is not created; what init reports.
func (k *container) start(c *call) error {
	if now := k.status(); now != specs.StateCreated {
		return fault.New(fault.Invalid, "container %s is %s, only a created one can be started", k.ID, now)
	}
	conn, err := k.dial()
	gone := os.Remove(filepath.Join(k.dir, startFile))
	if err != nil {
		return fault.New(fault.Invalid, "container %s has been started, or has ended: %w", k.ID, err)
	}
	defer func() { _ = conn.Close() }()
	if gone != nil {
		return fmt.Errorf("container %s: %w", k.ID, gone)
	}
	var child birth.Child
	if err := child.Follow(conn, nil); err != nil {
		return fmt.Errorf("container %s: %w", k.ID, err)
	}
	for _, w := range child.Warnings {
		c.warn("%s", w)
	}
	return k.poststart()
}

// dial connects to the waiting process.
func (k *container) dial() (*wire.Conn, error) {
	fd, err := birth.Dial(k.dir, startFile)
	if err != nil {
		return nil, err
	}
	return wire.NewConn(fd)
}

// poststart runs the hooks that follow the program's start; one that fails ends the container.
// Source: runtime.md, "Lifecycle", step 9.
func (k *container) poststart() error {
	h := spec.Hooks(k.ID, k.Bundle, k.spec)
	if h == nil {
		return nil
	}
	state := h.State
	state.Status, state.Pid = string(specs.StateRunning), k.Pid
	err := hook.Runner{Dir: k.Bundle}.Run("poststart", h.Poststart, state)
	if err == nil {
		return nil
	}
	if first, open := k.process(); open == nil {
		err = errors.Join(err, pidfd.Signal(first, unix.SIGKILL))
		first.Close()
	}
	return fmt.Errorf("container %s: %w", k.ID, err)
}
