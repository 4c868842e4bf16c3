package monitor

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// hooksCreate runs the hooks of the host while init waits with everything mounted.
func (l *launch) hooksCreate() error {
	h := l.req.Hooks
	if h == nil {
		return fault.New(fault.Invalid, "init of %s asks for hooks, there are none", l.req.ID)
	}
	if err := l.hooks("prestart", h.Prestart, hook.Prestart); err != nil {
		return err
	}
	return l.hooks("createRuntime", h.CreateRuntime, "creating")
}

// poststart runs its hooks when the program has been executed, and may have ended already.
func (l *launch) poststart() error {
	h := l.req.Hooks
	if h == nil {
		return nil
	}
	return l.hooks("poststart", h.Poststart, "running")
}

func (l *launch) hooks(stage string, list []wire.Hook, status string) error {
	state := l.req.Hooks.State
	state.Status, state.Pid = status, l.proc.info.Pid
	err := hook.Runner{Dir: state.Bundle, Reap: l.m.reaped, Born: ordinary}.Run(stage, list, state)
	if err != nil {
		return &wire.StageError{Stage: "hook", Err: err}
	}
	return nil
}

// ordinary takes the monitor's own privilege off a child: what the OOM killer may not choose must stay one process.
func ordinary(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
}

// reaped is the status of a child that has ended. It works within a start: the reaper keeps ends of strangers meanwhile.
func (m *Monitor) reaped(pid int) (unix.WaitStatus, error) {
	m.reap()
	m.mu.Lock()
	defer m.mu.Unlock()
	st, ok := m.early[pid]
	delete(m.early, pid)
	if !ok {
		return 0, fault.New(fault.NotFound, "process %d was not seen to end", pid)
	}
	return st, nil
}
