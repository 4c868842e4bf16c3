// Package hook runs OCI hooks: programs that are told a container's state on stdin and may refuse it by failing.
// It is for the monitor and for init, which have no use for os/exec: the one has a reaper that takes every child, the
// other is one thread in namespaces of its own. It does not know what the stages mean.
package hook

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// keepOutput is how much of a failed hook's output goes into the error; the rest is read and dropped.
const keepOutput = 2 << 10

// Prestart is the status that prestart hooks are told. They come from a time without the state creating, and the OCI
// validation suite holds to it. Source: OCI runtime.md, "Lifecycle": step 3, and "created" begins after step 2.
const Prestart = "created"

// killWait is how long a killed hook may take to end; longer means it hangs in the kernel.
const killWait = 5 * time.Second

// Runner says where and how hooks run: in the calling thread's namespaces, with its rights.
type Runner struct {
	Dir string // working directory; empty: the caller's

	// Reap returns the status of a child that has ended; nil: wait4. A process with a reaper of its own asks that one.
	Reap func(pid int) (unix.WaitStatus, error)

	// Born is called with each child's number, for what can be set from outside only; may be nil.
	Born func(pid int)
}

// Run runs the hooks one after the other and returns at the first that fails.
// Errors: Invalid, naming stage, program and what it said.
func (r Runner) Run(stage string, hooks []wire.Hook, state wire.State) error {
	if len(hooks) == 0 {
		return nil
	}
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("%s hooks: state: %w", stage, err)
	}
	for _, h := range hooks {
		if err := r.one(h, text); err != nil {
			return fault.New(fault.Invalid, "%s hook %s: %w", stage, h.Path, err)
		}
	}
	return nil
}

// Command runs one program that is no hook, with nothing on stdin, and returns when it has ended.
// Errors: Invalid, with what it said.
func (r Runner) Command(h wire.Hook) error { return r.one(h, nil) }

// Wait returns how a child that somebody else has started ends; after limit it is killed.
// Errors: Temporary after limit; Unknown if its end is nobody's to know.
func (r Runner) Wait(pid, pidfd int, limit time.Duration) (unix.WaitStatus, error) {
	if !ended(pidfd, limit) {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		if ended(pidfd, killWait) {
			_, _ = r.reap(pid)
		}
		return 0, fault.New(fault.Temporary, "it took longer than %v and was killed", limit)
	}
	return r.reap(pid)
}

func (r Runner) one(h wire.Hook, state []byte) error {
	if !path.IsAbs(h.Path) {
		return fault.New(fault.Invalid, "the path is not absolute")
	}
	stdin, err := told(state)
	if err != nil {
		return err
	}
	defer unix.Close(stdin)
	var out [2]int
	if err := unix.Pipe2(out[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(out[0])
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pidfd := -1
	pid, err := syscall.ForkExec(h.Path, args, &syscall.ProcAttr{
		Dir: r.Dir, Env: h.Env, Files: []uintptr{uintptr(stdin), uintptr(out[1]), uintptr(out[1])},
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	unix.Close(out[1])
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	if r.Born != nil {
		r.Born(pid)
	}
	said, late := follow(pidfd, out[0], h.Limit())
	if late {
		_ = unix.Kill(-pid, unix.SIGKILL) // its session: what it started goes with it
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		if !ended(pidfd, killWait) {
			return fault.New(fault.Invalid, "it took longer than %v and does not even end when killed%s", h.Limit(), said)
		}
	}
	st, err := r.reap(pid)
	switch {
	case late:
		return fault.New(fault.Invalid, "it took longer than %v and was killed%s", h.Limit(), said)
	case err != nil:
		return fmt.Errorf("its end is not known: %w", err)
	case st.Signaled():
		return fault.New(fault.Invalid, "it was ended by signal %d (%s)%s", st.Signal(), st.Signal(), said)
	case st.ExitStatus() != 0:
		return fault.New(fault.Invalid, "exit status %d%s", st.ExitStatus(), said)
	}
	return nil
}

// told is the state as a file: however long, and whether the hook reads it or not, nobody waits.
func told(state []byte) (int, error) {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("state: %w", err)
	}
	for at := 0; at < len(state); { // Pwrite leaves the position at the beginning
		n, err := unix.Pwrite(fd, state[at:], int64(at))
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, fmt.Errorf("state: %w", err)
		}
		at += max(n, 0)
	}
	return fd, nil
}

// follow reads what a hook says until it ends. What it leaves running may hold the pipe; nobody waits for that.
func follow(pidfd, out int, limit time.Duration) (said string, late bool) {
	_ = unix.SetNonblock(out, true)
	var kept []byte
	var buf [4096]byte
	drain := func() (open bool) {
		for {
			n, err := unix.Read(out, buf[:])
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return true
			case err != nil || n <= 0:
				return false
			default:
				kept = append(kept, buf[:n]...)
				kept = kept[max(0, len(kept)-keepOutput):]
			}
		}
	}
	end := time.Now().Add(limit)
	for open := true; ; {
		left := time.Until(end)
		if left <= 0 {
			return quoted(kept), true
		}
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(out), Events: unix.POLLIN}}
		if !open {
			fds = fds[:1]
		}
		_, err := unix.Poll(fds, int(left/time.Millisecond)+1)
		if err != nil && err != unix.EINTR {
			return quoted(kept), true
		}
		ended := fds[0].Revents != 0
		if open {
			open = drain()
		}
		if ended {
			return quoted(kept), false
		}
	}
}

// ended waits until the process has, or for no longer than limit.
func ended(pidfd int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(left, 0)/time.Millisecond))
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

func (r Runner) reap(pid int) (st unix.WaitStatus, err error) {
	if r.Reap != nil {
		return r.Reap(pid)
	}
	for {
		if _, err = unix.Wait4(pid, &st, 0, nil); err != unix.EINTR {
			return st, err
		}
	}
}

func quoted(said []byte) string {
	text := strings.TrimSpace(string(said))
	if text == "" {
		return ""
	}
	return fmt.Sprintf(", it said %q", text)
}
