package runtime

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/runtime/act"
	"worknode/runtime/state"
)

// killLimit is how long a killed process may take to end; longer means it hangs in the kernel.
const killLimit = 30 * time.Second

// StopContainer sends the stop signal, kills at the end of timeout, and returns once the exit is recorded. The kill
// happens even if the client leaves or we are restarted. Repeat: safe; a shorter timeout shortens the wait. Unknown or
// not running containers are stopped already.
// Errors: Temporary if a killed process does not end.
func (l *loop) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := l.store.Container(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if timeout <= 0 {
		return l.kill(ctx, c.ID)
	}
	deadline := time.Now().Add(timeout)
	if err := l.markStop(c.ID, deadline); err != nil {
		return err
	}
	life := l.life(c.ID)
	c, err = l.store.Container(c.ID)
	if err != nil || c.State != state.Running || life == nil {
		return nil
	}
	l.killAt(life, c.ID, c.Deadline)
	l.askToStop(ctx, c.ID)
	limit := time.NewTimer(time.Until(c.Deadline) + killLimit)
	defer limit.Stop()
	select {
	case <-life.done:
		return nil
	case <-limit.C:
		return fault.New(fault.Temporary, "container %s was killed and has not ended: a process hangs in the kernel", c.ID)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// markStop records the deadline unless an earlier one stands.
func (l *loop) markStop(id string, deadline time.Time) error {
	defer l.locks.take(id)()
	c, err := l.store.Container(id)
	if err != nil || c.State != state.Running {
		return nil
	}
	if !c.Deadline.IsZero() && c.Deadline.Before(deadline) {
		return nil
	}
	v := *c
	v.Deadline = deadline
	return l.store.PutContainer(&v)
}

// askToStop sends the stop signal, once for all who ask. Crash: twice, if it falls between the signal and its record.
func (l *loop) askToStop(ctx context.Context, id string) {
	defer l.locks.take(id)()
	c, err := l.store.Container(id)
	if err != nil || c.State != state.Running || c.Asked {
		return
	}
	if err := l.signal(ctx, c); err != nil {
		if !fault.Is(err, fault.NotFound) {
			slog.Warn("stop signal not delivered, the deadline decides", "id", id, "error", err)
		}
		return
	}
	v := *c
	v.Asked = true
	if err := l.store.PutContainer(&v); err != nil {
		slog.Warn("stop signal may be sent again after a restart", "id", id, "error", err)
	}
}

// killAt arms the kill, or brings it forward.
func (l *loop) killAt(v *life, id string, deadline time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.timer == nil {
		v.timer = time.AfterFunc(time.Until(deadline), func() {
			slog.Info("container did not stop in time, killing", "id", id)
			l.sendKill(id)
		})
	} else {
		v.timer.Reset(time.Until(deadline))
	}
}

// kill ends a container now and waits until its exit is recorded; not running is success.
func (l *loop) kill(ctx context.Context, id string) error {
	life := l.life(id)
	c, err := l.store.Container(id)
	if err != nil || c.State != state.Running || life == nil {
		return nil
	}
	l.sendKill(c.ID)
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	select {
	case <-life.done:
		return nil
	case <-limit.C:
		return fault.New(fault.Temporary, "container %s was killed and has not ended: a process hangs in the kernel", c.ID)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendKill kills all processes of the container's cgroup; it works without a monitor. The first process goes by its own
// pid too, should it have been moved out of the group.
func (l *loop) sendKill(id string) {
	c, err := l.store.Container(id)
	if err != nil || c.State != state.Running {
		return
	}
	if err := l.hands.Tree.Kill(c.Cgroup); err != nil {
		slog.Warn("cgroup not killed", "id", id, "error", err)
	}
	if act.Alive(c.Pid, c.StartTime) {
		if err := unix.Kill(c.Pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			slog.Warn("process not killed", "id", id, "pid", c.Pid, "error", err)
		}
	}
}
