// Package birth makes one container process and follows it until it runs its program, or waits to be told to: the way of
// the OCI command line, which is nobody's keeper. The process is the caller's child; when the caller ends, it falls to
// the nearest subreaper, as users of OCI runtimes expect. The monitor's own starts are in package monitor.
package birth

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/pidfd"
	"worknode/monitor/hook"
	"worknode/monitor/inside"
	"worknode/monitor/wire"
)

// limit bounds the way from clone to the program; a hanging network mount must not keep a start for ever.
const limit = 2 * time.Minute

// Order is all that a birth needs.
type Order struct {
	Program string         // the binary whose main calls inside.Main
	Request inside.Request // its Enter and Wait are told by Target
	Stdio   [3]*os.File
	Enter   *os.File   // pidfd of a process whose namespaces to enter, or nil
	Listen  *os.File   // where to wait for a start, or nil
	Keep    []*os.File // the program's descriptors from 3 on
}

// Child is the process. Its files are the caller's to close.
type Child struct {
	Pid      int
	Pidfd    *os.File
	Pty      *os.File // master, with Request.Terminal
	Warnings []string
}

// Make returns when the program runs, or with Listen when the process waits. Nothing is left when it fails.
// Errors: what inside reports; Temporary when it takes too long.
func Make(o Order) (*Child, error) {
	program, err := mount.Frozen(o.Program)
	if err != nil {
		return nil, fmt.Errorf("container init: %w", err)
	}
	defer program.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Exhausted, "socket for init: %w", err)
	}
	conn, err := wire.NewConn(pair[0])
	if err != nil {
		unix.Close(pair[1])
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	o.Request.Enter, o.Request.Wait, o.Request.Keep = o.Enter != nil, o.Listen != nil, len(o.Keep)
	theirs := os.NewFile(uintptr(pair[1]), "init")
	c, err := o.clone(program, theirs)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if err := c.Follow(conn, &o.Request); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// end kills a process that went wrong and takes its remains.
func (c *Child) end() {
	_ = pidfd.Signal(c.Pidfd, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(c.Pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	c.Pidfd.Close()
	if c.Pty != nil {
		c.Pty.Close()
	}
}

// clone makes the process in its new namespaces. A pid namespace that exists is joined by a thread that ends with it.
func (o *Order) clone(program, socket *os.File) (*Child, error) {
	flags, err := inside.CloneFlags(o.Request.Init.New)
	if err != nil {
		return nil, err
	}
	if o.Request.User && o.Enter == nil {
		flags = unix.CLONE_NEWNS // the others are made inside the user namespace, to belong to it
	}
	target := o.Enter
	if o.Listen != nil {
		target = o.Listen
	}
	if target == nil {
		target = o.Stdio[0] // the place must be taken: what is kept comes after it
	}
	files := []uintptr{o.Stdio[0].Fd(), o.Stdio[1].Fd(), o.Stdio[2].Fd(), socket.Fd(), target.Fd()}
	for _, f := range o.Keep {
		files = append(files, f.Fd())
	}
	fd := -1
	attr := &syscall.ProcAttr{Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &fd}}
	var pid int
	fork := func() error {
		var err error
		pid, err = syscall.ForkExec(mount.FdPath(int(program.Fd())), []string{"worknode-monitor", inside.Arg}, attr)
		return err
	}
	if err := o.inPidNamespace(fork); err != nil {
		return nil, cloneError(err, o.Enter != nil)
	}
	return &Child{Pid: pid, Pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (o *Order) inPidNamespace(fork func() error) error {
	ns := o.Enter
	if path := o.Request.Init.Join["pid"]; ns == nil && path != "" {
		f, err := os.Open(path)
		if err != nil {
			return fault.New(fault.NotFound, "join pid namespace: %w", err)
		}
		defer f.Close()
		ns = f
	}
	if ns == nil {
		return fork()
	}
	done := make(chan error, 1)
	go func() { // locked and never unlocked: the thread ends with it
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
			done <- fmt.Errorf("join pid namespace: %w", err)
			return
		}
		done <- fork()
	}()
	return <-done
}

func cloneError(err error, exec bool) error {
	kind := fault.Of(err)
	switch {
	case errors.Is(err, unix.ENOMEM) && exec, errors.Is(err, unix.ESRCH):
		return fault.New(fault.NotFound, "clone: the container's first process has exited: %w", err)
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOSPC):
		kind = fault.Exhausted
	case errors.Is(err, unix.EPERM):
		kind = fault.Denied
	}
	return fault.New(kind, "clone: %w", err)
}

// Follow hands a process its orders, if there are any, and listens until it is ready and, unless it is to wait, its
// socket closes: then it has become the program.
func (c *Child) Follow(conn *wire.Conn, order *inside.Request) error {
	deadline := time.Now().Add(limit)
	if order != nil {
		deadline = deadline.Add(order.Hooks.Limit())
	}
	_ = conn.SetWriteDeadline(deadline)
	_ = conn.SetReadDeadline(deadline)
	if order != nil {
		_ = conn.Send(*order)         // if it has died, that is what we hear next
		if order.User || order.Time { // again, for the life after the stub
			_ = conn.Send(*order)
		}
	}
	ready := false
	for {
		var r inside.Report
		fds, err := conn.Recv(&r)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
			if ready {
				return nil
			}
			return fault.Hint(fault.New(fault.Unknown, "init died before it ran the program"), "is its memory or pids limit too small?")
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fault.New(fault.Temporary, "init took longer than %v, probably in a mount that does not answer", limit)
		case err != nil:
			return err
		case r.Error != nil:
			wire.CloseAll(fds)
			return r.Error.Err()
		case r.Pty && len(fds) == 1:
			c.Pty = os.NewFile(uintptr(fds[0]), "pty")
		case r.Self && len(fds) == 1:
			if err := c.replaced(conn, os.NewFile(uintptr(fds[0]), "pidfd")); err != nil {
				return err
			}
		case r.Made:
			if err := c.hooks(order.Hooks); err != nil {
				return err
			}
			if err := conn.Send(inside.Seen{}); err != nil {
				return err
			}
		case r.Warning != "":
			c.Warnings = append(c.Warnings, r.Warning)
		case r.Ready:
			ready = true
			if order != nil && order.Wait {
				return nil
			}
		}
	}
}

// hooks runs those of the host while init waits with everything mounted.
func (c *Child) hooks(h *wire.Hooks) error {
	if h == nil {
		return fault.New(fault.Invalid, "init asks for hooks, there are none")
	}
	state := h.State
	state.Status, state.Pid = hook.Prestart, c.Pid
	run := hook.Runner{Dir: state.Bundle}
	if err := run.Run("prestart", h.Prestart, state); err != nil {
		return err
	}
	state.Status = "creating"
	return run.Run("createRuntime", h.CreateRuntime, state)
}

// replaced takes the process that went on in the place of the one that was cloned, and ended: it is our child too.
func (c *Child) replaced(conn *wire.Conn, next *os.File) error {
	pid, err := pidfd.PidOf(next)
	if err != nil {
		next.Close()
		return err
	}
	for {
		if _, err := unix.Wait4(c.Pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	c.Pidfd.Close()
	c.Pid, c.Pidfd = pid, next
	return conn.Send(inside.Seen{})
}
