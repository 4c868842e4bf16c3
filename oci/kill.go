package oci

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/pidfd"
	"worknode/oci/spec"
)

func (c *call) kill(f *flags, args []string) error {
	all := false
	f.yes(&all, "signal all processes of the container", "all", "a")
	rest, err := f.take(args, 1, 2)
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if len(rest) == 2 {
		if sig, err = signalOf(rest[1]); err != nil {
			return err
		}
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	if all {
		return k.signalAll(sig)
	}
	first, err := k.process()
	if err != nil {
		return err
	}
	defer first.Close()
	if err := pidfd.Signal(first, sig); err != nil {
		return err
	}
	return k.thawFor(sig)
}

// signalOf reads a number, or a name with or without SIG.
func signalOf(text string) (unix.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= 30 {
			return unix.Signal(34 + n), nil
		}
	}
	return 0, fault.New(fault.Invalid, "signal %q is unknown", text)
}

func (k *container) signalAll(sig unix.Signal) error {
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	if k.status() == specs.StateStopped && sig != unix.SIGKILL {
		return fault.New(fault.NotFound, "container %s is not running", k.ID)
	}
	pids, err := tree.Whole().Procs(k.Cgroup)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, k.thawFor(sig))...)
}

// thawFor lets a paused container die: on cgroup v1 a frozen process does not even notice SIGKILL.
func (k *container) thawFor(sig unix.Signal) error {
	if sig != unix.SIGKILL {
		return nil
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	if frozen, err := tree.Frozen(k.Cgroup); err != nil || !frozen {
		return nil // the group is gone, or runs
	}
	ctx, stop := context.WithTimeout(context.Background(), freezeLimit)
	defer stop()
	return tree.Freeze(ctx, k.Cgroup, false)
}

// deleteLimit bounds how long a killed first process may take to end.
const deleteLimit = 10 * time.Second

func (c *call) remove(f *flags, args []string) error {
	force := false
	f.yes(&force, "kill it if it runs; a container that does not exist is success", "force", "f")
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	k, unlock, err := c.locked(rest[0])
	if force && fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return k.remove(c, force)
}

// remove takes a stopped container down and runs its poststop hooks.
// Errors: Busy if it is not stopped, and then nothing has changed. Source: runtime.md, "Delete".
func (k *container) remove(c *call, force bool) error {
	if now := k.status(); now != specs.StateStopped {
		if !force {
			return fault.Hint(fault.New(fault.Busy, "container %s is %s", k.ID, now), "kill it first, or use --force")
		}
		if err := k.end(); err != nil {
			return err
		}
	}
	if err := k.takeDown(); err != nil {
		return err
	}
	if err := spec.Poststop(k.ID, k.Bundle, k.spec); err != nil {
		c.warn("%v", err)
	}
	return nil
}

// end kills the first process and waits for it; the others go with the cgroup.
func (k *container) end() error {
	first, err := k.process()
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer first.Close()
	if err := pidfd.Signal(first, unix.SIGKILL); err != nil {
		return err
	}
	if err := k.thawFor(unix.SIGKILL); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- pidfd.Wait(first) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(deleteLimit):
		return fault.New(fault.Temporary, "container %s was killed and has not ended: its process hangs in the kernel", k.ID)
	}
}
