package inside

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"worknode/kernel/mount"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// hooksCreate runs at the point where all is mounted and the host is still in sight: first the monitor runs the hooks
// of the host, then we ours. What they change in the root is then sealed with it.
// Source: OCI config.md, "createRuntime hooks", "createContainer hooks".
func (s *setup) hooksCreate() error {
	h := s.req.Hooks
	if h == nil {
		return nil
	}
	if len(h.Prestart)+len(h.CreateRuntime) > 0 {
		if err := report(Report{Made: true}); err != nil {
			return err
		}
		var seen Seen
		if err := read(&seen); err != nil {
			return err
		}
	}
	return s.hooks("createContainer", h.CreateContainer, "creating", mount.FdPath(s.root.Fd()))
}

// hooksStart runs inside the finished container, with the workload's user and bounding set, before its program is
// looked for: a hook may be what puts it there.
func (s *setup) hooksStart() error {
	h := s.req.Hooks
	if h == nil {
		return nil
	}
	return s.hooks("startContainer", h.StartContainer, "created", "")
}

func (s *setup) hooks(stage string, list []wire.Hook, status, dir string) error {
	if len(list) == 0 {
		return nil
	}
	// The trees still to mount are open without it, for the stub's sake.
	if err := unix.CloseRange(SocketFd, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	defer unix.Umask(unix.Umask(0o022))
	state := s.req.Hooks.State
	state.Status, state.Pid = status, os.Getpid()
	return hook.Runner{Dir: dir}.Run(stage, list, state)
}
