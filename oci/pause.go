package oci

import (
	"context"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/kernel/cgroup"
)

// freezeLimit bounds how long the kernel may take to stop all processes.
const freezeLimit = 10 * time.Second

func (c *call) pause(f *flags, args []string) error { return c.freeze(f, args, true) }

func (c *call) resume(f *flags, args []string) error { return c.freeze(f, args, false) }

func (c *call) freeze(f *flags, args []string, frozen bool) error {
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	k, unlock, err := c.locked(rest[0])
	if err != nil {
		return err
	}
	defer unlock()
	now := k.status()
	if frozen && now != specs.StateRunning && now != specs.StateCreated || !frozen && now != "paused" {
		return fault.New(fault.Invalid, "container %s is %s", k.ID, now)
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), freezeLimit)
	defer stop()
	return tree.Freeze(ctx, k.Cgroup, frozen)
}
