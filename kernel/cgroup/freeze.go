package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"worknode/fault"
)

// Freeze stops every task of a group and below it (or lets them go on, with frozen false) and returns when the kernel
// confirms it. It needs a group of a Whole tree on v1.
// Errors: NotFound if the group is gone; Unsupported without a freezer; Temporary when ctx ends first.
// Repeat: safe. Crash: stays as it is. Source: kernel cgroup-v2, cgroup.freeze; cgroup-v1/freezer-subsystem.
func (t *Tree) Freeze(ctx context.Context, group string, frozen bool) error {
	group, err := clean(group)
	if err != nil {
		return err
	}
	dir, err := t.dir("freezer", group)
	if err != nil {
		return err
	}
	file, value := "freezer.state", "THAWED"
	if frozen {
		value = "FROZEN"
	}
	if t.v2 {
		file, value = "cgroup.freeze", "0"
		if frozen {
			value = "1"
		}
	}
	// The kernel tells of it by an event on v2 alone. On v1 a frozen group may take another push, when a task forked.
	for {
		if err := write(filepath.Join(dir, file), value); err != nil {
			return err
		}
		if now, err := t.Frozen(group); err != nil || now == frozen {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Temporary, "freeze cgroup %s: some tasks do not stop: %w", group, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Frozen reports whether all tasks of a group are stopped. Without a freezer none is.
func (t *Tree) Frozen(group string) (bool, error) {
	dir, err := t.dir("freezer", group)
	if err != nil {
		return false, nil
	}
	file, want := "freezer.state", "FROZEN"
	if t.v2 {
		file, want = "cgroup.events", "frozen 1"
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return false, fault.As(kindOf(err), fmt.Errorf("cgroup: %w", err))
	}
	return strings.Contains(string(text), want), nil
}
