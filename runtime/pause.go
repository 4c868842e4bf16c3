package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/act"
	"worknode/runtime/state"
)

// pidMode is how a container wants its pid namespace.
func pidMode(c *state.Container) cri.NamespaceMode {
	return c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
}

// pidNamespace is the path of the pid namespace to enter, for the modes that enter one. For the pod's own it is empty
// until ensurePause made it, which happens at the first start.
func (l *loop) pidNamespace(s *state.Sandbox, c *state.Container) (string, error) {
	switch pidMode(c) {
	case cri.NamespaceMode_POD:
		if s, err := l.store.Sandbox(s.ID); err == nil && s.PausePid != 0 {
			return pidPath(s.PausePid), nil
		}
	case cri.NamespaceMode_TARGET:
		id := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetTargetId()
		target, err := l.store.Container(id)
		if err != nil {
			return "", fault.New(fault.Invalid, "target of the pid namespace: %w", err)
		}
		if target.Sandbox != s.ID {
			return "", fault.New(fault.Invalid, "target container %s is in another sandbox", target.ID)
		}
		if target.State != state.Running {
			return "", fault.New(fault.Invalid, "target container %s is %s, not running", target.ID, target.State)
		}
		return pidPath(target.Pid), nil
	}
	return "", nil
}

func pidPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/pid" }

// ensurePause starts the pod's init when the first container asks for a pid namespace of the whole pod. It is
// alone in an empty root, reaps what is orphaned, and is never restarted: with it the namespace is gone.
func (l *loop) ensurePause(s *state.Sandbox, c *state.Container) error {
	if pidMode(c) != cri.NamespaceMode_POD {
		return nil
	}
	defer l.locks.take("pause " + s.ID)()
	s, err := l.store.Sandbox(s.ID)
	if err != nil {
		return err
	}
	if s.PausePid != 0 {
		return nil
	}
	start, err := l.hands.Pause(s)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(l.tasks.Context(), callLimit)
	defer stop()
	p, _, err := l.keeper.Start(ctx, start, nil)
	if err != nil {
		return fmt.Errorf("pod's init: %w", err)
	}
	v := *s
	v.Pause, v.PausePid = start.ID, p.Pid
	return l.store.PutSandbox(&v)
}

// killPause ends the pod's init, if there is one.
func (l *loop) killPause(ctx context.Context, s *state.Sandbox) {
	s, err := l.store.Sandbox(s.ID)
	if err != nil || s.Pause == "" {
		return
	}
	gone := l.keeper.Await(s.Pause)
	defer l.keeper.Unwait(s.Pause)
	if err := l.hands.EndCgroup(act.PauseCgroup(s)); err != nil {
		slog.Warn("pod's init is not killed", "sandbox", s.ID, "error", err)
		return
	}
	// An earlier life may have seen the end, and had it forgotten, without getting to write that down.
	look := time.NewTicker(pausePoll)
	defer look.Stop()
	for l.keeper.Knows(s.Pause) {
		select {
		case <-gone:
			l.forget(s.Pause)
			return
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// pausePoll is how often we look whether the monitor has forgotten a pod's init that nobody tells us the end of.
const pausePoll = 20 * time.Millisecond

// dropPause forgets an init that ended by itself; the next container that wants one gets a new namespace.
func (l *loop) dropPause(sandbox, id string) {
	defer l.locks.take("pause " + sandbox)()
	s, err := l.store.Sandbox(sandbox)
	if err != nil || s.Pause != id {
		return
	}
	v := *s
	v.Pause, v.PausePid = "", 0
	if err := l.store.PutSandbox(&v); err != nil {
		slog.Error("sandbox record", "id", s.ID, "error", err)
	}
}
