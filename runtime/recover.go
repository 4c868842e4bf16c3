package runtime

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/netns"
	"worknode/monitor/wire"
	"worknode/runtime/act"
	"worknode/runtime/state"
)

// regainLimit bounds what recovery does for one container: one bad object must not hold up the node.
const regainLimit = 5 * time.Second

// recover compares the records with what is there, and mends. It is also the ordinary start: on a fresh node there is
// nothing to find.
func (l *loop) recover(ctx context.Context) error {
	known := map[string]wire.Process{}
	for _, p := range l.keeper.Known() {
		known[p.ID] = p
	}
	var live []*state.Sandbox
	for _, s := range l.store.Sandboxes() {
		l.recoverSandbox(s)
		l.recoverPause(s.ID, known)
		if s, err := l.store.Sandbox(s.ID); err == nil && !s.HostNetwork && !s.NetworkDone {
			live = append(live, s)
		}
	}
	if err := l.net.reconcile(live); err != nil {
		return err
	}
	for _, c := range l.store.Containers("") {
		l.useImages(c)
		if err := l.recoverContainer(ctx, c, known); err != nil {
			slog.Error("container not recovered", "id", c.ID, "error", err)
		}
	}
	l.endStrangers(ctx, known)
	if err := l.removeRemains(); err != nil {
		slog.Warn("remains of unknown objects stay", "error", err)
	}
	if err := l.images.Sweep(); err != nil {
		slog.Warn("removed images stay on disk", "error", err)
	}
	return nil
}

// recoverSandbox finds out whether a sandbox is whole; without its namespaces nothing can start in it.
func (l *loop) recoverSandbox(s *state.Sandbox) {
	if s.State != state.Ready {
		return
	}
	for _, pin := range l.hands.PinPaths(s) {
		if !netns.Pinned(pin) {
			v := *s
			v.State = state.NotReady
			slog.Warn("sandbox lost a namespace", "id", s.ID, "pin", pin)
			if err := l.store.PutSandbox(&v); err != nil {
				slog.Error("sandbox record", "id", s.ID, "error", err)
			}
			return
		}
	}
}

// recoverPause records a pod's init that was started by a life that did not get to write it down.
func (l *loop) recoverPause(sandbox string, known map[string]wire.Process) {
	s, err := l.store.Sandbox(sandbox)
	p, kept := known[act.PauseID(sandbox)]
	if err != nil || s.State != state.Ready || s.Pause != "" || !kept || p.Exit != nil {
		return
	}
	v := *s
	v.Pause, v.PausePid = p.ID, p.Pid
	if err := l.store.PutSandbox(&v); err != nil {
		slog.Error("sandbox record", "id", s.ID, "error", err)
	}
}

// recoverContainer settles one container. What the monitor knows beats the record: it cloned the process.
func (l *loop) recoverContainer(ctx context.Context, c *state.Container, known map[string]wire.Process) error {
	if _, err := l.store.Sandbox(c.Sandbox); err != nil {
		return l.dropOrphan(c)
	}
	p, kept := known[c.ID]
	switch {
	case c.State == state.Exited:
		l.poststop(c.ID)
		return l.hands.EndCgroup(c.Cgroup)
	case kept && p.Exit != nil:
		l.born(c.ID) // the exit is delivered as soon as the keeper runs
		return nil
	case kept:
		l.born(c.ID)
		return l.resume(c, p)
	case c.State == state.Created:
		l.born(c.ID)
		return nil
	}
	l.born(c.ID)
	if act.Alive(c.Pid, c.StartTime) {
		ctx, stop := context.WithTimeout(ctx, regainLimit)
		defer stop()
		err := l.keeper.Regain(ctx, c)
		if err == nil {
			slog.Warn("container regained by its pid: runtime and monitor had died together", "id", c.ID, "pid", c.Pid)
			return l.resume(c, wire.Process{Pid: c.Pid, StartTime: c.StartTime, Started: c.Started})
		}
		if !fault.Is(err, fault.NotFound) {
			slog.Warn("container not regained", "id", c.ID, "error", err)
		}
	}
	l.exited(ctx, wire.Exit{ID: c.ID, Code: 255, Unknown: true, At: time.Now()})
	return nil
}

// resume records what the monitor knows of a running container, and arms the kill of a stop that was under way.
func (l *loop) resume(c *state.Container, p wire.Process) error {
	if c.State == state.Created {
		v := *c
		v.State, v.Pid, v.StartTime, v.Started = state.Running, p.Pid, p.StartTime, p.Started
		if err := l.store.PutContainer(&v); err != nil {
			return err
		}
		c = &v
	}
	if !c.Deadline.IsZero() {
		l.killAt(l.life(c.ID), c.ID, c.Deadline)
		l.tasks.Go("stop "+c.ID, func(ctx context.Context) { l.askToStop(ctx, c.ID) })
	}
	return nil
}

// dropOrphan removes a container whose sandbox has no record any more.
func (l *loop) dropOrphan(c *state.Container) error {
	if err := l.hands.EndCgroup(c.Cgroup); err != nil {
		return err
	}
	if err := l.hands.RemoveLayer(c.ID); err != nil {
		return err
	}
	l.releaseImages(c)
	return l.store.DropContainer(c.ID)
}

// endStrangers kills processes of the monitor that no record explains: execs of the last life, and starts whose record
// was never written. Their exits make the monitor forget them.
func (l *loop) endStrangers(ctx context.Context, known map[string]wire.Process) {
	pauses := map[string]bool{}
	for _, s := range l.store.Sandboxes() {
		pauses[s.Pause] = true
	}
	for id, p := range known {
		if _, err := l.store.Container(id); err == nil || pauses[id] || p.Exit != nil {
			continue
		}
		slog.Info("ending a process that nobody asks for any more", "id", id, "pid", p.Pid)
		if err := l.keeper.Signal(ctx, id, int(unix.SIGKILL), true); err != nil && !fault.Is(err, fault.NotFound) {
			slog.Warn("process stays", "id", id, "error", err)
		}
	}
}

// removeRemains takes away folders, pins and cgroups of objects without a record.
func (l *loop) removeRemains() error {
	sandbox := func(id string) bool { _, err := l.store.Sandbox(id); return err == nil }
	container := func(id string) bool { _, err := l.store.Container(id); return err == nil }
	r, err := l.hands.Look(sandbox, container)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range r.Sandboxes {
		slog.Info("removing the remains of an unknown sandbox", "id", id)
		errs = append(errs, l.hands.RemoveSandbox(id))
	}
	for _, id := range r.Bundles {
		errs = append(errs, l.hands.EndBundle(id))
	}
	for _, id := range r.Foreign {
		errs = append(errs, l.hands.EndForeign(l.tasks.Context(), id))
	}
	for _, id := range r.Layers {
		errs = append(errs, l.hands.RemoveLayer(id))
	}
	groups, err := l.hands.OwnGroups(l.opt.CgroupRoot)
	errs = append(errs, err)
	for _, g := range groups {
		if !sandbox(g.ID) {
			errs = append(errs, l.hands.EndCgroup(g.Path))
		}
	}
	return errors.Join(errs...)
}
